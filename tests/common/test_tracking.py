"""Metrics of a run in a file, on the console and in W&B."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from common.live import Progress
from common.training.config import TrackingConfig
from common.training.metrics_file import MetricsFile
from common.training.task import Artifact, Measured
from common.training.tracking import Shown, begin_at, close, loggers
from common.training.wandb_mode import tracking_mistakes, wandb_mode
from common.training.wandb_run import WandbRun
from wandb_file import read_wandb


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


def test_the_panel_shows_validations_and_training_losses() -> None:
    with Progress("run", shown=False) as progress:
        progress.stage("train", total=10, unit="steps")
        shown = Shown(progress)
        shown.log_metrics({"train/loss": 0.5, "train/entropy": 0.1, "epoch": 1}, step=8)
        shown.log_metrics({"valid/auc": 0.71239, "valid/auc/0-50": 0.3, "valid/samples": 8.0, "epoch": 1}, 9)
        line = progress.line()
        shown.log_metrics({"valid/auc": float("nan")}, 19)
        later = progress.line()
    assert line == "run: train 0/10 steps; train/loss 0.5000; train/entropy 0.1000; epoch 2; valid/auc 0.7124"
    assert later == line.removesuffix("; valid/auc 0.7124")


def test_disabled_leaves_only_the_file(tmp_path: Path) -> None:
    found = loggers(tmp_path, TrackingConfig(wandb="disabled"), project="p", resolved={})
    assert [type(logger) for logger in found] == [MetricsFile]
    close(found)


def test_wandb_offline_keeps_its_files_in_the_run_folder(tmp_path: Path) -> None:
    run_dir, data = tmp_path / "run", tmp_path / "data.txt"
    data.write_text("rows")
    config = TrackingConfig(group="g", job_type="train", tags=["own"])
    found = loggers(run_dir, config, project="p", resolved={"lr": 0.1}, tags=["din", "own", "x" * 80])
    assert [type(logger) for logger in found] == [MetricsFile, WandbRun]
    begin_at(found, 0)
    for logger in found:
        logger.log_metrics({"valid/auc": 0.5}, step=0)
    measured = Measured(
        {"test/auc/0-50": 0.5, "test/gauc": None},
        {"test/gauc": "one class"},
        figures={"attention/long/gini/0-50": 0.25},
        histograms={"diagnosis/similarity/mined": ([1, 2], [-1.0, 0.0, 1.0])},
    )
    artifacts = [Artifact("data", "dataset", (data,), facts={"fingerprint": "f"})]
    close(found, measured, [*artifacts, Artifact("model", "model", (data,), made=True)])
    assert (run_dir / "metrics.csv").read_text() == "step,valid/auc\n0,0.5\n"

    logged = read_wandb(run_dir)
    head = {key: logged.run.get(key) for key in ("project", "run_group", "job_type", "display_name", "tags")}
    assert head == {
        "project": "p", "run_group": "g", "job_type": "train", "display_name": "run",
        "tags": ["own", "din", "x" * 64],
    }  # fmt: skip
    assert logged.summary["test/auc/0-50"] == 0.5
    wanted = {
        "valid/auc",
        "test/auc/0-50",
        "attention/long/gini/0-50",
        "diagnosis/similarity/mined",
        "results",
    }
    assert logged.names >= wanted
    (table,) = run_dir.glob("wandb/offline-run-*/files/media/table/results*.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["split", "measure", "slice", "value", "reason"]
    assert content["data"] == [["test", "auc", "0-50", 0.5, ""], ["test", "gauc", "", None, "one class"]]
    kept = {one["name"]: one for one in logged.artifacts if one["type"] != "run_table"}
    assert kept["data"]["use_after_commit"]
    assert "use_after_commit" not in kept["model"]
    (file,) = kept["data"]["manifest"]["contents"]
    assert file["ref"] == data.as_uri()
    assert base64.b64decode(file["digest"]) == hashlib.md5(b"rows").digest()


@pytest.mark.parametrize(
    ("asked", "environment", "mode"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "disabled"),
        ("offline", {"WANDB_API_KEY": "k", "WANDB_MODE": "online"}, "offline"),
        ("disabled", {"WANDB_API_KEY": "k"}, "disabled"),
        ("online", {}, "online"),
    ],
)
def test_without_a_key_nothing_leaves_the_machine(
    asked: Any, environment: dict[str, str], mode: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode(asked) == mode
    mistakes = tracking_mistakes(TrackingConfig(wandb=asked))
    needs_key = mode == "online" and "WANDB_API_KEY" not in environment
    assert [line.partition(":")[0] for line in mistakes] == ["tracking.wandb"] * needs_key
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert tracking_mistakes(TrackingConfig(wandb="online")) == []


def history(run_dir: Path) -> tuple[str, list[dict[str, Any]]]:
    """Id and logged rows of the one W&B run in a folder, as `wandb sync` would send them."""
    logged = read_wandb(run_dir)
    rows = [{key: value for key, value in row.items() if not key.startswith("_")} for row in logged.rows]
    return logged.run["run_id"], rows


def test_a_run_that_is_interrupted_stays_one_wandb_run(tmp_path: Path) -> None:
    ids = set()
    for begin, end in ((0, 3), (2, 5), (5, 6)):  # the second part repeats a step that no checkpoint held
        found = loggers(tmp_path, TrackingConfig(), project="p", resolved={})
        begin_at(found, begin)
        for step in range(begin, end):
            for logger in found:
                logger.log_metrics({"train/loss": float(step)}, step=step)
        close(found, finished=end == 6)
        id, rows = history(tmp_path)
        ids.add(id)
        logged = [(row["trainer/global_step"], row["train/loss"]) for row in rows]
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
