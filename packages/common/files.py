"""Files that are whole or absent, folders that one process at a time works in, and what files hold."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from common.errors import ConfigError, DataError


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


def _place(path: Path) -> Path:
    """Where a file is to go, behind links: a link stays one.

    Raises:
        DataError: Something is there that is no file: a folder, a device, a pipe.
    """
    path = Path(os.path.realpath(path))
    if path.is_symlink():
        raise DataError(f"{path}: is a link in a circle; give another name")
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a device or a pipe"
        raise DataError(f"{path}: is {what}, which a file cannot replace; give the name of a file")
    return path


def check_output(
    path: Path,
    *,
    inputs: Iterable[Path] = (),
    made: Callable[[Path], bool] = lambda path: False,
    force: bool = False,
) -> None:
    """Refuse an output that would replace what it must not; for before the work begins.

    Args:
        path: The file that is going to be written.
        inputs: Files that are read, and folders whose every file is: they are never replaced.
        made: Whether a file is one that this program wrote before, so that it may be replaced.
        force: Whether any other file may be replaced too.

    Raises:
        ConfigError: It is an input, or a file that something else made.
        DataError: It is no file at all.
    """
    place = _place(path)
    for source in (Path(os.path.realpath(source)) for source in inputs):
        if place == source or (source.is_dir() and place.exists() and source in place.parents):
            raise ConfigError(f"{path}: is read by this very command; write to another file")
    if force or not place.exists() or not place.stat().st_size or made(place):
        return
    raise ConfigError(
        f"{path}: is there already and was not made by this command; give another name, or replace it with "
        "--force"
    )


def beside(path: Path, ending: str) -> Path:
    """The file of another ending beside a ``.jsonl`` file.

    Args:
        path: The ``.jsonl`` file.
        ending: The ending, its point included.
    """
    return path.with_name(path.name.removesuffix(".jsonl") + ending)


def sync(path: Path) -> None:
    """Have the system write a file or a folder's list of names to the disk before going on.

    Args:
        path: The file or folder.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reserve(path: Path) -> None:
    """Have the disk set a file's whole size aside, so that writing through a map of it cannot fail.

    A map of a file with holes ends in SIGBUS where the disk is full. Systems without the call are left as
    they are.

    Args:
        path: The file, which has its size already.

    Raises:
        OSError: There is no room.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, os.fstat(descriptor).st_size)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write a file to; it takes its place when the block succeeds.

    Args:
        path: Where the file goes; parents are made, a file already there is replaced at once, one that a link
            leads to is replaced where it lies.
        durable: Whether the file is on the disk before it takes its place, and its name soon after, so that
            a power cut leaves the old file or the new one. A killed process never needs this.

    Yields:
        A path in the same folder. It is removed when the block fails.

    Raises:
        DataError: Something is at the path that is no file: a folder, a device, a pipe.
    """
    path = _place(path)
    temporary = _temporary(path)
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync(path.parent)
    except BaseException:
        _remove(temporary)
        raise


def atomic_write(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Write a file whole or not at all.

    Args:
        path: Where the file goes; parents are made, a file already there is replaced at once.
        content: Text (written as UTF-8) or bytes.
        durable: As for :func:`atomic_path`.
    """
    data = content.encode() if isinstance(content, str) else content
    with atomic_path(path, durable=durable) as temporary:
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


LOCK = ".lock"
"""File in a folder that one process at a time works in."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only process that works in a folder; the lock ends with the process, however it ends.

    A record lock (POSIX), so that loader processes forked inside the block do not hold it too. It does not
    keep two threads of one process apart.

    Args:
        folder: The folder; it is made where it is not there.

    Raises:
        DataError: Another process is at work in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(file, 100).decode(errors="replace").strip()
            os.close(file)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            who = f" ({holder})" if holder else ""
            raise DataError(
                f"{folder}: another process{who} is at work here; wait for it or give another name"
            ) from None
        # The holder before may have removed the file between open and lock.
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            break
        os.close(file)
    try:
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def fingerprint(paths: Iterable[Path]) -> str:
    """What tells the content of files apart: 16 hexadecimal digits of a SHA-256, wherever the files lie.

    Args:
        paths: Files, or folders of which every file counts by its name inside the folder; hidden ones do not.

    Raises:
        DataError: There is no such file.
    """
    digest = hashlib.sha256()
    for path in paths:
        inside = path.is_dir()
        files = sorted(f for f in path.rglob("*") if f.is_file()) if inside else [path]
        for file in files:
            name = file.relative_to(path).as_posix() if inside else file.name
            if inside and any(part.startswith(".") for part in name.split("/")):
                continue
            try:
                with file.open("rb") as content:
                    found = hashlib.file_digest(content, "sha256").hexdigest()
            except FileNotFoundError:
                raise DataError(f"{file}: there is no such file") from None
            digest.update(f"{name if inside else ''}\0{found}\0".encode())
    return digest.hexdigest()[:16]


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside a path, on the same disk; it is removed in the end, whatever happens.

    Args:
        path: What is being made; parents are made.

    Yields:
        The folder. Scratch folders that killed processes left are removed, too.
    """
    path = path.resolve()
    temporary = _temporary(path.with_name(f"{path.name}.scratch"))
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
