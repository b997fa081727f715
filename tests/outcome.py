"""Cases run through the real commands, and what these must end in."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

Case = Callable[[str], Path]
"""Copies a case and goes there: the working directory is the copy."""

Command = Callable[..., Result]
"""Runs a command line, every word an argument."""


def copy(source: Path, target: Path) -> Path:
    """A copy that can be written to, whatever the original is."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for folder in (target, *(path for path in target.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    return target


def works(result: Result) -> str:
    """The last line of standard output of a command that must succeed."""
    assert result.exit_code == 0, result.output
    lines: list[str] = result.stdout.splitlines()
    return lines[-1]


def fails(result: Result) -> str:
    """The one line of a command that must end with exit code 2, without a traceback or a result."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert result.stdout == ""
    return lines[0]
