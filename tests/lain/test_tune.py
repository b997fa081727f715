"""`lain tune`: settings searched on validation rows, pruned, and gone on with."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from common.errors import ConfigError
from lain.cli import main
from lain.study.tune import Choice, read_space
from tiny_log import FAST, lain

pytest.importorskip("optuna", reason="needs the extra tune")

SPACE = {"train.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}, "embedding.dim": [4, 8]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    lain("world", folder / "world", "--users", 20, "--seed", 3)
    settings = {"data": str(folder / "world"), "out": str(folder / "runs")}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE))
    return folder


def command(folder: Path, out: str, trials: int, *more: str) -> list[str]:
    fast = [*FAST, "fit.max_steps=3", *more]
    options = ["--out", str(folder / out), "--space", str(folder / "space.yaml"), "--trials", str(trials)]
    return ["tune", str(folder / "config.yaml"), *fast, *options]


def states(out: Path) -> list[str]:
    with sqlite3.connect(out / "trials.sqlite") as connection:
        return [row[0] for row in connection.execute("SELECT state FROM trials ORDER BY number")]


@pytest.mark.slow
def test_trials_are_counted_over_calls(folder: Path) -> None:
    first = lain(*command(folder, "one", 2))
    assert first.stdout.splitlines()[-1] == str(folder / "one" / "best.yaml")
    assert first.stderr.count("trial ") == 2
    more = lain(*command(folder, "one", 3))
    assert more.stderr.count("trial ") == 1
    assert "trial 2:" in more.stderr
    assert "trial " not in lain(*command(folder, "one", 3)).stderr
    best = yaml.safe_load((folder / "one" / "best.yaml").read_text())
    assert 1e-3 <= best["train"]["learning_rate"] <= 1e-1
    assert best["embedding"]["dim"] in (4, 8)
    lines = (folder / "one" / "trials.md").read_text().splitlines()
    values = [float(line.split("|")[2]) for line in lines[4:] if line.startswith("|")]
    assert values == sorted(values, reverse=True)
    assert len(values) == 3
    lain("train", folder / "one" / "best.yaml", "name=best")


@pytest.mark.slow
def test_a_killed_search_goes_on(folder: Path) -> None:
    """Killed in a trial, whose values are then tried again, from its checkpoint where there is one."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    long = command(folder, "two", 1, "fit.max_steps=null", "fit.epochs=500", "fit.patience=0")
    process = subprocess.Popen([sys.executable, "-m", "lain.cli", *long], env=environment)
    try:
        deadline = time.monotonic() + 600
        while not list((folder / "two").glob("trial-*/checkpoints/last.ckpt")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert states(folder / "two") == ["RUNNING"]
    (trial,) = (folder / "two").glob("trial-*")
    import optuna

    storage = f"sqlite:///{folder / 'two' / 'trials.sqlite'}"
    (name,) = optuna.get_all_study_names(storage)
    begun = optuna.load_study(study_name=name, storage=storage).trials[0].params

    process = subprocess.Popen([sys.executable, "-m", "lain.cli", *long], env=environment)
    try:
        deadline = time.monotonic() + 600
        while len(states(folder / "two")) < 2 or not list(trial.glob("*.csv")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(1)
        found = optuna.load_study(study_name=name, storage=storage).trials
        assert found[1].params == begun
        assert [t.name for t in (folder / "two").glob("trial-*")] == [trial.name]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"low": 2, "high": 1}, "needs finite low <= high, got 2 and 1"),
        ({"low": 0, "high": 1, "log": True}, "needs finite 0 < low"),
        ({"low": 1}, "must be a list of values"),
        ({"low": "a", "high": 2}, "needs finite"),
        ([], "must be a list of values"),
        (3, "must be a list of values"),
    ],
)
def test_a_space_that_is_none(given: object, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        Choice.of("train.batch_size", given)


def test_what_is_searched_by_default() -> None:
    assert read_space(None)[0].key == "train.learning_rate"


def fails(words: Sequence[str]) -> str:
    result = CliRunner().invoke(main, list(words))
    assert result.exit_code == 2, result.output
    return result.output


def test_mistakes_show_before_the_first_trial(folder: Path) -> None:
    space = folder / "wrong.yaml"
    words = [str(space) if word.endswith("space.yaml") else word for word in command(folder, "three", 1)]
    assert "wrong.yaml: cannot be read" in fails(words)
    for content, line in (
        ("train.learning_rat: [1]", "did you mean"),
        ("train.batch_size: [64, 0]", "must be at least 1, got 0"),
        ("[1]", "must hold dotted keys"),
    ):
        space.write_text(content)
        assert line in fails(words)
    assert "validation rows" in fails(command(folder, "three", 1, "fit.monitor=train/loss"))
    assert not (folder / "three").exists()
