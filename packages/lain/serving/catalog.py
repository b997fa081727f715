"""What a run keeps of its items and users, and how a request's raw values become the model's numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int, Num, Shaped

from common.errors import DataError, suggest
from lain.data.catalog import CATALOG
from lain.data.schema import RESERVED, Feature
from lain.data.store import Store
from lain.formats.log.encode import FOLDER as ENCODING_FOLDER
from lain.formats.log.encode import Encoding
from lain.formats.log.encoder import Encoder
from lain.formats.log.features import TimePart, make_column, make_encoder
from lain.formats.log.history import gap_codes
from lain.formats.log.schema import ITEM, USER
from lain.formats.log.values import Clock, Place, as_text
from lain.formats.log.vocabulary import UNKNOWN
from lain.formats.log.write import ENCODING
from lain.formats.tables import Mistakes

Ids = Sequence[Any] | np.ndarray
Values = Mapping[str, Num[np.ndarray, "rows ..."]]


def open_catalog(run: Path, features: Sequence[Feature], data: Path | None = None) -> Catalog:
    """What turns requests into numbers, as a run keeps it.

    Args:
        run: The run folder.
        features: The features that the model reads.
        data: The prepared data set; needed only for runs that keep neither.

    Raises:
        DataError: Neither is kept and no data set is given, or a file cannot be read.
    """
    if (run / ENCODING_FOLDER).is_dir():
        return LogCatalog(Encoding.open(run), features)
    if data is not None:
        store = Store.open(data)
        if ENCODING in store.vocabularies:
            return LogCatalog(Encoding.open(data), features)
        return IndexCatalog({"item": store.items, "user": store.users}, features)
    tables: dict[str, dict[str, np.ndarray]] = {"item": {}, "user": {}}
    for feature in features:
        if feature.source not in tables or feature.name in RESERVED:
            continue
        file = run / CATALOG / feature.source / feature.file
        try:
            tables[feature.source][feature.name] = np.load(file, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise DataError(
                f"{file}: missing; the run is of an older version, give the prepared data set too"
            ) from None
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: cannot be read ({error}); give the prepared data set too") from error
    return IndexCatalog(tables, features)


class Catalog(ABC):
    """Turns ids and values of a request into what the model reads; keeps nothing of a request.

    Args:
        features: The features that the model reads.
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        self._of = {
            source: [f for f in features if f.source == source and f.kind != "time"]
            for source in ("item", "user", "context", "behaviour")
        }

    @abstractmethod
    def tables(self) -> dict[str, dict[str, Shaped[np.ndarray, "rows ..."]]]:
        """Features of all items and users by index, under ``item`` and ``user``, but for ``item_id``."""

    @abstractmethod
    def items(self, ids: Ids) -> Int[np.ndarray, " rows"]:
        """Indices of items.

        Raises:
            DataError: One is none.
        """

    @abstractmethod
    def item_values(self, index: Int[np.ndarray, " rows"]) -> Values:
        """Features of items, by their indices; 0 is the padding item."""

    @abstractmethod
    def user(self, user: Any) -> Values:
        """Features of a user, as one row; of None those of an unknown one.

        Raises:
            DataError: There is no such user, and nothing stands for the unknown.
        """

    @abstractmethod
    def context(self, values: Mapping[str, Any], rows: int) -> Values:
        """Features of rows.

        Args:
            values: One value, or one for each row, by name.
            rows: Number of rows.

        Raises:
            DataError: A name is missing or unknown, or a value is not one of its kind.
        """

    @abstractmethod
    def columns(self, names: Sequence[str], values: Mapping[str, Any], rows: int) -> Values:
        """Columns of behaviours.

        Args:
            names: Those that the model reads.
            values: Their values by name, one for each behaviour.
            rows: Number of behaviours.

        Raises:
            DataError: One is missing, or a value is not one of its kind.
        """


class IndexCatalog(Catalog):
    """Items and users by their indices in the prepared data set.

    Args:
        tables: Features of items and users, one row per index, under ``item`` and ``user``.
        features: The features that the model reads.
    """

    def __init__(
        self, tables: Mapping[str, Mapping[str, Shaped[np.ndarray, "rows ..."]]], features: Sequence[Feature]
    ) -> None:
        super().__init__(features)
        self._tables = tables
        self._count = {
            source: min(
                [f.size for f in self._of[source] if f.name in RESERVED]
                + [len(table) for table in tables[source].values()],
                default=0,
            )
            for source in ("item", "user")
        }

    def tables(self) -> dict[str, dict[str, Shaped[np.ndarray, "rows ..."]]]:
        """As they are given, with the users' own indices."""
        found = {source: dict(table) for source, table in self._tables.items()}
        if any(f.name == "user_id" for f in self._of["user"]):
            found["user"]["user_id"] = np.arange(self._count["user"])
        return found

    def items(self, ids: Ids) -> Int[np.ndarray, " rows"]:
        """Indices, checked."""
        return _whole(ids, "item", 1, self._count["item"], "this run knows items by their index")

    def item_values(self, index: Int[np.ndarray, " rows"]) -> Values:
        """Rows of the tables."""
        return {name: table[index] for name, table in self._tables["item"].items()}

    def user(self, user: Any) -> Values:
        """A row of the tables."""
        if not self._of["user"]:
            return {}
        if user is None:
            raise DataError("user: missing; this run reads features of the user, give the user's index")
        index = _whole([user], "user", 0, self._count["user"], "this run knows users by their index")
        found = {name: table[index] for name, table in self._tables["user"].items()}
        return found | ({"user_id": index} if any(f.name == "user_id" for f in self._of["user"]) else {})

    def context(self, values: Mapping[str, Any], rows: int) -> Values:
        """Encoded numbers as they are."""
        _same_names(values, [f.name for f in self._of["context"]], "context")
        return {f.name: _encoded(f, values[f.name], rows, "context") for f in self._of["context"]}

    def columns(self, names: Sequence[str], values: Mapping[str, Any], rows: int) -> Values:
        """Encoded numbers as they are."""
        _same_names(values, names, "columns")
        known = {f.name: f for f in self._of["behaviour"]}
        return {name: _encoded(known[name], values[name], rows, "columns") for name in names}


