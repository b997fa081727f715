"""Which rows train, validate and test: order statistics of the time without holding the times."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int

Times = Callable[[], Iterator[Int[np.ndarray, " rows"]]]
_BINS = 1 << 16


def bounds(times: Times) -> tuple[int, int, int]:
    """The number of times, the first and the last one; 0, 0, 0 without any."""
    count, low, high = 0, 0, 0
    for piece in times():
        if len(piece):
            smallest, largest = int(piece.min()), int(piece.max())
            low, high = (min(low, smallest), max(high, largest)) if count else (smallest, largest)
            count += len(piece)
    return count, low, high


def order_statistic(times: Times, rank: int, low: int, high: int) -> int:
    """The time that stands at a rank (from 0) in time order, by counting in ever finer bins.

    Every pass over the times narrows the range 65,536-fold: at most four passes.

    Args:
        times: Gives the times in pieces, as often as it is called.
        rank: The rank.
        low: The first time.
        high: The last time.
    """
    before = 0
    while high > low:
        step = max((high - low) // _BINS + 1, 1)
        counts = np.zeros(_BINS + 1, dtype=np.int64)
        for piece in times():
            inside = piece[(piece >= low) & (piece <= high)]
            counts += np.bincount((inside - low) // step, minlength=_BINS + 1)[: _BINS + 1]
        reached = before + np.cumsum(counts)
        at = int(np.searchsorted(reached, rank, side="right"))
        before = int(reached[at] - counts[at])
        low, high = low + at * step, min(high, low + (at + 1) * step - 1)
    return low


def even_edges(times: Times, low: int, high: int, parts: int) -> Int[np.ndarray, " edges"]:
    """Times that cut the rows into parts of about the same size, ascending, without the ends."""
    if parts < 2 or high <= low:
        return np.zeros(0, dtype=np.int64)
    step = (high - low) // _BINS + 1
    counts = np.zeros(_BINS + 1, dtype=np.int64)
    for piece in times():
        counts += np.bincount((piece - low) // step, minlength=_BINS + 1)[: _BINS + 1]
    reached = np.cumsum(counts)
    wanted = np.arange(1, parts) * reached[-1] / parts
    return np.unique(low + (np.searchsorted(reached, wanted) + 1) * step)
