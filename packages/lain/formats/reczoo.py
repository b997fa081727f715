"""The reczoo "x2" layout: Parquet files of already encoded integers, one whole sequence per user.

``train.parquet``, ``valid.parquet``, ``test.parquet``: one row per impression. Rows to score are
``test.parquet`` alone, which may lack the column of labels.
``user_info.parquet``: one row per user, the row number being the user index, with the user's whole
sequence of items in time order; a row's history is its first ``seq_len`` items.
``item_info.parquet``: one row per item, the row number being the item index; row 0 is the padding item.

The schema is a small YAML file (``schema.yaml`` in the source folder unless another is given)::

    name: MicroVideo1.7M_x2          # default: the name of the source folder
    columns:
      label: is_click                # must be given; the others show their defaults
      user: user_index
      item: item_index
      length: seq_len
      history: full_item_seq
    features:
      item_id: {source: item}                                # the item index itself
      cate_id: {source: item, size: 514}                     # size: vocabulary, 0 included
      image: {source: item, kind: vector, column: image_emb_dim64}
      topics: {source: item, kind: list, width: 5}           # width: the first so many entries are kept
      hour: {source: context}                                # a column of train, valid and test
      age: {source: user}                                    # a column of user_info

``kind`` is ``categorical`` (default), ``list`` or ``vector``; ``column`` is by default the feature's name.
Without ``size`` the largest value plus one is taken, without ``width`` the longest list.

Over 400 lines: one layout, from its schema to its store.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Int, Shaped

from common.cli import report
from common.config import load
from common.errors import ConfigError, DataError, nearest
from common.ragged import Ragged
from lain.data.schema import RESERVED, UNLABELLED, Feature, Kind, Source
from lain.data.writer import ArrayWriter, StoreWriter
from lain.formats.tables import (
    Mistakes,
    Progress,
    Table,
    is_number,
    is_number_list,
    is_whole,
    is_whole_list,
    owners,
    require_files,
)

FILES = ("test.parquet", "user_info.parquet", "item_info.parquet")
SPLITS = ("train", "valid", "test")
_VALUES_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Columns:
    """Names of the columns that every source has.

    Args:
        label: 0 or 1, in the splits.
        user: User index, in the splits.
        item: Item index, in the splits.
        length: Behaviours before the row, in the splits.
        history: The user's sequence, in user_info.
    """

    label: str
    user: str = "user_index"
    item: str = "item_index"
    length: str = "seq_len"
    history: str = "full_item_seq"


@dataclass(frozen=True)
class FeatureColumn:
    """How a column becomes a feature.

    Args:
        source: Which file it is in: ``item`` (item_info), ``user`` (user_info), ``context`` (the splits).
        kind: One integer, a list of integers, or a frozen vector.
        column: The column; None: the feature's name.
        size: Number of different integers, 0 included; None: the largest value plus one.
        width: Longest list that is kept, or the dimension of the vector; None: as found.
    """

    source: Source
    kind: Kind = "categorical"
    column: str | None = None
    size: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        found = []
        if self.size is not None and (self.size < 1 or self.kind == "vector"):
            found.append(f"size: a {self.kind} feature cannot have size {self.size}")
        if self.width is not None and (self.width < 1 or self.kind == "categorical"):
            found.append(f"width: a {self.kind} feature cannot have width {self.width}")
        ConfigError.raise_if(found)


@dataclass(frozen=True)
class Schema:
    """What the columns of a source mean; see the head of this file.

    Args:
        features: Features by name.
        columns: The columns that every source has.
        name: Name of the data set; None: the name of the source folder.
    """

    features: dict[str, FeatureColumn]
    columns: Columns
    name: str | None = None

    def __post_init__(self) -> None:
        """Check the names."""
        found: list[str] = []
        for name, feature in self.features.items():
            try:
                Feature(name, feature.source, feature.kind, 0, feature.width or 1)
            except DataError as error:
                found.extend(f"features.{name}: {message}" for message in error.messages)
            if name in RESERVED and feature.column is not None:
                found.append(
                    f"features.{name}: the name is reserved for the {feature.source} index; "
                    f"give the feature of column '{feature.column}' another name"
                )
        if not any(feature.source == "item" for feature in self.features.values()):
            found.append("features: at least one item feature is needed, for example item_id: {source: item}")
        ConfigError.raise_if(found)


@dataclass(frozen=True, eq=False)
class _Source:
    """The opened files of one data set, with their features and where mistakes go."""

    schema: Schema
    items: Table
    users: Table
    splits: dict[str, Table]
    features: tuple[Feature, ...]
    mistakes: Mistakes

    @property
    def unlabelled(self) -> list[str]:
        """The split of rows to be scored alone, if it has no labels; a name misspelt is none of these."""
        label, train, test = self.schema.columns.label, self.splits.get("train"), self.splits.get("test")
        if test is None or label in test.types or nearest(label, test.types) is not None:
            return []
        return ["test"] if train is None or label in train.types else []

    def column(self, feature: Feature) -> str:
        """The column that a feature comes from."""
        return self.schema.features[feature.name].column or feature.name

    def of(self, source: Source) -> list[Feature]:
        """The features of items, users or rows that have a column."""
        return [f for f in self.features if f.source == source and f.name not in RESERVED]


def prepare_reczoo(source: Path, out: Path, progress: Progress, *, schema: Path | None = None) -> list[str]:
    """Prepare a folder in the reczoo x2 layout.

    Args:
        source: The folder.
        out: The store to write.
        progress: Says how far reading is.
        schema: YAML file that describes the columns; null: ``schema.yaml`` in the folder.

    Raises:
        ConfigError: The schema has mistakes.
        DataError: The files have mistakes.
    """
    described = _schema(source, schema or source / "schema.yaml")
    opened = _open(source, described, progress)
    sequence = _sequence_lengths(opened)
    writer = StoreWriter(
        out,
        name=described.name or source.resolve().name,
        features=opened.features,
        num_items=opened.items.rows,
        num_users=opened.users.rows,
        notes={"format": "reczoo", "label": described.columns.label, UNLABELLED: opened.unlabelled},
    )
    with writer as store:
        with opened.mistakes.noted():
            _write_items(opened, store)
        with opened.mistakes.noted():
            _write_users(opened, store, sequence)
        for name in opened.splits:
            with opened.mistakes.noted():
                _write_split(opened, store, name, sequence)
        opened.mistakes.raise_all()
    if "train" not in opened.splits:
        report(f"note: {source} has no train.parquet: {out} can be scored by a run, and not be trained on")
    for name in opened.unlabelled:
        label = described.columns.label
        report(
            f"note: {source / name}.parquet has no column '{label}': its rows can be scored, not evaluated"
        )
    return []


def _schema(source: Path, file: Path) -> Schema:
    """Read the schema; what is missing in the source folder and what is wrong in the schema come together."""
    missing: tuple[str, ...] = ()
    try:
        require_files(source, FILES, "reczoo")
    except DataError as error:
        if not file.is_file():
            raise
        missing = error.messages
    try:
        schema = load(Schema, file)
    except ConfigError as error:
        raise ConfigError(*missing, *error.messages) from error
    DataError.raise_if(missing)
    return schema


def _open(source: Path, schema: Schema, progress: Progress) -> _Source:
    """Open all files, check columns and types, and find the widths."""
    mistakes = Mistakes()

    def table(name: str) -> Table:
        return Table(source / f"{name}.parquet", mistakes, progress)

    items, users = table("item_info"), table("user_info")
    splits = {name: table(name) for name in SPLITS if (source / f"{name}.parquet").is_file()}
    columns = schema.columns
    readable = [items.require(columns.item, is_whole, "whole numbers")]
    readable.append(users.require(columns.history, is_whole_list, "lists of whole numbers"))
    unlabelled = _Source(schema, items, users, splits, (), mistakes).unlabelled
    sound = []
    for name, split in splits.items():
        there = [
            split.require(c, is_whole, "whole numbers") for c in (columns.user, columns.item, columns.length)
        ]
        if name not in unlabelled:
            there.append(split.require(columns.label, is_number, "0 and 1"))
        if all(there):
            sound.append(name)
    kinds = {
        "categorical": (is_whole, "whole numbers"),
        "list": (is_whole_list, "lists of whole numbers"),
        "vector": (is_number_list, "lists of numbers"),
    }
    tables: dict[Source, list[Table]] = {"item": [items], "user": [users], "context": [*splits.values()]}
    usable: dict[str, list[Table]] = {}
    for name, feature in schema.features.items():
        column = feature.column or name
        if name in RESERVED:
            if name not in (columns.user, columns.item) and name in tables[feature.source][0].types:
                mistakes.add(f"{tables[feature.source][0].path}: column '{name}' has the name of the "
                             f"{feature.source} index; in the schema give it another name and "
                             f"'column: {name}'")  # fmt: skip
            continue
        there = [t.require(column, *kinds[feature.kind]) for t in tables[feature.source]]
        if all(there):
            usable[name] = tables[feature.source]
    if mistakes and all(readable):
        _check_values(_Source(schema, items, users, splits, (), mistakes), sound)
    mistakes.raise_all()
    features = [
        Feature(name, f.source, f.kind, f.size or 0, f.width or _width(name, f, usable.get(name, [])))
        for name, f in schema.features.items()
    ]
    return _Source(schema, items, users, splits, tuple(features), mistakes)


def _check_values(opened: _Source, sound: Iterable[str]) -> None:
    """Note what is wrong in the rows of splits that have their columns, where other tables lack some."""
    with opened.mistakes.noted():
        sequence = _sequence_lengths(opened)
        for name in sound if len(sequence) else ():
            with opened.mistakes.noted():
                for _ in _rows(opened, name, sequence):
                    pass


def _width(name: str, feature: FeatureColumn, tables: list[Table]) -> int:
    """The longest list of a column that has no width in the schema."""
    longest = 1
    if feature.kind != "categorical":
        column = feature.column or name
        for table in tables:
            for _, piece in table.pieces([column]):
                longest = max(longest, pc.max(pc.list_value_length(piece.column(0))).as_py() or 0)
    return longest


def _history_pieces(opened: _Source) -> Iterator[tuple[int, Ragged]]:
    """All users' sequences in pieces of about a million items."""
    table, column = opened.users, opened.schema.columns.history
    for first, piece in table.pieces([column], size=1024):
        yield first, table.lists(column, piece.column(0), first)


