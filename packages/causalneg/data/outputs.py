"""Which files a command may replace with a training set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from causalneg.data.readers import find_reader
from common.files import beside, check_output


def check_set_output(
    out: Path,
    *,
    data: Path | None = None,
    inputs: Iterable[Path] = (),
    also: Sequence[str] = (),
    own: bool = True,
    force: bool = False,
) -> None:
    """Refuse an output that would replace what is read, or what no command here has written.

    Args:
        out: The training set that is going to be written.
        data: The data set that is read.
        inputs: Other files and folders that are read.
        also: Endings of further sets that are written beside it.
        own: Whether an earlier training set in this project's own form may be replaced.
        force: Whether anything but an input may be.

    Raises:
        ConfigError: One of them must not be replaced.
        DataError: There is no such data set, or something that is no file is at the path.
    """
    read = list(inputs)
    if data is not None:
        reader = find_reader(data)
        read += [reader.file(part) for part in ("documents", "queries", *reader.splits())]
    for path in (out, *(beside(out, ending) for ending in also)):
        check_output(path, inputs=read, made=_is_set if own else lambda path: False, force=force)


def _is_set(path: Path) -> bool:
    """Whether the first line of a file is an example in this project's own form."""
    try:
        with path.open("rb") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and isinstance(first.get("query"), dict) and "positives" in first