@dataclass(frozen=True)
class _Named:
    """What a line about a mistake names instead of a file."""

    path: Path


class LogCatalog(Catalog):
    """Items, users and values as they stand in the log that the run was trained on.

    An item, user or category that is new gets the id for the unknown, as in ``lain predict``.

    Args:
        encoding: What the run's log learned.
        features: The features that the model reads.
    """

    def __init__(self, encoding: Encoding, features: Sequence[Feature]) -> None:
        super().__init__(features)
        schema = encoding.schema
        self._clock = Clock(schema.time)
        time = schema.columns.time
        made = {n: make_encoder(n, f, time, self._clock) for n, f in schema.features.items()}
        self._encoders = {name: e for name, e in made.items() if name in encoding.states}
        for name, encoder in self._encoders.items():
            encoder.restore(encoding.states[name], encoding.vocabularies.get(name, Path()))
        self._columns = {
            name: make_column(name, column)
            for name, column in schema.history.columns.items()
            if name in encoding.columns
        }
        for name, encoder in self._columns.items():
            file = encoding.vocabularies.get(f"behaviour {name}", Path())
            encoder.restore(encoding.columns[name], file)
        self._time = time or "time"
        self._ids, self._tables = {}, {}
        for source, first in (("item", 1), ("user", 0)):
            entries = encoding.frozen.entries[source]
            self._ids[source] = {value: first + n for n, value in enumerate(entries["id"].to_list())}
            self._tables[source] = {
                f.name: self._table(f, entries[f.name].to_numpy(), padded=first == 1)
                for f in self._of[source]
            }
        self._unknown = {source: len(ids) + (source == "item") for source, ids in self._ids.items()}

    def _table(self, feature: Feature, known: np.ndarray, *, padded: bool) -> np.ndarray:
        """The known entries, before them the padding item, behind them the unknown one."""
        unknown: np.ndarray
        if feature.name in (ITEM, USER) and feature.name not in self._encoders:
            unknown = np.array([UNKNOWN])
        else:
            encoder = self._encoders[feature.name]
            unknown = encoder.encode(pl.Series([None], dtype=encoder.raw_type))
        first = [np.zeros_like(unknown)] if padded else []
        return np.concatenate([*first, known.reshape(-1, *unknown.shape[1:]), unknown]).astype(feature.dtype)

    def tables(self) -> dict[str, dict[str, Shaped[np.ndarray, "rows ..."]]]:
        """Those of known ids; the last row is that of the unknown."""
        return {source: dict(table) for source, table in self._tables.items()}

    def _index(self, source: str, ids: Ids) -> Int[np.ndarray, " rows"]:
        known, unknown = self._ids[source], self._unknown[source]
        return np.array([known.get(text, unknown) for text in _texts(ids, source)], dtype=np.int64)

    def items(self, ids: Ids) -> Int[np.ndarray, " rows"]:
        """Indices of raw ids; a new one is the unknown item."""
        return self._index("item", ids)

    def item_values(self, index: Int[np.ndarray, " rows"]) -> Values:
        """Rows of the tables."""
        return {name: table[index] for name, table in self._tables["item"].items()}

    def user(self, user: Any) -> Values:
        """A row of the tables; a new user's is that of the unknown one."""
        index = np.array([self._unknown["user"]]) if user is None else self._index("user", [user])
        return {name: table[index] for name, table in self._tables["user"].items()}

    def context(self, values: Mapping[str, Any], rows: int) -> Values:
        """Values under the names of the log's columns; those of users are optional."""
        needed = [self._encoders[f.name] for f in self._of["context"]]
        optional = [self._encoders[f.name] for f in self._of["user"] if f.name in self._encoders]
        given = [e for e in optional if e.column in values]
        _same_names(values, [e.column for e in needed], "context", [e.column for e in optional])
        return {e.name: self._encode(e, values[e.column], rows, "context") for e in [*needed, *given]}

    def columns(self, names: Sequence[str], values: Mapping[str, Any], rows: int) -> Values:
        """Values under the names of the log's columns; ``gap`` is made of the times."""
        readers = {name: self._columns.get(name) for name in names}
        wanted = [self._time if e is None else e.column for e in readers.values()]
        _same_names(values, list(dict.fromkeys(wanted)), "columns")
        return {
            name: self._gaps(values[self._time], rows)
            if encoder is None
            else self._encode(encoder, values[encoder.column], rows, "columns")
            for name, encoder in readers.items()
        }

    def _gaps(self, times: Any, rows: int) -> np.ndarray:
        mistakes = Mistakes()
        place = Place(_Named(Path("columns")), 1, mistakes)
        clock = Clock(self._clock.options)
        moments = clock.read_series(_series(self._time, times, rows, "columns"), self._time, place).to_numpy()
        mistakes.raise_all()
        if (np.diff(moments) < 0).any():
            raise DataError(f"columns: '{self._time}' must rise, the oldest behaviour comes first")
        return gap_codes(moments, np.arange(rows) == 0)

    def _encode(self, encoder: Encoder, values: Any, rows: int, where: str) -> np.ndarray:
        mistakes = Mistakes()
        raw = _series(encoder.column, values, rows, where)
        place = Place(_Named(Path(where)), 1, mistakes)
        if isinstance(encoder, TimePart):
            found = encoder.part(Clock(self._clock.options).read_series(raw, encoder.column, place))
        else:
            found = encoder.raw(pl.DataFrame([raw]), place)
        mistakes.raise_all()
        return encoder.encode(found.cast(encoder.raw_type))