def _sequence_lengths(opened: _Source) -> Int[np.ndarray, " users"]:
    """How long each user's sequence is; its items are checked on the way."""
    table, last = opened.users, opened.items.rows - 1
    parts = []
    for first, sequences in _history_pieces(opened):
        parts.append(sequences.lengths)
        outside = (sequences.values < 1) | (sequences.values > last)
        if outside.any():
            bad = np.zeros(len(sequences), dtype=bool)
            wrong, who = np.zeros(len(sequences), dtype=np.int64), owners(sequences)[outside]
            bad[who] = True
            wrong[who[::-1]] = sequences.values[outside][::-1]
            line = f"item {{}} is outside the item table (1 to {last})"
            opened.mistakes.check(bad, table, opened.schema.columns.history, first, line, wrong)
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _values(table: Table, feature: Feature, column: str, array: Any, first: int) -> np.ndarray:
    """A piece of a column in the form in which the store keeps the feature; mistakes are noted."""
    highest = feature.size - 1 if feature.size else np.iinfo(np.int32).max - 1
    if feature.kind == "categorical":
        return table.integers(column, array, first, 0, highest)
    lists = table.lists(column, array, first, empty_rows=[0] if feature.source == "item" else ())
    if feature.kind == "vector":
        return _vectors(table, feature, column, lists, first)
    rows, position = (
        owners(lists),
        np.arange(len(lists.values)) - np.repeat(lists.offsets[:-1], lists.lengths),
    )
    out = np.zeros(feature.shape(len(lists)), dtype=np.int64)
    kept = position < feature.width
    out[rows[kept], position[kept]] = lists.values[kept]
    bad = np.asarray(((out < 0) | (out > highest)).any(axis=1))
    table.mistakes.check(bad, table, column, first, f"{{}} has entries outside 0 to {highest}", out)
    return out


