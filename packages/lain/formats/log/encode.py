"""Rows to be scored, encoded as a prepared set encoded its own: by raw values, with its vocabularies.

What a new log does not know (the features of an item, say) is taken from what the prepared set knew; items,
users and categories that are new get the id for the unknown.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int, Shaped

from common.errors import DataError, describe_os_error
from common.files import atomic_folder, scratch_folder
from lain.data.schema import file_stem
from lain.data.store import Store
from lain.formats.log.entries import Frozen
from lain.formats.log.features import Categorical
from lain.formats.log.plan import Plan, open_plan
from lain.formats.log.scan import SEQUENCE
from lain.formats.log.schema import ITEM, USER, LogSchema, SplitOptions, load_schema
from lain.formats.log.vocabulary import Vocabulary
from lain.formats.log.write import ENCODING, PART_ROWS, ROWS, Preparation
from lain.formats.tables import Progress

FOLDER = "encoding"
"""Folder of a run that keeps what :func:`keep_encoding` wrote."""


def keep_encoding(store: Store, run: Path) -> None:
    """Copy what encodes new rows from a prepared log into the folder of a run; nothing for other data sets.

    Kept are the schema, the vocabularies, and the encoded features of items and users by their raw ids.
    """
    if ENCODING not in store.vocabularies:
        return
    with atomic_folder(run / FOLDER, replace=True) as folder:
        for name, file in store.vocabularies.items():
            shutil.copyfile(file, folder / file_stem(name))
        for kind, tables, first in (("item", store.items, 1), ("user", store.users, 0)):
            _entries(store.vocabularies[f"{kind}_id"], tables, first).write_parquet(
                folder / f"{kind}.parquet"
            )


def _entries(ids: Path, tables: Mapping[str, Shaped[np.ndarray, "entries ..."]], first: int) -> pl.DataFrame:
    """Raw ids and encoded features."""
    columns = {name: _column(np.asarray(table[first:])) for name, table in tables.items()}
    return pl.DataFrame({"id": pl.read_parquet(ids)["value"], **columns})


def _column(values: Shaped[np.ndarray, "entries ..."]) -> pl.Series:
    if values.ndim == 1:
        return pl.Series(values)
    inner = pl.Float32 if values.dtype.kind == "f" else pl.Int32
    return pl.Series(values, dtype=pl.Array(inner, values.shape[1]))


@dataclass(frozen=True, eq=False)
class Encoding:
    """What a prepared log learned.

    Args:
        schema: What its columns mean.
        states: What its features learned besides vocabularies.
        columns: The same of the columns of its behaviours.
        vocabularies: Files of its vocabularies by name.
        frozen: Its ids, and what it knew of its items and users.
    """

    schema: LogSchema
    states: dict[str, dict[str, Any]]
    columns: dict[str, dict[str, Any]]
    vocabularies: dict[str, Path]
    frozen: Frozen

    @classmethod
    def open(cls, path: Path) -> Encoding:
        """Read it from a run or from a prepared data set.

        Raises:
            DataError: There is none; a data set that is not made from a log has none.
        """
        if (path / "dataset.json").is_file():
            store = Store.open(path)
            files, entries = store.vocabularies, {}
            if ENCODING in files:
                entries = {
                    "item": _entries(files["item_id"], store.items, 1),
                    "user": _entries(files["user_id"], store.users, 0),
                }
        elif (path / FOLDER).is_dir():
            folder = path / FOLDER
            files = _Files(folder)
            entries = {kind: pl.read_parquet(folder / f"{kind}.parquet") for kind in ("item", "user")}
        else:
            files, entries = {}, {}
        if ENCODING not in files:
            raise DataError(
                f"{path}: keeps no encoding of raw values (its data were not made by `lain prepare log` or a "
                "schema of it); prepare the rows as its data were, and score the prepared set"
            )
        try:
            about = json.loads(files[ENCODING].read_text(encoding="utf-8"))
            schema = load_schema(None, about["schema"])
            states, columns = about["features"], about["columns"]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{files[ENCODING]}: cannot be read ({error}); prepare the data again") from error
        learned = {name: Vocabulary.load(files[name]) if name in files else None for name in (ITEM, USER)}
        return cls(schema, states, columns, dict(files), Frozen(learned[ITEM], learned[USER], entries))


class _Files(dict[str, Path]):
    """Vocabularies of a folder, looked up by name."""

    def __init__(self, folder: Path) -> None:
        super().__init__({ENCODING: folder / file_stem(ENCODING)})
        about = json.loads(self[ENCODING].read_text(encoding="utf-8"))
        names = [
            ITEM,
            USER,
            "item_id",
            "user_id",
            *about["features"],
            *(f"behaviour {c}" for c in about["columns"]),
        ]
        self.update({n: folder / file_stem(n) for n in names if (folder / file_stem(n)).is_file()})


@dataclass(frozen=True, eq=False)
class EncodedRows:
    """Rows to be scored.

    Args:
        path: A prepared data set with the single split ``rows``.
        number: Place of each of its rows in the log, from 0; of a row that shows several items, of the item.
        user: Raw id of each of its rows' user.
        item: Raw id of each of its rows' item.
        notices: What the user should know.
    """

    path: Path
    number: Int[np.ndarray, " rows"]
    user: pl.Series
    item: pl.Series
    notices: list[str]


def encode_rows(
    encoding: Path,
    source: Path,
    out: Path,
    *,
    history: Path | None = None,
    progress: Progress | None = None,
    part_rows: int = PART_ROWS,
) -> EncodedRows:
    """Encode the rows of a log as a prepared set or the data of a run are encoded.

    Rows without a label are to be scored; rows with one, where there are both, are history. A log without
    labels is scored whole.

    Args:
        encoding: The run or the prepared data set.
        source: The log: a file, a folder or a pattern, with the columns of the first log.
        out: The prepared data set to write.
        history: A log of earlier events that histories are made of.
        progress: Says how far reading is.
        part_rows: Rows and behaviours that are in memory at once.

    Raises:
        DataError: ``encoding`` keeps none, or the files have mistakes.
    """
    known = Encoding.open(encoding)
    schema = replace(known.schema, negatives=None, splits=SplitOptions(by="random"))
    plan = open_plan(schema, source, progress or Progress(False), unlabelled=True, past=history)
    _restore(plan, known)
    try:
        with scratch_folder(out) as scratch:
            work = Preparation(plan, scratch, part_rows, known.frozen)
            work.write(out, f"rows of {source.name}", {"encoding": str(encoding)})
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({describe_os_error(error)})") from error
    rows = Store.open(out).split(ROWS)
    users, items = work.fitted.users.values, work.fitted.items.values
    return EncodedRows(
        out,
        work.number,
        users[np.asarray(rows.user, np.int64)],
        items[np.asarray(rows.item, np.int64) - 1],
        plan.notices,
    )


def grow_log(
    encoding: Path, source: Path, out: Path, progress: Progress, part_rows: int = PART_ROWS
) -> list[str]:
    """Prepare a newer log with what an older one learned: its schema, scales and vocabularies.

    Values that are new get ids behind the old ones, which stay, so that a model of the older log can go on.

    Args:
        encoding: The run or the prepared data set of the older log.
        source: The newer log.
        out: The prepared data set to write.
        progress: Told how far reading is.
        part_rows: Rows and behaviours that are in memory at once.

    Returns:
        What the user should know about it, one line each.

    Raises:
        DataError: ``encoding`` keeps none, or the files have mistakes.
    """
    known = Encoding.open(encoding)
    plan = open_plan(known.schema, source, progress)
    DataError.raise_if(
        f"{source}: has no feature '{name}', which {encoding} reads"
        for name in known.states
        if name not in plan.encoders
    )
    if plan.sequences:
        plan.columns[SEQUENCE] = Categorical(SEQUENCE, "behaviour", SEQUENCE, 1)
    for prefix, encoders, states in (
        ("", plan.encoders, known.states),
        ("behaviour ", plan.columns, known.columns),
    ):
        for name, encoder in encoders.items():
            if name in states:
                encoder.grow(states[name], known.vocabularies.get(f"{prefix}{name}", Path()))
    name = known.schema.name or source.resolve().name.split(".")[0]
    try:
        with scratch_folder(out) as scratch:
            work = Preparation(plan, scratch, part_rows, before=known.frozen)
            work.write(out, name, {"grown_from": str(encoding)})
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({describe_os_error(error)})") from error
    return plan.notices


def _restore(plan: Plan, known: Encoding) -> None:
    for name, encoder in plan.encoders.items():
        encoder.restore(known.states[name], known.vocabularies.get(name, Path()))
    if plan.sequences:
        plan.columns[SEQUENCE] = Categorical(SEQUENCE, "behaviour", SEQUENCE, 1)
    for name, encoder in plan.columns.items():
        encoder.restore(known.columns[name], known.vocabularies.get(f"behaviour {name}", Path()))