def _texts(ids: Ids, what: str) -> list[str]:
    """Ids as the log's texts: whole numbers without a point."""
    values = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    if all(isinstance(value, str) for value in values):
        return values
    if all(type(value) is int for value in values):
        return [str(value) for value in values]
    try:
        texts = [v if isinstance(v, str) else as_text(pl.Series([v])).item() for v in values]
    except (TypeError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{what}: an id must be a text or a number ({error})") from None
    if None in texts:
        raise DataError(f"{what}: id number {texts.index(None) + 1} is missing")
    return texts


def _whole(ids: Ids, what: str, low: int, count: int, why: str) -> Int[np.ndarray, " rows"]:
    """Indices from ``low`` to ``count`` - 1."""
    values = np.asarray(ids if len(ids) else np.zeros(0, np.int64))
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise DataError(f"{what}: {why}, a whole number, got {_first(ids)}")
    bad = (values < low) | (values >= count)
    if bad.any():
        raise DataError(f"{what}: {why}, {low} to {count - 1}, got {values[bad][0]}")
    return values.astype(np.int64)


def _first(ids: Ids) -> str:
    return repr(next((i for i in ids if not isinstance(i, (int, np.integer)) or isinstance(i, bool)), ids))


def _series(name: str, values: Any, rows: int, where: str) -> pl.Series:
    """A column with one value per row; a single value is repeated."""
    several = isinstance(values, (list, tuple, np.ndarray))
    try:
        made = pl.Series(name, values if several else [values] * rows, strict=False)
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{where}: '{name}' cannot be read ({str(error).splitlines()[0]})") from None
    if several and made.null_count() > sum(value is None for value in values):
        raise DataError(f"{where}: '{name}' cannot be read (a value is too large, or of another kind)")
    if made.null_count() and not several and values is not None:
        raise DataError(f"{where}: '{name}' cannot be read, got {values!r:.60}")
    if len(made) != rows:
        raise DataError(f"{where}: '{name}' has {len(made)} values for {rows} rows")
    return made


def _encoded(feature: Feature, values: Any, rows: int, where: str) -> np.ndarray:
    """Numbers that are the model's already."""
    try:
        made = np.asarray(values)
    except ValueError:
        made = np.zeros(0, dtype=object)
    single = feature.shape(1)[1:]
    if made.shape == single:
        made = np.broadcast_to(made, (rows, *single))
    if made.shape != (rows, *single) or made.dtype.kind not in ("iu" if feature.size else "iuf"):
        shape = "x".join(map(str, (rows, *single)))
        kind = "whole numbers" if feature.size else "numbers"
        raise DataError(f"{where}: '{feature.name}' takes {kind}, one or {shape}, got {values!r:.60}")
    if feature.size and made.size and (made.min() < 0 or made.max() >= feature.size):
        bad = made[(made < 0) | (made >= feature.size)].flat[0]
        raise DataError(f"{where}: '{feature.name}' lies in 0 to {feature.size - 1}, got {bad}")
    return made.astype(feature.dtype)


def _same_names(
    values: Mapping[str, Any], needed: Sequence[str], where: str, optional: Iterable[str] = ()
) -> None:
    """Refuse names that are missing or unknown."""
    known = list(dict.fromkeys([*needed, *optional]))
    wrong = [f"{where}: '{name}' is missing" for name in needed if name not in values]
    wrong += [
        f"{where}: '{name}' is not one of {', '.join(known) or 'none'}{suggest(name, known)}"
        for name in values
        if name not in known
    ]
    DataError.raise_if(wrong)