def _vectors(table: Table, feature: Feature, column: str, lists: Ragged, first: int) -> np.ndarray:
    """Vectors of one piece of a column; the padding item may have none."""
    short = lists.lengths != feature.width
    if feature.source == "item" and first == 0:
        short[0] &= lists.lengths[0] > 0
    line = f"a vector of {{}} numbers instead of {feature.width}"
    table.mistakes.check(short, table, column, first, line, lists.lengths)
    out = np.zeros(feature.shape(len(lists)), dtype=np.float32)
    full = lists.lengths == feature.width
    out[full] = lists.gather(np.flatnonzero(full)).values.reshape(-1, feature.width)
    bad = np.asarray(~np.isfinite(out).all(axis=1))
    table.mistakes.check(bad, table, column, first, "a vector with a number that is not finite")
    return out


def _rows_at_once(features: list[Feature]) -> int:
    return max(1024, _VALUES_AT_ONCE // max(16, sum(feature.width for feature in features)))


def _check_position(table: Table, column: str, values: Shaped[np.ndarray, " rows"], first: int) -> None:
    position = np.arange(first, first + len(values))
    line = "must be the row number, got {}"
    table.mistakes.check(values != position, table, column, first, line, values)


def _write_items(opened: _Source, store: StoreWriter) -> None:
    table, features, index = opened.items, opened.of("item"), opened.schema.columns.item
    writers = {feature.name: store.table(feature.name) for feature in features}
    columns = [index, *(opened.column(feature) for feature in features)]
    for first, piece in table.pieces(columns, _rows_at_once(features)):
        _check_position(table, index, table.integers(index, piece.column(index), first), first)
        for feature in features:
            column = opened.column(feature)
            values = _values(table, feature, column, piece.column(column), first)
            if first == 0:
                values[0] = 0
            writers[feature.name].append(values)


def _write_users(opened: _Source, store: StoreWriter, sequence: Int[np.ndarray, " users"]) -> None:
    table, features = opened.users, opened.of("user")
    index = opened.schema.columns.user
    checked = [index] if index in table.types and is_whole(table.types[index]) else []
    columns = [*checked, *(opened.column(feature) for feature in features)]
    writers = {feature.name: store.table(feature.name) for feature in features}
    for first, piece in table.pieces(columns, _rows_at_once(features)) if columns else ():
        for column in checked:
            _check_position(table, column, table.integers(column, piece.column(column), first), first)
        for feature in features:
            column = opened.column(feature)
            values = _values(table, feature, column, piece.column(column), first)
            writers[feature.name].append(values)
    values_writer: ArrayWriter = store.history_values(sequence)
    if not opened.mistakes:
        for _, sequences in _history_pieces(opened):
            values_writer.append(sequences.values)


def _write_split(opened: _Source, store: StoreWriter, name: str, sequence: Int[np.ndarray, " users"]) -> None:
    split = store.split(name, opened.splits[name].rows)
    for rows in _rows(opened, name, sequence):
        if not opened.mistakes:
            split.append(**rows)


def _rows(opened: _Source, name: str, sequence: Int[np.ndarray, " users"]) -> Iterator[dict[str, Any]]:
    """The rows of a split in pieces, as :meth:`SplitWriter.append` takes them; mistakes are noted."""
    table, columns, features = opened.splits[name], opened.schema.columns, opened.of("context")
    labelled = name not in opened.unlabelled
    wanted = [columns.user, columns.item, columns.length, *([columns.label] if labelled else [])]
    wanted.extend(opened.column(feature) for feature in features)
    for first, piece in table.pieces(wanted, _rows_at_once(features)):
        user = table.integers(columns.user, piece.column(columns.user), first, 0, len(sequence) - 1)
        item = table.integers(columns.item, piece.column(columns.item), first, 1, opened.items.rows - 1)
        length = table.integers(columns.length, piece.column(columns.length), first)
        stored = sequence[user]
        line = "{} is beyond the user's sequence of {} items"
        opened.mistakes.check(length > stored, table, columns.length, first, line, length, stored)
        label = np.zeros(len(user), dtype=np.uint8)
        if labelled:
            label = table.labels(columns.label, piece.column(columns.label), first)
        context = {
            feature.name: _values(
                table, feature, opened.column(feature), piece.column(opened.column(feature)), first
            )
            for feature in features
        }
        yield {
            "user": user,
            "item": item,
            "end": length,
            "length": length,
            "label": label,
            "context": context,
        }
