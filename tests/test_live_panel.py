"""Real tiny runs on a terminal: the panel, Ctrl-C, and going on."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

STUDY = """
name: tiny
description: A study of two arms.
data: {format: world, users: 40, rows: 600, valid_rows: 100, test_per_bucket: 30}
base:
  embedding: {dim: 4}
  head: {hidden: [4]}
  history: {max_length: 20}
  fit: {epochs: 1, accelerator: cpu}
  diagnose_rows: 0
backbones: [twin]
arms: {base: {length.preset: base}, lain: {length.preset: lain}}
seeds: [0]
"""

EPOCHS = 2000
"""More than a test waits for."""


class OnTerminal:
    """A command whose standard error is a terminal of 100 x 40, and its keyboard."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._keyboard, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from lain.cli import main; main()", *arguments],
            cwd=folder, env=environment, stdin=terminal, stderr=terminal, stdout=subprocess.PIPE, text=True,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(terminal)
        self.text = ""
        self._reader = threading.Thread(target=self._read)
        self._changed = threading.Condition()
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                found = os.read(self._keyboard, 65536)
            except OSError:  # how Linux says that the other side has closed
                found = b""
            with self._changed:
                self.text += found.decode(errors="replace")
                self._changed.notify_all()
            if not found:
                return

    def wait_for(self, there: Callable[[str], bool]) -> None:
        """Until the screen has shown something."""
        with self._changed:
            assert self._changed.wait_for(lambda: there(self.text), timeout=600), self.text[-2000:]

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.write(self._keyboard, b"\x03")

    def end(self) -> tuple[int, str]:
        """Exit code and standard output."""
        assert self.process.stdout is not None
        with self.process.stdout:
            out = self.process.stdout.read()
        code = self.process.wait(600)
        self._reader.join(60)
        os.close(self._keyboard)
        return code, out


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("panel")
    command = [sys.executable, "-c", "from lain.cli import main; main()", "world", "data", "--users", "60"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(command, cwd=home, env=environment, check=True, capture_output=True)
    content = {
        "data": "data", "out": "runs", "name": "one", "embedding": {"dim": 4}, "head": {"hidden": [4]},
        "history": {"max_length": 20}, "train": {"batch_size": 32}, "diagnose_rows": 5,
        "fit": {"epochs": EPOCHS, "accelerator": "cpu", "log_every": 1, "patience": 0},
    }  # fmt: skip
    (home / "train.yaml").write_text(yaml.safe_dump(content))
    (home / "tiny.yaml").write_text(STUDY)
    return home


def test_ctrl_c_on_the_panel_of_a_run_ends_it_cleanly_and_the_same_command_goes_on(home: Path) -> None:
    first = OnTerminal(home, "train", "train.yaml")
    first.wait_for(lambda text: "train/loss" in text)
    first.interrupt()
    code, out = first.end()
    assert (code, out) == (130, "")
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", first.text).strip().splitlines()[-1]
    pattern = r"interrupted; step (\d+) is saved; run the same command again to go on from there"
    found = re.fullmatch(pattern, last.strip())
    assert found, first.text[-2000:]
    assert first.text.rstrip().endswith("there")  # the cursor is shown again before the last line
    assert first.text.count("\x1b[?25l") == first.text.count("\x1b[?25h") > 0

    total = re.search(r"of ([\d,]+) steps", first.text)
    assert total
    per_epoch = int(total[1].replace(",", "")) // EPOCHS
    second = OnTerminal(home, "train", "train.yaml", f"fit.epochs={int(found[1]) // per_epoch + 1}")
    code, out = second.end()
    assert (code, out) == (0, "runs/one\n"), second.text[-2000:]
    for part in (
        "╭─ one",
        "train",
        " steps",
        "samples/s",
        "memory",
        "GiB",
        "left",
        "valid/auc",
        "best valid/auc",
    ):
        assert part in second.text, part
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", second.text)
    assert re.search(r"one: train \d+/\d+ steps; .*train/loss", plain, re.DOTALL)
    assert "[dim]" not in plain
    assert "one: evaluate" in plain


def test_the_panel_of_a_study_shows_the_grid_and_ctrl_c_says_how_to_go_on(home: Path) -> None:
    first = OnTerminal(home, "study", "tiny.yaml", "--out", "study", "--workers", "1")
    first.wait_for(lambda text: "▶" in text)
    first.interrupt()
    code, out = first.end()
    assert (code, out) == (130, ""), first.text[-2000:]
    assert "run the same command again to go on" in first.text.replace("\r\n", " ")

    second = OnTerminal(home, "study", "tiny.yaml", "--out", "study", "--workers", "1")
    code, out = second.end()
    assert code == 0, second.text[-2000:]
    assert "| twin" in out
    for part in ("study study", "twin base", "twin lain", "✓", "▶", "done", "waiting", "of 2 runs"):
        assert part in second.text, part
