"""Which rows make a batch: stratified by history length, resumable, shared out over processes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int
from torch.utils.data import Sampler


class StratifiedBatchSampler(Sampler[Int[np.ndarray, " samples"]]):
    """Shuffled batches of equal cost: every batch is a stratified sample over history length.

    The rows are sorted by cost and cut into strata of as many rows as there are batches; each batch
    takes one random row of every stratum. So every batch holds short and long histories in the
    proportion of the data, its total cost hardly varies, and processes that train side by side
    finish a step together.

    Args:
        cost: Cost of each row (its truncated history length).
        batch_size: Rows per batch.
        seed: With the epoch, decides the deal.
        shuffle: False gives the rows in order, for evaluation.
        rank: Number of this process.
        processes: Number of processes; batches are dealt to them in turn.

    Raises:
        ValueError: ``batch_size`` is not positive.
    """

    def __init__(
        self,
        cost: Int[np.ndarray, " rows"],
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.cost, self.batch_size, self.seed, self.shuffle = np.asarray(cost), batch_size, seed, shuffle
        self.rank, self.processes = rank, processes
        self.epoch, self.skip = 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, so that every epoch has a deal of its own (Lightning calls this)."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of one epoch, of this process."""
        batches = -(-len(self.cost) // self.batch_size)
        return -(-batches // self.processes)

    def __iter__(self) -> Iterator[Int[np.ndarray, " samples"]]:
        """The batches of the current epoch; the first ``skip`` of them are left out, once."""
        skip, self.skip = self.skip, 0
        dealt = self._deal() if self.shuffle else None
        batches = -(-len(self.cost) // self.batch_size)
        for number in range(skip, len(self)):
            batch = (number * self.processes + self.rank) % batches
            if dealt is None:
                yield np.arange(batch * self.batch_size, min((batch + 1) * self.batch_size, len(self.cost)))
            else:
                rows = dealt[:, batch]
                yield rows[rows >= 0]

    def _deal(self) -> Int[np.ndarray, "strata batches"]:
        rng = np.random.default_rng((self.seed, self.epoch))
        rows = len(self.cost)
        batches = max(-(-rows // self.batch_size), 1)
        shuffled = rng.permutation(rows)
        strata = -(-rows // batches)
        dealt = np.full(strata * batches, -1, dtype=np.int64)
        dealt[:rows] = shuffled[np.argsort(self.cost[shuffled], kind="stable")]
        return rng.permuted(dealt.reshape(strata, batches), axis=1)
