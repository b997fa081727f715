"""Metrics of a run in a file, on the console and in W&B."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.training.config import TrackingConfig
from common.training.tracking import Console, MetricsFile, WandbRun, begin_at, close, loggers


def test_columns_appear_as_they_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = MetricsFile(path)
    log.log_metrics({"epoch": 0, "loss": 0.5}, step=0)
    log.log_metrics({"epoch": 0, "loss": 0.25}, step=1)
    log.log_metrics({"epoch": 0, "auc": 0.1 + 0.2}, step=1)
    log.log_metrics({"loss": float("nan")}, step=2)
    assert path.read_text() == (
        "step,epoch,loss,auc\n0,0,0.5,\n1,0,0.25,\n1,0,,0.30000000000000004\n2,,nan,\n"
    )


def test_a_resumed_run_goes_on_behind_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = MetricsFile(path)
    for step in range(5):
        first.log_metrics({"loss": step}, step=step)
    second = MetricsFile(path)
    second.log_metrics({"loss": 30.5}, step=3)
    second.log_metrics({"auc": 1.0}, step=3)
    assert path.read_text() == "step,loss,auc\n0,0,\n1,1,\n2,2,\n3,30.5,\n3,,1\n"


def test_a_row_cut_off_by_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n0,0.5\n1,0.25\n2,0.1")
    MetricsFile(path).log_metrics({"loss": 0.75}, step=7)
    assert path.read_text() == "step,loss\n0,0.5\n1,0.25\n7,0.75\n"


def test_nothing_in_the_file_but_a_cut_header(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,lo")
    MetricsFile(path).log_metrics({"loss": 1.0}, step=0)
    assert path.read_text() == "step,loss\n0,1\n"


def test_beginning_at_a_step_drops_what_is_logged_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = MetricsFile(path)
    for step in range(5):
        first.log_metrics({"loss": step}, step=step)
    second = MetricsFile(path)
    second.begin(3)
    assert path.read_text() == "step,loss\n0,0\n1,1\n2,2\n"
    second.log_metrics({"loss": 9}, step=7)
    assert path.read_text() == "step,loss\n0,0\n1,1\n2,2\n7,9\n"
    third = MetricsFile(path)
    third.begin(0)
    assert not path.exists()
    third.log_metrics({"loss": 1}, step=0)
    assert path.read_text() == "step,loss\n0,1\n"


def test_the_console_shows_validations_and_training_losses(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.log_metrics({"train/loss": 0.5, "train/entropy": 0.1, "epoch": 1}, step=8)
    console.log_metrics(
        {"valid/auc": 0.71239, "valid/logloss": 0.4, "valid/auc/0-50": 0.3, "epoch": 1}, step=9
    )
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == (
        "epoch 2  step 9  train/loss 0.5000\nepoch 2  step 10  valid/auc 0.7124  valid/logloss 0.4000\n"
    )


def test_disabled_leaves_only_the_file(tmp_path: Path) -> None:
    found = loggers(tmp_path, TrackingConfig(wandb="disabled"), project="p", resolved={}, console=False)
    assert [type(logger) for logger in found] == [MetricsFile]
    close(found)


def test_wandb_offline_keeps_its_files_in_the_run_folder(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    found = loggers(run_dir, TrackingConfig(group="g"), project="p", resolved={"lr": 0.1})
    assert [type(logger) for logger in found] == [MetricsFile, Console, WandbRun]
    begin_at(found, 0)
    for logger in found:
        logger.log_metrics({"valid/auc": 0.5}, step=0)
    close(found, {"auc": 0.5, "gauc": None})
    assert list(run_dir.glob("wandb/offline-run-*/*.wandb"))
    assert (run_dir / "metrics.csv").read_text() == "step,valid/auc\n0,0.5\n"


def records(path: Path) -> Iterator[bytes]:
    """The records of a W&B file: 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


def history(run_dir: Path) -> tuple[str, list[dict[str, str]]]:
    """Id and logged rows of the one W&B run in a folder, as `wandb sync` would read them."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made at run time

    (file,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    found: list[Any] = []
    until = time.monotonic() + 60
    while not any(record.WhichOneof("record_type") == "exit" for record in found):
        assert time.monotonic() < until, "W&B's own process did not write the end of the run"
        found = []
        for data in records(file):
            found.append(Record())
            found[-1].ParseFromString(data)
        time.sleep(0.05)
    (id,) = {record.run.run_id for record in found if record.WhichOneof("record_type") == "run"}
    rows = []
    for record in found:
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return id, rows


def test_a_run_that_is_interrupted_stays_one_wandb_run(tmp_path: Path) -> None:
    ids = set()
    for begin, end in ((0, 3), (2, 5), (5, 6)):  # the second part repeats a step that no checkpoint held
        found = loggers(tmp_path, TrackingConfig(), project="p", resolved={}, console=False)
        begin_at(found, begin)
        for step in range(begin, end):
            for logger in found:
                logger.log_metrics({"train/loss": float(step)}, step=step)
        close(found, finished=end == 6)
        id, rows = history(tmp_path)
        ids.add(id)
        logged = [(int(row["trainer/global_step"]), float(row["train/loss"])) for row in rows]
        assert logged == [(step, float(step)) for step in range(end)]
    assert ids == {(tmp_path / "wandb" / "id").read_text().strip()}


def test_two_run_folders_are_two_wandb_runs(tmp_path: Path) -> None:
    ids = []
    for name in ("a", "b"):
        found = loggers(tmp_path / name, TrackingConfig(), project="p", resolved={})
        (tracker,) = [logger for logger in found if isinstance(logger, WandbRun)]
        begin_at(found, 0)
        tracker.log_metrics({"x": 1.0}, step=0)
        ids.append(tracker.version)
        close(found)
    assert ids[0] != ids[1]
