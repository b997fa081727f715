"""Batches without padding: every history once, every item once, per sample a span.

A batch is four tables and pointers between them::

    items    distinct items the batch mentions            [items]
    pool     histories, each needed stretch once           [pool]     -> items
    start, count   a sample's span                         [samples]  -> pool
    target   the item the sample asks about                [samples]  -> items

Two samples of one user point into the same stretch of the pool. True length travels beside the
span, whose length is the truncated one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torch.utils.data import Sampler

from common.ragged import span_positions
from lain.data.store import Split, Store
from lain.ops.spans import Spans


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch of impressions; see the module's picture.

    Args:
        items: Item index of each distinct item.
        pool: Row in ``items`` of each behaviour; each needed stretch of a history once.
        start: First place in the pool of each sample's span.
        count: Number of behaviours in each sample's span (the truncated length).
        target: Row in ``items`` of each sample's target.
        length: True length of each sample's history, before any truncation.
        label: 1 for a click, 0 for none.
        rows: Row of the split that each sample is.
        item_features: Values of the item features for ``items``.
        features: Values of the user and context features, per sample.
    """

    items: Int[Tensor, " items"]
    pool: Int[Tensor, " pool"]
    start: Int[Tensor, " samples"]
    count: Int[Tensor, " samples"]
    target: Int[Tensor, " samples"]
    length: Int[Tensor, " samples"]
    label: Float[Tensor, " samples"]
    rows: Int[Tensor, " samples"]
    item_features: dict[str, Num[Tensor, "items ..."]]
    features: dict[str, Num[Tensor, "samples ..."]]

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.target)

    def spans(self) -> Spans:
        """Each sample's behaviours as rows of ``items``."""
        return Spans.from_runs(self.pool, self.start, self.count)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        return self._each(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, for asynchronous copies to a GPU."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {}
        for part in fields(self):
            value = getattr(self, part.name)
            is_dict = isinstance(value, dict)
            changed[part.name] = {k: change(v) for k, v in value.items()} if is_dict else change(value)
        return Batch(**changed)


class Batches(torch.utils.data.Dataset[Batch]):
    """Makes a :class:`Batch` of any rows of a split.

    Args:
        store: The prepared data set.
        split: The rows.
        max_length: Behaviours of a history that are kept, counted from its end.

    Raises:
        ValueError: ``max_length`` is not positive.
    """

    def __init__(self, store: Store, split: Split, *, max_length: int) -> None:
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        self.store, self.split, self.max_length = store, split, max_length

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.split)

    @property
    def cost(self) -> Int[np.ndarray, " rows"]:
        """Behaviours each row brings into a batch: its truncated length."""
        cost: Int[np.ndarray, " rows"] = np.minimum(self.split.end, self.max_length)
        return cost

    def __getitem__(self, rows: Int[np.ndarray, " samples"]) -> Batch:
        """The batch of these rows, in this order."""
        store, split = self.store, self.split
        user = np.asarray(split.user[rows], dtype=np.int64)
        end = np.asarray(split.end[rows], dtype=np.int64)
        first = np.maximum(end - self.max_length, 0)
        owner, stretch, stretch_length, start = _stretches(user, first, end)
        begin = store.histories.offsets[owner] + stretch
        pooled = np.asarray(store.histories.values[span_positions(begin, stretch_length)], dtype=np.int64)
        items, pool, target = _distinct(pooled, np.asarray(split.item[rows]), store.num_items)
        features = {name: values[user] for name, values in store.users.items()}
        if any(f.name == "user_id" for f in store.features):
            features["user_id"] = user
        features.update({name: values[rows] for name, values in split.context.items()})
        return Batch(
            items=torch.from_numpy(items),
            pool=torch.from_numpy(pool),
            start=torch.from_numpy(start),
            count=torch.from_numpy(end - first),
            target=torch.from_numpy(target),
            length=torch.from_numpy(np.asarray(split.length[rows], dtype=np.int64)),
            label=torch.from_numpy(np.asarray(split.label[rows], dtype=np.float32)),
            rows=torch.from_numpy(np.asarray(rows, dtype=np.int64)),
            item_features={name: _tensor(values[items]) for name, values in store.items.items()},
            features={name: _tensor(values) for name, values in features.items()},
        )


def _stretches(
    user: Int[np.ndarray, " samples"], first: Int[np.ndarray, " samples"], end: Int[np.ndarray, " samples"]
) -> tuple[
    Int[np.ndarray, " stretches"],
    Int[np.ndarray, " stretches"],
    Int[np.ndarray, " stretches"],
    Int[np.ndarray, " samples"],
]:
    """Merge overlapping spans of one user, so that each behaviour is pooled once.

    Returns:
        User and first behaviour of each merged stretch, its length, and each sample's start in the
        pool that the stretches form one after the other.
    """
    samples = len(user)
    order = np.lexsort((first, user))
    user, first, end = user[order], first[order], end[order]
    # The furthest end so far, per user: users are in order, so user * bound keeps them apart.
    bound = int(end.max(initial=0)) + 1
    reach = np.maximum.accumulate(user * bound + end) - user * bound
    opens = np.ones(samples, dtype=bool)
    opens[1:] = (user[1:] != user[:-1]) | (first[1:] > reach[:-1])
    which = np.cumsum(opens) - 1
    heads = np.flatnonzero(opens)
    lasts = np.append(heads[1:], samples) - 1
    length = reach[lasts] - first[heads]
    place = np.cumsum(length) - length
    start = np.empty(samples, dtype=np.int64)
    start[order] = place[which] + first - first[heads][which]
    return user[heads], first[heads], length, start


def _distinct(
    pooled: Int[np.ndarray, " pool"], target: Int[np.ndarray, " samples"], num_items: int
) -> tuple[Int[np.ndarray, " items"], Int[np.ndarray, " pool"], Int[np.ndarray, " samples"]]:
    """Each item once, in ascending order; a table of flags is faster than sorting the pool."""
    mentioned = np.zeros(num_items, dtype=bool)
    mentioned[pooled] = True
    mentioned[target] = True
    items = np.flatnonzero(mentioned)
    row = np.empty(num_items, dtype=np.int64)
    row[items] = np.arange(len(items))
    return items, row[pooled], row[target]


def _tensor(values: Num[np.ndarray, "n ..."]) -> Num[Tensor, "n ..."]:
    if np.issubdtype(values.dtype, np.integer):
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


class EvenBatches(Sampler[Int[np.ndarray, " samples"]]):
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
