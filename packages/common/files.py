"""Files that are either whole or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from common.errors import DataError


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """A free name beside a path; what killed processes of this machine left there is removed."""
    host = socket.gethostname().replace("-", "_")
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.tmp-{host}-"
    for left in [entry for entry in path.parent.iterdir() if entry.name.startswith(prefix)]:
        process = left.name.removeprefix(prefix).split("-")[0]
        if process.isdigit() and not _alive(int(process)):
            _remove(left)
    return path.parent / f"{prefix}{os.getpid()}-{uuid4().hex[:8]}"


def beside(path: Path, ending: str) -> Path:
    """The file of another ending beside a ``.jsonl`` file.

    Args:
        path: The ``.jsonl`` file.
        ending: The ending, its point included.
    """
    return path.with_name(path.name.removesuffix(".jsonl") + ending)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file to; it takes its place when the block succeeds.

    Args:
        path: Where the file goes; parents are made, a file already there is replaced at once.

    Yields:
        A path in the same folder. It is removed when the block fails.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        _remove(temporary)
        raise


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all.

    Args:
        path: Where the file goes; parents are made, a file already there is replaced at once.
        content: Text (written as UTF-8) or bytes.
    """
    data = content.encode() if isinstance(content, str) else content
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder to fill; it takes its place when the block succeeds.

    Args:
        path: Where the folder goes; parents are made.
        replace: Whether a folder that is already there and not empty may be replaced.

    Yields:
        A new empty folder beside the path. It is removed, with its content, when the block fails.

    Raises:
        DataError: There is a file at the path, or a folder that is not empty and must not be replaced.
    """
    path = path.resolve()
    if path.exists() and not path.is_dir():
        raise DataError(f"{path}: a file is already there; give the name of a new folder")
    if not replace and path.is_dir() and any(path.iterdir()):
        raise DataError(f"{path}: the folder is not empty; remove it or give another name")
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        if path.is_dir() and any(path.iterdir()):
            old = _temporary(path)
            os.rename(path, old)
            os.rename(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def fill_once(path: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder that processes share, unless it is there; where two do it at once, the first one's stays.

    A folder that is there is never taken away, so that others may read it at any time.

    Args:
        path: The folder; its name must say what is in it.
        fill: Writes the content into the empty folder that it is given.
    """
    if path.is_dir() and any(path.iterdir()):
        return
    path = path.resolve()
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        fill(temporary)
        try:
            os.rename(temporary, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside a path, on the same disk; it is removed in the end, whatever happens.

    Args:
        path: What is being made; parents are made.

    Yields:
        The folder. What killed processes left of theirs is removed, too.
    """
    path = path.resolve()
    temporary = _temporary(path.with_name(f"{path.name}.scratch"))
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
