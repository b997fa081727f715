"""Public data sets, turned into a store."""

from __future__ import annotations

from pathlib import Path

from common.errors import ConfigError, suggest
from lain.formats.kuairand import prepare_kuairand
from lain.formats.movielens import prepare_movielens
from lain.formats.reczoo import prepare_reczoo
from lain.formats.tables import Progress

FORMATS = ("reczoo", "kuairand", "movielens")
FRACTIONS = (0.8, 0.1, 0.1)
"""Shares of the ratings of MovieLens, in time order, that train, validate and test."""

__all__ = ["FORMATS", "FRACTIONS", "prepare"]


def prepare(
    format: str,
    source: Path,
    out: Path,
    *,
    schema: Path | None = None,
    valid_days: int = 1,
    fractions: tuple[float, float, float] = FRACTIONS,
    progress: bool = False,
) -> Path:
    """Turn a public data set into a store.

    Large tables are read and written in pieces: preparing a reczoo folder needs little more memory than
    one piece and one number per user, MovieLens and KuaiRand a few numbers per row.

    Args:
        format: ``reczoo``, ``kuairand`` or ``movielens``; :mod:`lain.formats.reczoo` and its siblings
            say which files and columns each needs and what becomes of them.
        source: The folder with the files.
        out: The store to write; one already there is replaced when all went well.
        schema: YAML file that describes the columns (reczoo); None: ``schema.yaml`` in the folder.
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
    if schema is not None and format != "reczoo":
        raise ConfigError(f"a schema is for the format reczoo; {format} needs none")
    tell = Progress(progress)
    if format == "reczoo":
        prepare_reczoo(source, out, schema, tell)
    elif format == "kuairand":
        prepare_kuairand(source, out, valid_days, tell)
    else:
        prepare_movielens(source, out, fractions, tell)
    return out
