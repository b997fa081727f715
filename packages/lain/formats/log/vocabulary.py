"""Raw values and the ids they get: counted in pieces, kept as Parquet, applied to anything that comes later.

Ids: 0 is padding, 1 a value that is not in the vocabulary, 2 a missing one, the others from 3 on.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int, Shaped, UInt64

from common.errors import DataError

UNKNOWN, MISSING, FIRST = 1, 2, 3
_PENDING = 1_000_000


@dataclass(eq=False)
class Counter:
    """How often every value occurs; memory grows with the different values, not with the rows.

    Args:
        dtype: Type of the values.
    """

    dtype: Any = pl.String
    _pieces: list[pl.DataFrame] = field(default_factory=list)
    _rows: int = 0

    def add(self, values: pl.Series, weight: Int[np.ndarray, " rows"] | None = None) -> None:
        """Count the values of a piece, missing ones aside."""
        frame = pl.DataFrame({"value": values.cast(self.dtype)})
        counted = pl.len() if weight is None else pl.col("count").sum()
        if weight is not None:
            frame = frame.with_columns(pl.Series("count", weight))
        found = frame.filter(pl.col("value").is_not_null()).group_by("value").agg(
            counted.cast(pl.Int64).alias("count")
        )  # fmt: skip
        self._pieces.append(found)
        self._rows += len(found)
        if self._rows > max(_PENDING, 2 * len(self._pieces[0])):
            self.result()

    def result(self) -> pl.DataFrame:
        """Every value and its count, in no order."""
        if not self._pieces:
            return pl.DataFrame(schema={"value": self.dtype, "count": pl.Int64})
        if len(self._pieces) > 1:
            merged = pl.concat(self._pieces).group_by("value").agg(pl.col("count").sum())
            self._pieces = [merged]
        self._rows = len(self._pieces[0])
        return self._pieces[0]


def in_order(values: pl.Series) -> pl.Series:
    """Values in a fixed order: whole numbers by size, other texts by their letters."""
    digits = values.str.contains(r"^(0|[1-9]\d*)$")
    if bool(digits.all()):
        frame = pl.DataFrame({"value": values, "length": values.str.len_bytes()})
        return frame.sort("length", "value")["value"]
    return values.sort()


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The values of a column that have ids of their own.

    Args:
        values: The values; the first has the id ``first``.
        first: That id.
    """

    values: pl.Series
    first: int = FIRST

    def __post_init__(self) -> None:
        """Make the table to look values up in."""
        codes = np.arange(self.first, self.first + len(self.values), dtype=np.int32)
        table = pl.DataFrame({"value": self.values, "code": codes}, schema_overrides={"value": pl.String})
        object.__setattr__(self, "_table", table)

    @classmethod
    def fit(cls, counter: Counter, min_count: int, first: int = FIRST) -> Vocabulary:
        """The values that were counted often enough, in their fixed order."""
        found = counter.result()
        return cls(in_order(found.filter(pl.col("count") >= min_count)["value"]), first)

    def grown(self, other: Vocabulary) -> Vocabulary:
        """These values with their ids, and behind them those of another vocabulary that are new."""
        new = other.values.filter(~other.values.is_in(self.values.implode()))
        return Vocabulary(pl.concat([self.values, new]), self.first)

    def __len__(self) -> int:
        """Number of values."""
        return len(self.values)

    @property
    def size(self) -> int:
        """The largest id plus one."""
        return self.first + len(self.values)

    def encode(self, values: pl.Series) -> Int[np.ndarray, " rows"]:
        """The id of every value."""
        table: pl.DataFrame = self._table  # type: ignore[attr-defined]  # set in __post_init__ of a frozen class
        frame = pl.DataFrame({"value": values.cast(pl.String)})
        found = frame.join(table, on="value", how="left", maintain_order="left")
        known = pl.col("code").fill_null(UNKNOWN)
        codes = found.select(pl.when(pl.col("value").is_null()).then(MISSING).otherwise(known))
        return codes.to_series().to_numpy().astype(np.int32)

    def save(self, path: Path) -> None:
        """Write the values, in the order of their ids, and the ids."""
        table: pl.DataFrame = self._table  # type: ignore[attr-defined]  # as above
        table.write_parquet(path)

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: The file is missing or damaged.
        """
        try:
            table = pl.read_parquet(path)
            codes = table["code"].to_numpy()
            first = int(codes[0]) if len(codes) else FIRST
            if not np.array_equal(codes, np.arange(first, first + len(codes))):
                raise ValueError("ids out of order")
            return cls(table["value"], first)
        except (OSError, ValueError, pl.exceptions.PolarsError) as error:
            what = str(error).splitlines()[0]
            raise DataError(
                f"{path}: not a vocabulary, or damaged ({what}); prepare the data again"
            ) from error


def stable_hash(values: pl.Series, seed: int) -> UInt64[np.ndarray, " rows"]:
    """64 bits of BLAKE2b of every text: the same on every machine and in every version."""
    key = seed.to_bytes(8, "little", signed=True)
    out = np.empty(len(values), dtype=np.uint64)
    for row, text in enumerate(values):
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest()
        out[row] = int.from_bytes(digest, "little")
    return out


def mix(*columns: Shaped[np.ndarray, " rows"]) -> UInt64[np.ndarray, " rows"]:
    """64 mixed bits of several whole numbers per row (the finaliser of SplitMix64 after each)."""
    out = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        out = out * np.uint64(0x9E3779B97F4A7C15) + column.astype(np.int64, copy=False).view(np.uint64)
        out = (out ^ (out >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        out = (out ^ (out >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        out ^= out >> np.uint64(31)
    return out
