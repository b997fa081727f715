"""Public data sets and logs of one's own, turned into a store; a format is a file, and a line in FORMATS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.cli import report
from common.config import Component, Registry, read_component
from common.errors import ConfigError
from lain.formats.kuairand import prepare_kuairand
from lain.formats.log import load_schema, prepare_log
from lain.formats.log.builtin import BUILTIN, builtin_schema
from lain.formats.log.checks import leaks
from lain.formats.log.encode import grow_log
from lain.formats.movielens import prepare_movielens
from lain.formats.reczoo import prepare_reczoo
from lain.formats.tables import Progress

__all__ = ["FORMATS", "prepare"]


def _own_log(
    source: Path, out: Path, progress: Progress, *, schema: Path | None = None, before: Path | None = None
) -> list[str]:
    """A log of one's own.

    Args:
        source: A file, a folder or a pattern.
        out: The store to write.
        progress: Says how far reading is.
        schema: YAML file that describes the columns; ``lain prepare log SOURCE --propose`` prints one.
        before: Run or prepared data whose schema, ids and scales a newer log takes over.
    """
    if before is not None:
        if schema is not None:
            raise ConfigError("--from is for the format log, and takes the schema over too")
        return grow_log(before, source, out, progress)
    if schema is None:
        raise ConfigError("log: needs --schema; `lain prepare log SOURCE --propose` prints one")
    return prepare_log(source, out, load_schema(schema), progress)


def _public_log(name: str) -> Callable[..., list[str]]:
    """A log with a schema that comes with this program."""

    def prepare_public(source: Path, out: Path, progress: Progress) -> list[str]:
        return prepare_log(source, out, builtin_schema(name, source), progress, notes={"format": name})

    return prepare_public


FORMATS: Registry[list[str]] = Registry("format", given={"source", "out", "progress"})
"""Formats by name. Each writes the store ``out`` from ``source``, and gives what the user should know."""

FORMATS.add("log", _own_log)
FORMATS.add("reczoo", prepare_reczoo)
FORMATS.add("kuairand", prepare_kuairand)
FORMATS.add("movielens", prepare_movielens)
for _name in BUILTIN:
    FORMATS.add(_name, _public_log(_name))


def prepare(
    format: str | Component[list[str]], source: Path, out: Path, *, progress: bool = False, **settings: Any
) -> Path:
    """Turn a log or a public data set into a store.

    Large tables are read and written in pieces: memory holds one piece, and some bytes for every user and
    item. What looks like a leak is reported on standard error.

    Args:
        format: One of :data:`FORMATS`, by name or with its settings.
        source: The folder with the files; for a log also a file or a pattern.
        out: The store to write; one already there is replaced when all went well.
        progress: Whether to say on standard error how far reading is.
        **settings: Settings of a format that is given by name.

    Returns:
        ``out``.

    Raises:
        ConfigError: There is no such format, or a setting or the schema has mistakes.
        DataError: Files have mistakes, every one named, or the store cannot be written. Nothing is
            written then.
    """
    if isinstance(format, str):
        format = read_component(FORMATS, {"name": format, **settings}, "format")
    if out.resolve() in (source.resolve(), *source.resolve().parents) and out.exists():
        raise ConfigError(f"{out}: holds {source}, which is read; write to another folder")
    write = FORMATS[format.name]
    notices = write(source=source, out=out, progress=Progress(progress), **format.options)
    for notice in (*notices, *leaks(out)):
        report(f"note: {notice}")
    return out
