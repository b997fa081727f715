"""Features: fitted on training rows in pieces, then applied to any rows.

Every kind is one class: ``raw`` takes a column of a piece as the spool keeps it, ``add`` learns from it,
``encode`` gives the numbers of the prepared set. What was learned travels as JSON and Parquet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
from jaxtyping import Float, Shaped

from common.errors import DataError
from lain.data.schema import Feature, Source
from lain.formats.log.encoder import Encoder, Weight
from lain.formats.log.numeric import Buckets, Numeric
from lain.formats.log.schema import TIME_PARTS, BehaviourColumn, FeatureColumn
from lain.formats.log.values import Clock, Place, lists, regroup, texts
from lain.formats.log.vocabulary import MISSING, Counter, Vocabulary

_LONGEST_LIST = 64


class Categorical(Encoder):
    """One id per row; see :class:`FeatureColumn` for ``min_count``."""

    kind = "categorical"

    def __init__(self, name: str, source: Source, column: str, min_count: int) -> None:
        super().__init__(name, source, column)
        self._min_count, self._counter = min_count, Counter()
        self._vocabulary: Vocabulary | None = None

    def raw(self, frame: pl.DataFrame, place: Place) -> pl.Series:
        """Texts."""
        return texts(frame, self.column, place)

    def add(self, raw: pl.Series, weight: Weight = None) -> None:
        """Count the values."""
        self._counter.add(raw, weight)

    def finish(self) -> None:
        """Keep the values that are frequent enough."""
        found = Vocabulary.fit(self._counter, self._min_count)
        self._vocabulary = self._vocabulary.grown(found) if self.fixed and self._vocabulary else found
        self._counter = Counter()

    def encode(self, raw: pl.Series) -> Shaped[np.ndarray, "rows ..."]:
        """Ids."""
        assert self._vocabulary is not None
        return self._vocabulary.encode(raw)

    @property
    def feature(self) -> Feature:
        """Categorical."""
        assert self._vocabulary is not None
        return Feature(self.name, self.source, "categorical", self._vocabulary.size)

    def restore(self, state: dict[str, Any], vocabulary: Path) -> None:
        """Read the vocabulary."""
        self._vocabulary = Vocabulary.load(vocabulary)

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The values."""
        return self._vocabulary


class ListOf(Categorical):
    """The ids of several values per row; a missing list is the id for missing."""

    kind: str = "list"
    raw_type: Any = pl.List(pl.String())

    def __init__(
        self, name: str, source: Source, column: str, min_count: int, width: int | None, separator: str | None
    ) -> None:
        super().__init__(name, source, column, min_count)
        self._given, self.width, self._separator = width, width or 1, separator

    def raw(self, frame: pl.DataFrame, place: Place) -> pl.Series:
        """Lists of texts."""
        return lists(frame, self.column, self._separator, place)

    def add(self, raw: pl.Series, weight: Weight = None) -> None:
        """Count the entries, and find the longest list."""
        length = raw.list.len().fill_null(0).to_numpy()
        flat = raw.explode(empty_as_null=False, keep_nulls=False)
        self._counter.add(flat, None if weight is None else np.repeat(weight, length))
        if self._given is None and len(length) and not self.fixed:
            self.width = min(max(self.width, int(length.max())), _LONGEST_LIST)

    def encode(self, raw: pl.Series) -> Shaped[np.ndarray, "rows ..."]:
        """Ids, padded with 0 behind."""
        assert self._vocabulary is not None
        length = raw.list.len().fill_null(0).to_numpy().astype(np.int64)
        codes = self._vocabulary.encode(raw.explode(empty_as_null=False, keep_nulls=False))
        out = np.zeros((len(raw), self.width), dtype=np.int32)
        place = np.arange(len(codes)) - np.repeat(np.cumsum(length) - length, length)
        kept = place < self.width
        out[np.repeat(np.arange(len(raw)), length)[kept], place[kept]] = codes[kept]
        out[raw.is_null().to_numpy(), 0] = MISSING
        return out

    @property
    def feature(self) -> Feature:
        """A list."""
        assert self._vocabulary is not None
        return Feature(self.name, self.source, "list", self._vocabulary.size, self.width)

    def state(self) -> dict[str, Any]:
        """The width."""
        return {"width": self.width}

    def restore(self, state: dict[str, Any], vocabulary: Path) -> None:
        """Read vocabulary and width."""
        super().restore(state, vocabulary)
        self.width = state["width"]


