"""The progress of a command: lines without a terminal, a panel on one, the grid of a study."""

from __future__ import annotations

import io
import re
import sys

import click
import pytest

from common import cli, live
from common.live import Progress, State, clock


class Clock:
    """A clock that a test turns on."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def turned(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(live, "time", found)
    return found


def test_durations() -> None:
    assert [clock(s) for s in (0, 41.6, 725, 11100)] == ["0:00", "0:42", "12:05", "3:05:00"]


def test_without_a_terminal_there_are_lines_at_most_every_30_seconds(
    turned: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("run") as progress:
        progress.stage("train", total=100, unit="steps")
        for step in range(1, 101):
            turned.now += 1
            progress.show({"train/loss": f"{1 / step:.2f}"})
            progress.at(step)
        progress.stage("evaluate")
        turned.now += 5
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "run: train, 100 steps",
        "run: train 1/100 steps, 1:39 left; train/loss 1.00",
        "run: train 31/100 steps, 1:09 left; train/loss 0.03",
        "run: train 61/100 steps, 0:39 left; train/loss 0.02",
        "run: train 91/100 steps, 0:09 left; train/loss 0.01",
        "run: train 100/100 steps; train/loss 0.01; 1:40",
        "run: evaluate",
        "run: evaluate; 0:05",
    ]


def test_time_left_is_at_the_pace_of_this_part(turned: Clock) -> None:
    with Progress("run", shown=False) as progress:
        progress.stage("train", total=100, unit="steps", done=90)
        turned.now += 10
        progress.at(92)
        assert progress.line() == "run: train 92/100 steps, 0:40 left"


def test_what_is_not_to_be_shown_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("run", shown=False) as progress:
        progress.stage("train", total=1)
        progress.advance()
    assert capsys.readouterr() == ("", "")


def test_a_stage_that_is_stopped_has_no_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped() -> None:
        with Progress("run") as progress:
            progress.stage("train")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert capsys.readouterr().err == "run: train\n"


class Terminal(io.StringIO):
    """A terminal as far as rich asks."""

    def isatty(self) -> bool:
        return True


def test_the_panel_of_a_study_has_the_grid_of_its_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Progress("study tiny") as progress:
        assert progress.live
        progress.stage("runs", total=4, unit="runs", done=1)
        rows: dict[str, list[State | None]] = {
            "base": ["done", "running"],
            "lain": ["failed", "waiting"],
            "x": [None, "done"],
        }
        progress.grid(["0", "1"], rows)
        progress.at(2)
        progress.show({"first": "1.5", "second": "2.5"})
        progress.report("one failed")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    for part in (
        "study tiny",
        "2 of 4 runs",
        "│ memory",
        "│ first",
        "│ second",
        "lain",
        "✓",
        "▶",
        "✗",
        "·",
        "one failed",
        "left",
    ):
        assert part in shown, part
    assert shown.rstrip().endswith("study tiny: runs 2/4 runs, 0:00 left; first 1.5; second 2.5; 0:00")
    assert sys.stderr is terminal


def test_a_command_that_takes_long_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "LIFE_SECONDS", 0.0)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/lain", "train", "config.yaml"])
    said: list[str] = []
    monkeypatch.setattr(cli, "report", said.append)

    @click.group(cls=cli.Group)
    def main() -> None: ...

    @main.command()
    @click.argument("config")
    def train(config: str) -> None:
        while not said:
            pass
        click.echo(config)

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert said == ["lain train: starting"]
    assert capsys.readouterr().out == "config.yaml\n"
