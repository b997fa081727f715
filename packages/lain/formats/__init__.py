"""Public data sets and logs of one's own, turned into a store."""

from __future__ import annotations

from pathlib import Path

from common.cli import report
from common.errors import ConfigError, suggest
from lain.formats.kuairand import prepare_kuairand
from lain.formats.log import load_schema, prepare_log
from lain.formats.log.builtin import BUILTIN, builtin_schema
from lain.formats.log.checks import leaks
from lain.formats.log.encode import grow_log
from lain.formats.movielens import prepare_movielens
from lain.formats.reczoo import prepare_reczoo
from lain.formats.tables import Progress

READERS = ("log", "reczoo", "kuairand", "movielens")
FORMATS = (*READERS, *BUILTIN)
FRACTIONS = (0.8, 0.1, 0.1)
"""Shares of the ratings of MovieLens, in time order, that train, validate and test."""

__all__ = ["FORMATS", "FRACTIONS", "prepare"]


def prepare(
    format: str,
    source: Path,
    out: Path,
    *,
    schema: Path | None = None,
    before: Path | None = None,
    valid_days: int = 1,
    fractions: tuple[float, float, float] = FRACTIONS,
    progress: bool = False,
) -> Path:
    """Turn a log or a public data set into a store.

    Large tables are read and written in pieces: memory holds one piece, and some bytes for every user and
    item. What looks like a leak is reported on standard error.

    Args:
        format: ``log``, ``reczoo``, ``kuairand``, ``movielens``, or a log with a schema that comes with this
            program (:mod:`lain.formats.log.builtin`).
        source: The folder with the files; for a log also a file or a pattern.
        out: The store to write; one already there is replaced when all went well.
        schema: YAML file that describes the columns (log, reczoo); None for reczoo: ``schema.yaml`` in the
            folder.
        before: Run or prepared data whose schema, ids and scales a newer log takes over (log).
        valid_days: Last days of the training part that become the valid split (kuairand).
        fractions: Shares of rows, in time order, that train, validate and test (movielens).
        progress: Whether to say on standard error how far reading is.

    Returns:
        ``out``.

    Raises:
        ConfigError: There is no such format, or a setting or the schema has mistakes.
        DataError: Files have mistakes, every one named, or the store cannot be written. Nothing is
            written then.
    """
    if format not in FORMATS:
        raise ConfigError(
            f"format '{format}' is not known; there are {', '.join(FORMATS)}{suggest(format, FORMATS)}"
        )
    if out.resolve() in (source.resolve(), *source.resolve().parents) and out.exists():
        raise ConfigError(f"{out}: holds {source}, which is read; write to another folder")
    if schema is not None and format not in ("log", "reczoo"):
        raise ConfigError(f"a schema is for the formats log and reczoo; {format} needs none")
    shown = Progress(progress)
    notices: list[str] = []
    if before is not None:
        if format != "log" or schema is not None:
            raise ConfigError("--from is for the format log, and takes the schema over too")
        notices = grow_log(before, source, out, shown)
    elif format == "log":
        if schema is None:
            raise ConfigError("log: needs --schema; `lain prepare log SOURCE --propose` prints one")
        notices = prepare_log(source, out, load_schema(schema), shown)
    elif format == "reczoo":
        prepare_reczoo(source, out, schema, shown)
    elif format == "kuairand":
        prepare_kuairand(source, out, valid_days, shown)
    elif format == "movielens":
        prepare_movielens(source, out, fractions, shown)
    else:
        notices = prepare_log(source, out, builtin_schema(format, source), shown, notes={"format": format})
    for notice in (*notices, *leaks(out)):
        report(f"note: {notice}")
    return out
