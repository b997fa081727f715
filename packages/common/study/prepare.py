"""What a study needs before its runs: source files that are there, and products that are made once."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.files import atomic_write


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Args:
        title: Its name for readers.
        files: What must lie in its folder.
        where: Where to get it; "" where only the user knows.
    """

    title: str
    files: tuple[str, ...]
    where: str = ""


def check_source(source: Source, folder: Path) -> Path:
    """The folder of a data set, with all its source files.

    Raises:
        DataError: A file is missing; says which files to put where.
    """
    missing = [name for name in source.files if not (folder / name).is_file()]
    if missing:
        where = f" ({source.where})" if source.where else ""
        raise DataError(
            f"{folder}: no {', '.join(missing)}; get {source.title}{where}, put {', '.join(source.files)} "
            "there, or name their folder with --data (DATA= of make)"
        )
    return folder


def files_fingerprint(paths: Iterable[Path]) -> str:
    """Hash of the contents of files, in their order; 16 hexadecimal digits."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


def fingerprint(options: Mapping[str, Any]) -> str:
    """Hash of settings, whatever the order of their keys; 16 hexadecimal digits."""
    return hashlib.sha256(_written(options).encode()).hexdigest()[:16]


def _written(options: Mapping[str, Any]) -> str:
    return json.dumps(options, sort_keys=True, default=str)


def _marker(target: Path) -> Path:
    return target.with_name(f".{target.name}.made.json")


def _write_marker(target: Path, options: Mapping[str, Any], *, done: bool) -> None:
    atomic_write(_marker(target), _written({"options": options, "done": done}))


def is_made(target: Path, options: Mapping[str, Any]) -> bool:
    """Whether a file or folder is there, whole, and was made with these options."""
    return target.exists() and _read_marker(target) == (_written(options), True)


def _read_marker(target: Path) -> tuple[str, bool] | None:
    """The options that a product was begun with, as they are written, and whether it was finished."""
    try:
        content = json.loads(_marker(target).read_text())
        return _written(content["options"]), bool(content["done"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def make_once(
    target: Path, options: Mapping[str, Any], make: Callable[[], object], *, resume: bool = False
) -> str:
    """Make a file or folder, unless it was made with the same options; what stands in its place is removed.

    Args:
        target: What is made.
        options: All that decides its content.
        make: Makes it.
        resume: Whether ``make`` goes on with what it left half-made with the same options.

    Returns:
        Fingerprint of the options.
    """
    if not is_made(target, options):
        if not (resume and _read_marker(target) == (_written(options), False)):
            if target.is_dir():
                shutil.rmtree(target)
            target.unlink(missing_ok=True)
            _write_marker(target, options, done=False)
        make()
        _write_marker(target, options, done=True)
    return fingerprint(options)
