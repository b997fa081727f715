"""Ragged rows in CSR form: behaviours of users, token ids of texts, negatives of queries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int, Shaped
from numpy.typing import DTypeLike

from common.errors import DataError


def span_positions(
    start: Int[np.ndarray, "spans"], length: Int[np.ndarray, "spans"]
) -> Int[np.ndarray, "positions"]:
    """All positions of several spans, one span after the other.

    ``[start_0, start_0 + 1, ..., start_0 + length_0 - 1, start_1, ...]``, without a loop.

    Args:
        start: First position of each span.
        length: Number of positions of each span; zero is allowed.

    Returns:
        ``sum(length)`` positions.
    """
    total = int(length.sum())
    ends = np.cumsum(length, dtype=np.int64)
    shift = np.asarray(start, dtype=np.int64) - (ends - length)
    return np.repeat(shift, length) + np.arange(total, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of different lengths: row ``i`` is ``values[offsets[i] : offsets[i + 1]]``.

    The two arrays may be memory-mapped; nothing is copied until rows are gathered.

    Args:
        values: The rows, one after the other; trailing dimensions are allowed.
        offsets: Where each row begins, and the end of the last; starts at 0, never falls.

    Raises:
        DataError: The offsets do not describe the values.
    """

    values: Shaped[np.ndarray, "total ..."]
    offsets: Int[np.ndarray, "rows_plus_one"]

    def __post_init__(self) -> None:
        """Check the ends of the offsets (their order is checked by :meth:`validate`)."""
        if len(self.offsets) == 0 or self.offsets[0] != 0 or self.offsets[-1] != len(self.values):
            ends = (int(self.offsets[0]), int(self.offsets[-1])) if len(self.offsets) else "nothing"
            raise DataError(f"ragged offsets run over {ends}, but there are {len(self.values)} values")

    def validate(self) -> None:
        """Read all offsets once and check that they never fall.

        Raises:
            DataError: An offset is smaller than the one before it.
        """
        falls = np.flatnonzero(np.diff(self.offsets) < 0)
        if falls.size:
            raise DataError(f"ragged offsets fall at row {int(falls[0])}")

    @classmethod
    def from_lists(cls, rows: Iterable[Sequence[Any]], dtype: DTypeLike = np.int64) -> Ragged:
        """Make a ragged array of Python sequences."""
        arrays = [np.asarray(row, dtype=dtype) for row in rows]
        offsets = np.zeros(len(arrays) + 1, dtype=np.int64)
        np.cumsum([len(a) for a in arrays], out=offsets[1:])
        return cls(np.concatenate(arrays) if arrays else np.zeros(0, dtype=dtype), offsets)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Shaped[np.ndarray, "length ..."]:
        """One row, as a view."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of a ragged array with {len(self)} rows")
        row %= len(self)
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> Int[np.ndarray, "rows"]:
        """Number of values of each row."""
        return np.diff(self.offsets)

    def slices(self, start: Int[np.ndarray, "spans"], stop: Int[np.ndarray, "spans"]) -> Ragged:
        """Rows cut out of the values by absolute position: ``values[start[i] : stop[i]]``."""
        length = np.asarray(stop, dtype=np.int64) - np.asarray(start, dtype=np.int64)
        offsets = np.zeros(len(length) + 1, dtype=np.int64)
        np.cumsum(length, out=offsets[1:])
        return Ragged(self.values[span_positions(np.asarray(start), length)], offsets)

    def gather(self, rows: Int[np.ndarray, "chosen"]) -> Ragged:
        """The chosen rows, copied, in the order asked for; a row may be asked for twice."""
        return self.slices(self.offsets[:-1][rows], self.offsets[1:][rows])

    @classmethod
    def concatenate(cls, parts: Sequence[Ragged]) -> Ragged:
        """The rows of all parts, one after the other; at least one part."""
        lengths = np.concatenate([part.lengths for part in parts])
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
        return cls(np.concatenate([part.values for part in parts]), offsets)

    def clip(self, limit: int, keep: Literal["first", "last"] = "last") -> Ragged:
        """Every row cut to at most ``limit`` values, from its front or its back."""
        if limit < 0:
            raise ValueError(f"limit must not be negative, got {limit}")
        length = np.minimum(self.lengths, limit)
        start = self.offsets[:-1] if keep == "first" else self.offsets[1:] - length
        return self.slices(start, start + length)

    def pad(
        self, value: Any = 0, side: Literal["left", "right"] = "right"
    ) -> tuple[Shaped[np.ndarray, "rows longest ..."], Bool[np.ndarray, "rows longest"]]:
        """A rectangle for consumers that insist on one, and which of its cells are ``valid``."""
        length = self.lengths
        longest = int(length.max(initial=0))
        column = np.arange(longest)
        valid = column < length[:, None] if side == "right" else column >= longest - length[:, None]
        out = np.full((len(self), longest, *self.values.shape[1:]), value, dtype=self.values.dtype)
        out[valid] = self.values[self.offsets[0] :]
        return out, valid

    def save(self, folder: Path, name: str) -> None:
        """Write ``folder/name.values.npy`` and ``folder/name.offsets.npy``."""
        np.save(folder / f"{name}.values.npy", self.values, allow_pickle=False)
        np.save(folder / f"{name}.offsets.npy", self.offsets, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path, name: str) -> Ragged:
        """Memory-map what :meth:`save` wrote.

        Raises:
            DataError: A file is missing or cut off.
        """
        arrays = []
        for part in ("values", "offsets"):
            path = folder / f"{name}.{part}.npy"
            try:
                arrays.append(np.load(path, mmap_mode="r", allow_pickle=False))
            except Exception as error:  # broken bytes raise anything
                raise DataError(f"{path}: cannot be read ({error}); prepare the data again") from error
            if arrays[-1].ndim < 1 or (part == "offsets" and arrays[-1].dtype.kind not in "iu"):
                raise DataError(f"{path}: cannot be read (it holds other values); prepare the data again")
        try:
            return cls(arrays[0], arrays[1])
        except DataError as error:
            raise DataError(f"{folder / name}: {error}; prepare the data again") from None
