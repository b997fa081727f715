"""Metrics of a run in a file, on the console and in W&B."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.loggers import WandbLogger

from common.training.tracking import Console, MetricsFile, close, loggers


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


def test_the_console_shows_validations_only(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.log_metrics({"train/loss": 0.5, "epoch": 1}, step=9)
    console.log_metrics({"valid/auc": 0.71239, "valid/logloss": 0.4, "epoch": 1}, step=9)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "epoch 2  step 10  valid/auc 0.7124  valid/logloss 0.4000\n"


def test_disabled_leaves_only_the_file(tmp_path: Path) -> None:
    found = loggers(tmp_path, wandb="disabled", project="p", name="n", config={}, console=False)
    assert [type(logger) for logger in found] == [MetricsFile]
    close(found)


def test_wandb_offline_keeps_its_files_in_the_run_folder(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    found = loggers(run_dir, wandb="offline", project="p", name="n", config={"lr": 0.1}, group="g")
    assert [type(logger) for logger in found] == [MetricsFile, Console, WandbLogger]
    for logger in found:
        logger.log_metrics({"valid/auc": 0.5}, step=0)
    close(found, {"auc": 0.5, "gauc": None})
    assert list(run_dir.glob("wandb/offline-run-*/*.wandb"))
    assert (run_dir / "metrics.csv").read_text() == "step,valid/auc\n0,0.5\n"


def test_two_wandb_runs_in_one_process_are_two(tmp_path: Path) -> None:
    ids = []
    for name in ("a", "b"):
        found = loggers(tmp_path / name, wandb="offline", project="p", name=name, config={})
        (tracker,) = [logger for logger in found if isinstance(logger, WandbLogger)]
        tracker.log_metrics({"x": 1.0}, step=0)
        ids.append(tracker.version)
        close(found)
    assert ids[0] != ids[1]
