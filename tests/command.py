"""The real ``lain`` command in a process of its own, with one more file of somebody's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SETTINGS = """
data: data
out: runs
embedding: {dim: 4}
history: {max_length: 30}
train: {batch_size: 64}
fit: {epochs: 1, max_steps: 2, progress: false, accelerator: cpu}
tracking: {wandb: disabled}
diagnose_rows: 5
"""


def run_with(folder: Path, module: str, source: str, arguments: Sequence[str], *, code: int = 0) -> str:
    """Write the file, import it as a plug-in would be, and run ``lain`` on a tiny world; its messages.

    Args:
        folder: Where everything lies; the world is made on the first call.
        module: Name of the file.
        source: Its text.
        arguments: Of the command.
        code: The exit code that is expected.
    """
    (folder / f"{module}.py").write_text(source)
    (folder / "settings.yaml").write_text(SETTINGS)
    path = os.pathsep.join([str(folder), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def lain(*words: str) -> subprocess.CompletedProcess[str]:
        program = f"import {module}; from lain.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", program, *words],
            cwd=folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    if not (folder / "data").exists():
        made = lain("world", "data", "--users", "30", "--seed", "1")
        assert made.returncode == 0, made.stderr
    done = lain(*arguments)
    assert done.returncode == code, done.stderr
    return done.stderr
