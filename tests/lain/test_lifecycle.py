"""The life of a run through the real command: begun, refused, interrupted, resumed, finished, given again."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from common.training.checkpoint import load_checkpoint
from lain.cli import main
from lain.data.store import sealed
from small_store import seal

SMALL = [
    "history.max_length=50",
    "train.batch_size=16",
    "fit.epochs=2",
    "fit.patience=0",
    "fit.accelerator=cpu",
    "diagnose_rows=20",
]
QUIET = ["tracking.wandb=disabled", "fit.progress=false"]


def lain(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def fails(*args: object) -> str:
    """The one line of a command that must end with exit code 2 and without a traceback."""
    result = lain(*args)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert result.stdout == ""
    return line


def start(*args: object) -> subprocess.Popen[str]:
    """The command in a process of its own, whose output is no terminal."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from lain.cli import main; main(sys.argv[1:], prog_name='lain')"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


def rows(run: Path) -> list[dict[str, str]]:
    """The logged rows, without what the machine was like."""
    if not (run / "metrics.csv").exists():
        return []
    with (run / "metrics.csv").open() as file:
        found = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if not name.startswith("system/")} for row in found]


def content(run: Path) -> dict[str, tuple[int, bytes]]:
    """Every file of a run, and when it was written."""
    return {
        str(path.relative_to(run)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(run.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lifecycle")


@pytest.fixture(scope="module")
def world(home: Path) -> Path:
    assert lain("world", home / "world", "--users", 60, "--seed", 3).exit_code == 0
    return home / "world"


@pytest.fixture(scope="module")
def config(home: Path, world: Path) -> Path:
    path = home / "train.yaml"
    path.write_text(yaml.safe_dump({"data": str(world), "out": str(home / "runs")}))
    return path


@pytest.fixture(scope="module")
def run(config: Path, home: Path) -> Path:
    result = lain("train", config, *SMALL, *QUIET, "name=whole")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{home / 'runs' / 'whole'}\n"
    return home / "runs" / "whole"


def test_a_finished_run_given_again_shows_what_it_has(config: Path, run: Path) -> None:
    before = content(run)
    process = start("train", config, *SMALL, *QUIET, "name=whole")
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (0, f"{run}\n")
    assert "nothing to do" in stderr
    assert content(run) == before


def imported_by(*args: object) -> set[str]:
    """Libraries that take long to import, as a command in a process of its own has imported them."""
    heavy = {"torch", "lightning", "sklearn", "wandb", "matplotlib", "transformers"}
    code = (
        "import sys\nfrom lain.cli import main\n"
        "try: main(sys.argv[1:], standalone_mode=False)\n"
        f"finally: print(*({heavy} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_a_finished_run_is_shown_without_the_seconds_that_libraries_take(config: Path, run: Path) -> None:
    assert imported_by("train", config, *SMALL, *QUIET, "name=whole") == set()
    assert "torch" in imported_by("train", config, *SMALL, *QUIET, "name=whole", "fit.log_every=3")


def test_a_finished_run_whose_data_changed_is_not_shown(config: Path, run: Path, world: Path) -> None:
    about, labels = world / "dataset.json", world / "train" / "label.npy"
    before = {path: path.read_bytes() for path in (about, labels)}
    np.save(labels, 1 - np.load(labels))
    about.write_text(json.dumps(sealed(world, json.loads(before[about]))))
    try:
        process = start("train", config, *SMALL, *QUIET, "name=whole")
        stdout, stderr = process.communicate()
    finally:
        for path, content in before.items():
            path.write_bytes(content)
    assert (process.returncode, stdout) == (2, "")
    assert "its data were others" in stderr


def test_interrupted_twice_a_run_ends_as_one_that_was_not(config: Path, run: Path, home: Path) -> None:
    """With the default settings, in which no checkpoint is due inside the first minutes."""
    args = ["train", config, *SMALL, "name=parts"]
    parts, last = home / "runs" / "parts", home / "runs" / "parts" / "checkpoints" / "last.ckpt"
    signals = ((signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped by SIGTERM"))
    steps = [0]
    for signum, code, word in signals:
        process = start(*args)
        assert process.stderr is not None
        while "train/loss" not in process.stderr.readline():  # a step of this part is done
            assert process.poll() is None
        process.send_signal(signum)
        stdout, stderr = process.communicate()
        steps.append(load_checkpoint(last)["global_step"])
        line = f"{word}; step {steps[-1]} is saved; run the same command again to go on from there"
        assert (process.returncode, stdout, stderr.splitlines()[-1]) == (code, "", line)
        assert not (parts / ".lock").exists()
    assert steps == sorted(set(steps))
    process = start(*args)
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (0, f"{parts}\n"), stderr
    whole, resumed = (pq.read_table(r / "predictions" / "test.parquet")["score"] for r in (run, parts))
    np.testing.assert_array_equal(whole.to_numpy(), resumed.to_numpy())
    assert rows(parts) == rows(run)
    assert len(list(parts.glob("wandb/offline-run-*"))) == 1


def test_the_first_and_last_step_are_in_the_file_though_log_every_is_larger(run: Path) -> None:
    steps = [int(row["step"]) for row in rows(run) if row["train/loss"]]
    per_epoch = (steps[-1] + 1) // 2
    assert {0, per_epoch - 1, per_epoch, 2 * per_epoch - 1} <= set(steps)


def test_two_processes_do_not_train_in_one_folder(config: Path, home: Path) -> None:
    args = ["train", config, *SMALL, *QUIET, "name=both"]
    folder = home / "runs" / "both"
    process = start(*args)
    wait_for((folder / "record.json").exists, process)
    line = fails(*args)
    assert f"{folder}: another process (process {process.pid} on " in line
    process.kill()
    process.communicate()
    assert lain(*args).exit_code == 0  # the lock of a killed process holds nobody up
    assert not (folder / ".lock").exists()


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5])
def test_a_damaged_record_does_not_open_the_run_to_other_settings(
    config: Path, run: Path, home: Path, keep: float
) -> None:
    folder = home / "runs" / f"damaged-{keep}"
    shutil.copytree(run, folder)
    record = (folder / "record.json").read_bytes()
    (folder / "record.json").write_bytes(record[: int(keep if keep >= 1 or not keep else keep * len(record))])
    for other in ([], ["seed=5"], ["train.learning_rate=0.1"]):
        line = fails("train", config, *SMALL, *QUIET, f"name={folder.name}", *other)
        assert f"{folder / 'record.json'}: not a readable record" in line
    (folder / "record.json").unlink()
    line = fails("train", config, *SMALL, *QUIET, f"name={folder.name}")
    assert f"{folder}: has config.yaml but no record.json" in line


def test_the_metric_decides_whether_the_lowest_epoch_is_kept(config: Path, home: Path) -> None:
    args = [*SMALL, *QUIET, "fit.epochs=4", "fit.monitor=valid/logloss", "train.learning_rate=0.02"]
    args.append("name=low")
    assert lain("train", config, *args).exit_code == 0
    seen = [float(row["valid/logloss"]) for row in rows(home / "runs" / "low") if row["valid/logloss"]]
    kept = json.loads((home / "runs" / "low" / "record.json").read_text())["metrics"]["valid/logloss"]
    assert len(seen) == 4
    assert len(set(seen)) == 4
    assert kept == pytest.approx(min(seen), rel=1e-6)


def test_an_old_setting_says_what_became_of_it(config: Path, run: Path, home: Path) -> None:
    assert "fit.mode: this setting is now gone: the metric that fit.monitor names" in fails(
        "train", config, *SMALL, "fit.mode=max"
    )
    old = home / "runs" / "old"
    shutil.copytree(run, old)
    settings = yaml.safe_load((old / "config.yaml").read_text())
    settings["fit"]["mode"] = "max"
    (old / "config.yaml").write_text(yaml.safe_dump(settings))
    assert f"{old / 'config.yaml'}: fit.mode: this setting is now gone" in fails("evaluate", old)


def test_a_training_that_diverges_says_from_which_step(config: Path, home: Path) -> None:
    line = fails("train", config, *SMALL, *QUIET, "train.learning_rate=1e20", "name=nan")
    assert "training diverged: the loss is not finite from step" in line
    assert not (home / "runs" / "nan").exists()


def test_a_validation_split_of_one_class_is_reported_once(world: Path, config: Path, tmp_path: Path) -> None:
    copy = tmp_path / "world"
    shutil.copytree(world, copy)
    label = np.load(copy / "valid" / "label.npy")
    np.save(copy / "valid" / "label.npy", np.zeros_like(label))
    seal(copy)
    result = lain("train", config, *SMALL, *QUIET, f"data={copy}", f"out={tmp_path}", "name=one")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("valid/auc has no value on these validation rows (one class only?)") == 1


def test_a_run_scores_new_rows_when_its_own_data_are_gone(
    run: Path, world: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(world, data)
    shutil.copytree(run, folder)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**settings, "data": "nowhere"}))
    monkeypatch.chdir(tmp_path)
    result = lain("predict", folder, data)
    assert result.exit_code == 0, result.output
    again = pq.read_table(result.stdout.strip())["score"].to_numpy()
    np.testing.assert_array_equal(
        again, pq.read_table(run / "predictions" / "test.parquet")["score"].to_numpy()
    )
    assert "nowhere" in fails("evaluate", folder)


def test_a_run_is_not_evaluated_on_data_that_changed(run: Path, tmp_path: Path) -> None:
    other, folder = tmp_path / "other", tmp_path / "run"
    assert lain("world", other, "--users", 60, "--seed", 4).exit_code == 0
    shutil.copytree(run, folder)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**settings, "data": str(other)}))
    for command in (["evaluate", folder], ["diagnose", folder]):
        assert f"{other}: has another content than when {folder} was trained on it" in fails(*command)


def test_a_finished_run_without_its_optimizer_is_not_begun_again(config: Path, run: Path, home: Path) -> None:
    folder = home / "runs" / "tidied"
    shutil.copytree(run, folder)
    (folder / "checkpoints" / "last.ckpt").unlink()
    assert lain("train", config, *SMALL, *QUIET, "name=tidied").exit_code == 0
    line = fails("train", config, *SMALL, *QUIET, "name=tidied", "fit.epochs=3")
    assert "its optimizer state is gone, so it cannot go on with another fit.epochs" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="the processes of this test share CPUs")
@pytest.mark.slow
def test_two_processes_train_one_model_and_the_first_one_writes(config: Path, home: Path) -> None:
    settings = [*SMALL, *QUIET, "fit.devices=2", "name=ddp"]
    command = [sys.executable, "-m", "lain.cli", "train", str(config), *settings]  # starts itself again
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{home / 'runs' / 'ddp'}\n"), done.stderr
    record = json.loads((home / "runs" / "ddp" / "record.json").read_text())
    assert record["metrics"]["test/auc"] is not None
    steps = [int(row["step"]) for row in rows(home / "runs" / "ddp") if row["train/loss"]]
    assert steps == sorted(set(steps))