class Vector(Encoder):
    """Numbers as they are; a missing vector is 0."""

    kind, raw_type = "vector", pl.List(pl.Float32())

    def __init__(
        self, name: str, source: Source, column: str, width: int | None, separator: str | None
    ) -> None:
        super().__init__(name, source, column)
        self.width, self._separator = width, separator

    def raw(self, frame: pl.DataFrame, place: Place) -> pl.Series:
        """Lists of numbers, all of one length."""
        entries = lists(frame, self.column, self._separator, place)
        flat = entries.explode(empty_as_null=False, keep_nulls=False).cast(pl.Float32, strict=False)
        found = regroup(flat.set(~flat.is_finite(), None), entries)
        bad = found.list.eval(pl.element().is_null()).list.any().fill_null(False)
        place.check(bad, self.column, "a vector with an entry that is no finite number")
        length = found.list.len()
        if self.width is None and len(length.drop_nulls()):
            self.width = int(length.drop_nulls()[0])
        wrong = (length != self.width).fill_null(False)
        place.check(wrong, self.column, f"a vector of {{}} numbers instead of {self.width}", length)
        return found

    def add(self, raw: pl.Series, weight: Weight = None) -> None:
        """Nothing is learned."""

    def finish(self) -> None:
        """Nothing was learned."""
        if self.width is None:
            raise DataError(f"feature '{self.name}': column '{self.column}' holds no vector")

    def encode(self, raw: pl.Series) -> Shaped[np.ndarray, "rows ..."]:
        """The vectors."""
        assert self.width is not None
        out: Float[np.ndarray, "rows width"] = np.zeros((len(raw), self.width), dtype=np.float32)
        there = raw.is_not_null().to_numpy()
        flat = raw.explode(empty_as_null=False, keep_nulls=False).to_numpy()
        out[there] = flat.reshape(-1, self.width)
        return out

    @property
    def feature(self) -> Feature:
        """A vector."""
        return Feature(self.name, self.source, "vector", 0, self.width or 1)

    def state(self) -> dict[str, Any]:
        """The width."""
        return {"width": self.width}

    def restore(self, state: dict[str, Any], vocabulary: Path) -> None:
        """Take the width."""
        self.width = state["width"]


class TimePart(Encoder):
    """Hour (1 to 24 for 0 to 23), weekday (Monday is 1), day of the month, or month of a moment."""

    raw_type = pl.Int8()
    _SIZES: ClassVar = {"hour": 24, "weekday": 7, "day": 31, "month": 12}

    def __init__(self, name: str, column: str, kind: str, clock: Clock) -> None:
        super().__init__(name, "context", column)
        self.kind, self._clock = kind, clock

    def raw(self, frame: pl.DataFrame, place: Place) -> pl.Series:
        """The part, from 1 on."""
        return self.part(self._clock.read(frame, self.column, place))

    def part(self, moments: pl.Series) -> pl.Series:
        """The part of moments, on the clock of the log's time zone."""
        utc = moments.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        local = utc.dt.convert_time_zone(self._clock.options.zone).dt
        parts = {"hour": local.hour, "weekday": local.weekday, "day": local.day, "month": local.month}
        return (parts[self.kind]().cast(pl.Int8) + (1 if self.kind == "hour" else 0)).fill_null(0)

    def add(self, raw: pl.Series, weight: Weight = None) -> None:
        """Nothing is learned."""

    def finish(self) -> None:
        """Nothing was learned."""

    def restore(self, state: dict[str, Any], vocabulary: Path) -> None:
        """Nothing was learned."""

    def encode(self, raw: pl.Series) -> Shaped[np.ndarray, "rows ..."]:
        """The parts."""
        return raw.to_numpy().astype(np.int32)

    @property
    def feature(self) -> Feature:
        """Categorical."""
        return Feature(self.name, self.source, "categorical", self._SIZES[self.kind] + 1)


def make_encoder(name: str, feature: FeatureColumn, time: str | None, clock: Clock) -> Encoder:
    """The encoder of a feature.

    Args:
        name: Its name.
        feature: What the schema says.
        time: The time column of the log.
        clock: Reads times.
    """
    column = feature.column or name
    if feature.kind in TIME_PARTS:
        own = feature.column is not None and feature.column != time
        return TimePart(
            name, column if own else time or column, feature.kind, Clock(clock.options) if own else clock
        )
    if feature.kind == "numeric":
        return Numeric(name, feature.source, column)
    if feature.kind == "buckets":
        return Buckets(name, feature.source, column, feature.buckets)
    if feature.kind == "vector":
        return Vector(name, feature.source, column, feature.width, feature.separator)
    if feature.kind == "list":
        return ListOf(name, feature.source, column, feature.min_count, feature.width, feature.separator)
    return Categorical(name, feature.source, column, feature.min_count)


def make_column(name: str, column: BehaviourColumn) -> Encoder:
    """The encoder of a column of the behaviours."""
    source: Source = "behaviour"
    if column.kind == "buckets":
        return Buckets(name, source, column.column or name, column.buckets)
    return Categorical(name, source, column.column or name, column.min_count)
