"""Numbers as features: standardised, or as the bucket of their quantile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Shaped

from lain.data.schema import Feature, Source
from lain.formats.log.encoder import Encoder, Weight
from lain.formats.log.values import Place, numbers
from lain.formats.log.vocabulary import FIRST, MISSING, Counter

_DISTINCT_NUMBERS = 1_000_000


class Numeric(Encoder):
    """A number in standard deviations from its mean, and a 1 where it is missing."""

    kind, raw_type = "numeric", pl.Float64()

    def __init__(self, name: str, source: Source, column: str) -> None:
        super().__init__(name, source, column)
        self._count, self.mean, self._squares, self.scale = 0, 0.0, 0.0, 1.0

    def raw(self, frame: pl.DataFrame, place: Place) -> pl.Series:
        """Numbers."""
        return numbers(frame, self.column, place)

    def add(self, raw: pl.Series, weight: Weight = None) -> None:
        """Mean and squared deviations, merged as Chan, Golub and LeVeque (1979) do."""
        if self.fixed:
            return
        there = raw.is_not_null().to_numpy()
        values = raw.drop_nulls().to_numpy()
        each = np.ones(len(values)) if weight is None else weight[there].astype(np.float64)
        count = each.sum()
        if count == 0:
            return
        mean = float((each * values).sum() / count)
        squares = float((each * (values - mean) ** 2).sum())
        total, shift = self._count + count, mean - self.mean
        self._squares += squares + shift**2 * self._count * count / total
        self.mean += shift * count / total
        self._count = total

    def finish(self) -> None:
        """Mean and deviation (1 for a constant), to nine digits, which the order of rows leaves alone."""
        if self.fixed:
            return
        deviation = float(f"{(self._squares / self._count) ** 0.5:.9g}") if self._count else 0.0
        self.mean = float(f"{self.mean:.9g}")
        self.scale = deviation if deviation > 1e-12 * max(1.0, abs(self.mean)) else 1.0

    def encode(self, raw: pl.Series) -> Shaped[np.ndarray, "rows ..."]:
        """Standardised value and flag."""
        missing = raw.is_null().to_numpy()
        values = (raw.fill_null(self.mean).to_numpy() - self.mean) / self.scale
        return np.stack([values, missing], axis=1).astype(np.float32)

    @property
    def feature(self) -> Feature:
        """A vector of two numbers."""
        return Feature(self.name, self.source, "vector", 0, 2)

    def state(self) -> dict[str, Any]:
        """Mean and scale."""
        return {"mean": self.mean, "scale": self.scale}

    def restore(self, state: dict[str, Any], vocabulary: Path) -> None:
        """Take mean and scale."""
        self.mean, self.scale = state["mean"], state["scale"]


class Buckets(Encoder):
    """The quantile bucket of a number.

    Exact as long as there are at most a million different numbers; beyond, numbers are told apart by their
    first four digits or so (13 bits of the mantissa).
    """

    kind, raw_type = "buckets", pl.Float64()

    def __init__(self, name: str, source: Source, column: str, buckets: int) -> None:
        super().__init__(name, source, column)
        self._buckets, self._counter = buckets, Counter(pl.Float64)
        self._coarse = False
        self.edges: list[float] = []

    def raw(self, frame: pl.DataFrame, place: Place) -> pl.Series:
        """Numbers."""
        return numbers(frame, self.column, place)

    def add(self, raw: pl.Series, weight: Weight = None) -> None:
        """Count the numbers."""
        if self.fixed:
            return
        self._counter.add(_rounded(raw) if self._coarse else raw, weight)
        found = self._counter.result() if self._counter._rows > _DISTINCT_NUMBERS else None
        if found is not None and len(found) > _DISTINCT_NUMBERS and not self._coarse:
            self._coarse, self._counter = True, Counter(pl.Float64)
            self._counter.add(_rounded(found["value"]), found["count"].to_numpy())

    def finish(self) -> None:
        """The edges: a bucket ends below the value at which its share of the rows is reached."""
        if self.fixed:
            return
        found = self._counter.result().sort("value")
        self._counter = Counter(pl.Float64)
        if not len(found):
            return
        below = (found["count"].cum_sum() - found["count"]).to_numpy() / found["count"].sum()
        wanted = np.arange(1, self._buckets) / self._buckets
        at = np.searchsorted(below, wanted, side="left")
        values = found["value"].to_numpy()
        self.edges = np.unique(values[at[at < len(values)]]).tolist()

    def encode(self, raw: pl.Series) -> Shaped[np.ndarray, "rows ..."]:
        """Bucket ids; the lowest is 3."""
        missing = raw.is_null().to_numpy()
        found = np.digitize(raw.fill_null(0).to_numpy(), self.edges) + FIRST
        return np.where(missing, MISSING, found).astype(np.int32)

    @property
    def feature(self) -> Feature:
        """Categorical."""
        return Feature(self.name, self.source, "categorical", FIRST + len(self.edges) + 1)

    def state(self) -> dict[str, Any]:
        """The edges."""
        return {"edges": self.edges}

    def restore(self, state: dict[str, Any], vocabulary: Path) -> None:
        """Take the edges."""
        self.edges = state["edges"]


def _rounded(values: pl.Series) -> pl.Series:
    """Numbers with 13 bits of mantissa."""
    bits = values.to_numpy().copy().view(np.int64) & ~np.int64((1 << 39) - 1)
    return pl.Series(values.name, bits.view(np.float64)).set(values.is_null(), None)
