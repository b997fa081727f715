"""Batches without padding: every history once, every item once, per sample a span.

A batch is four tables and pointers between them::

    items    distinct items the batch mentions            [items]
    pool     histories, each needed stretch once           [pool]     -> items
    start, count   a sample's span                         [samples]  -> pool
    target   the item the sample asks about                [samples]  -> items

Two samples of one user point into the same stretch of the pool. True length travels beside the
span, whose length is the truncated one.

Where columns of the behaviours are read, a row of ``items`` is a distinct behaviour: an item with the values
of those columns, and the target is its item with nothing known of it, which is 0 in every column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from common.ragged import span_positions
from lain.data.schema import Feature
from lain.data.store import Split, Store
from lain.ops.spans import Spans


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch of impressions; see the module's picture.

    Args:
        items: Item index of each distinct item (with columns: of each distinct behaviour).
        pool: Row in ``items`` of each behaviour; each needed stretch of a history once.
        start: First place in the pool of each sample's span.
        count: Number of behaviours in each sample's span (the truncated length).
        target: Row in ``items`` of each sample's target.
        length: True length of each sample's history, before any truncation.
        label: 1 for a click, 0 for none.
        rows: Row of the split that each sample is.
        item_features: Values of the item features for ``items``.
        features: Values of the user and context features, per sample.
        columns: Values of the columns of the behaviours that are read, for ``items``.
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
    columns: dict[str, Num[Tensor, "items ..."]] = field(default_factory=dict)

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
        columns: Columns of the behaviours to read with the items.

    Raises:
        ValueError: ``max_length`` is not positive.
        DataError: The data set has no such column.
    """

    def __init__(self, store: Store, split: Split, *, max_length: int, columns: Sequence[str] = ()) -> None:
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        self.store, self.split, self.max_length = store, split, max_length
        self.columns = tuple(store.column(name) for name in columns)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.split)

    @property
    def cost(self) -> Int[np.ndarray, " rows"]:
        """Behaviours each row brings into a batch: its truncated length."""
        split = self.split
        stored = split.end if split.start is None else split.end - split.start
        cost: Int[np.ndarray, " rows"] = np.minimum(stored, self.max_length)
        return cost

    def __getitem__(self, rows: Int[np.ndarray, " samples"]) -> Batch:
        """The batch of these rows, in this order."""
        store, split = self.store, self.split
        user = np.asarray(split.user[rows], dtype=np.int64)
        end = np.asarray(split.end[rows], dtype=np.int64)
        begin_of_history = 0 if split.start is None else np.asarray(split.start[rows], dtype=np.int64)
        first = np.maximum(end - self.max_length, begin_of_history)
        owner, stretch, stretch_length, start = _stretches(user, first, end)
        begin = store.histories.offsets[owner] + stretch
        place = span_positions(begin, stretch_length)
        pooled = np.asarray(store.histories.values[place], dtype=np.int64)
        item = np.asarray(split.item[rows])
        columns: dict[str, Num[np.ndarray, "items ..."]] = {}
        if self.columns:
            values = [np.asarray(store.behaviours[c.name][place]) for c in self.columns]
            first_place, pool, target = _distinct_behaviours(pooled, item, self.columns, values)
            items = np.concatenate([pooled, item])[first_place]
            columns = {
                c.name: _with_unknown(v, len(item))[first_place]
                for c, v in zip(self.columns, values, strict=True)
            }
        else:
            items, pool, target = _distinct(pooled, item, store.num_items)
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
            columns={name: _tensor(values) for name, values in columns.items()},
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


def _distinct_behaviours(
    pooled: Int[np.ndarray, " pool"],
    target: Int[np.ndarray, " samples"],
    columns: Sequence[Feature],
    values: Sequence[Num[np.ndarray, "pool ..."]],
) -> tuple[Int[np.ndarray, " items"], Int[np.ndarray, " pool"], Int[np.ndarray, " samples"]]:
    """Each item with its columns once.

    Item and categorical columns are the digits of one whole number. A list, a vector or a time hardly ever
    repeats: there every behaviour is a row of its own.

    Returns:
        For each distinct behaviour one of its places among pool and targets, and the row of each place of
        the pool and of each target.
    """
    pairs = len(pooled) + len(target)
    code = np.concatenate([pooled, target]).astype(np.int64)
    for column, value in zip(columns, values, strict=True):
        if column.kind != "categorical":
            code[: len(pooled)] = np.arange(len(pooled))
            code[len(pooled) :] = len(pooled) + target
            break
        if int(code.max(initial=0)) >= np.iinfo(np.int64).max // max(column.size, 1) - 1:
            code = np.unique(code, return_inverse=True)[1]
        code = code * column.size + _with_unknown(value, len(target))
    _, place, row = np.unique(code, return_index=True, return_inverse=True)
    assert len(row) == pairs
    return place, row[: len(pooled)], row[len(pooled) :]


def _with_unknown(
    values: Num[np.ndarray, "pool ..."], targets: int
) -> Num[np.ndarray, "pool_and_targets ..."]:
    """The values of the pool, then 0, unknown, for every target."""
    return np.concatenate([values, np.zeros((targets, *values.shape[1:]), values.dtype)])


def _tensor(values: Num[np.ndarray, "n ..."]) -> Num[Tensor, "n ..."]:
    if np.issubdtype(values.dtype, np.integer):
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
