"""Batches against naive slices of the histories; the deal of rows to batches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from common.errors import DataError
from lain.data.batch import Batch, Batches
from lain.data.module import CTRData
from lain.data.sampler import StratifiedBatchSampler
from lain.data.schema import Feature
from lain.data.store import Split, Store
from small_store import FEATURES, Row, write

HISTORIES = [
    [3, 1, 2, 9, 8, 7, 6, 5, 4, 3],
    [],
    [11],
    [2, 2, 2, 2, 1, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1],
    [5, 6],
]
ITEMS = 13


def all_rows() -> list[Row]:
    """Every user at every moment, out of order; every third row was cut off at its source."""
    rows = [
        Row(
            user=user,
            item=1 + (3 * user + end) % (ITEMS - 1),
            end=end,
            label=end % 2,
            length=end + 100 * (end % 3 == 0),
            hour=(user + end) % 24,
        )
        for user, history in enumerate(HISTORIES)
        for end in range(len(history) + 1)
    ]
    return [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]


ROWS = all_rows()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("batch") / "store"
    splits = {"train": ROWS, "valid": ROWS[:7], "test": ROWS[5:6]}
    return write(path, HISTORIES, splits, num_items=ITEMS)


def make(store: Store, rows: Sequence[int], max_length: int, split: str = "train") -> Batch:
    return Batches(store, store.split(split), max_length=max_length)[np.asarray(rows)]


def histories_of(batch: Batch) -> list[list[int]]:
    """The item indices of each sample's span."""
    spans = batch.spans()
    items = batch.items[spans.index]
    ends = spans.offsets.tolist()
    return [items[a:b].tolist() for a, b in pairwise(ends)]


class TestBatches:
    @pytest.mark.parametrize("max_length", [1, 2, 5, 10, 1000])
    def test_all_rows_are_naive_slices(self, store: Store, max_length: int) -> None:
        batch = make(store, range(len(ROWS)), max_length)
        wanted = [HISTORIES[r.user][max(0, r.end - max_length) : r.end] for r in ROWS]
        assert histories_of(batch) == wanted
        assert batch.count.tolist() == [len(w) for w in wanted]

    @given(
        rows=st.lists(st.integers(0, len(ROWS) - 1), min_size=1, max_size=12), max_length=st.integers(1, 20)
    )
    def test_any_rows(self, store: Store, rows: list[int], max_length: int) -> None:
        """In any order, and a row twice."""
        batch = make(store, rows, max_length)
        chosen = [ROWS[r] for r in rows]
        assert histories_of(batch) == [HISTORIES[r.user][max(0, r.end - max_length) : r.end] for r in chosen]
        assert len(batch) == len(rows)
        assert batch.rows.tolist() == rows
        assert batch.items[batch.target].tolist() == [r.item for r in chosen]
        assert batch.label.tolist() == [r.label for r in chosen]
        assert batch.label.dtype == torch.float32

    def test_true_length_beside_the_truncated_one(self, store: Store) -> None:
        batch = make(store, range(len(ROWS)), 3)
        assert batch.length.tolist() == [r.length for r in ROWS]
        assert batch.count.tolist() == [min(r.end, 3) for r in ROWS]
        assert (batch.length > batch.count).any()

    @pytest.mark.parametrize("max_length", [2, 4, 1000])
    def test_each_behaviour_and_item_once(self, store: Store, max_length: int) -> None:
        """The pool holds the union of a user's windows, the items what is mentioned, sorted."""
        batch = make(store, range(len(ROWS)), max_length)
        needed = {(r.user, place) for r in ROWS for place in range(max(0, r.end - max_length), r.end)}
        assert len(batch.pool) == len(needed)
        assert sorted(batch.items[batch.pool].tolist()) == sorted(HISTORIES[u][p] for u, p in needed)
        mentioned = {HISTORIES[u][p] for u, p in needed} | {r.item for r in ROWS}
        assert batch.items.tolist() == sorted(mentioned)

    def test_windows_that_do_not_touch_are_apart(self, store: Store) -> None:
        """Of one long user, only the two stretches that two far rows read."""
        early, late = (next(i for i, r in enumerate(ROWS) if (r.user, r.end) == (3, end)) for end in (3, 16))
        batch = make(store, [late, early], 3)
        assert len(batch.pool) == 6
        assert histories_of(batch) == [HISTORIES[3][13:16], HISTORIES[3][:3]]

    def test_no_history_at_all(self, store: Store) -> None:
        empty = [i for i, r in enumerate(ROWS) if r.end == 0]
        batch = make(store, empty, 5)
        assert len(batch.pool) == 0
        assert histories_of(batch) == [[] for _ in empty]

    def test_features(self, store: Store) -> None:
        batch = make(store, range(len(ROWS)), 4)
        items, users = batch.items.numpy(), [r.user for r in ROWS]
        assert set(batch.item_features) == {"category", "tags", "image"}
        for name in ("category", "tags", "image"):
            assert np.array_equal(batch.item_features[name].numpy(), store.items[name][items])
        assert batch.item_features["category"].dtype == batch.item_features["tags"].dtype == torch.int64
        assert batch.item_features["image"].dtype == torch.float32
        assert set(batch.features) == {"user_id", "group", "hour"}
        assert batch.features["user_id"].tolist() == users
        assert batch.features["group"].tolist() == store.users["group"][users].tolist()
        assert batch.features["hour"].tolist() == [r.hour for r in ROWS]

    def test_nothing_points_into_the_file(self, store: Store) -> None:
        """A batch owns its memory: what is done to it does not reach the read-only store."""
        batch = make(store, [0, 1], 4)
        for value in (batch.label, batch.pool, *batch.item_features.values(), *batch.features.values()):
            value.zero_()
        assert histories_of(make(store, [0, 1], 4)) != histories_of(batch) or not len(batch.pool)

    def test_cost_is_the_truncated_length(self, store: Store) -> None:
        batches = Batches(store, store.split("train"), max_length=4)
        assert batches.cost.tolist() == [min(r.end, 4) for r in ROWS]
        assert len(batches) == len(ROWS)

    def test_moved_batch_is_the_same(self, store: Store) -> None:
        batch = make(store, [0, 1, 2], 4)
        moved = batch.to("cpu")
        assert histories_of(moved) == histories_of(batch)
        assert moved.to("meta").features["hour"].is_meta

    def test_no_length(self, store: Store) -> None:
        with pytest.raises(ValueError, match="max_length must be at least 1, got 0"):
            Batches(store, store.split("train"), max_length=0)


COLUMNS = (
    Feature("action", "behaviour", "categorical", 0),
    Feature("surface", "behaviour", "categorical", 3),
    Feature("time", "behaviour", "time", 0),
    Feature("dwell", "behaviour", "vector", 0, 1),
)
PLACES = sum(len(history) for history in HISTORIES)
BEGINS = [sum(len(h) for h in HISTORIES[:user]) for user in range(len(HISTORIES))]


def column_values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        "action": rng.integers(0, 3, PLACES),
        "surface": rng.integers(0, 3, PLACES),
        "time": rng.integers(0, 2**40, PLACES),
        "dwell": rng.random((PLACES, 1)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def columned(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The same rows; every behaviour has columns."""
    path = tmp_path_factory.mktemp("batch") / "store"
    features = (*FEATURES, *COLUMNS)
    splits = {"train": ROWS, "valid": ROWS[:7], "test": ROWS[5:6]}
    return write(path, HISTORIES, splits, num_items=ITEMS, features=features, columns=column_values())


class TestColumns:
    @pytest.mark.parametrize(
        "columns", [("action",), ("surface", "action"), ("action", "time"), ("dwell", "surface"), ("time",)]
    )
    @given(
        rows=st.lists(st.integers(0, len(ROWS) - 1), min_size=1, max_size=12), max_length=st.integers(1, 20)
    )
    def test_every_behaviour_keeps_its_own(
        self, columned: Store, columns: tuple[str, ...], rows: list[int], max_length: int
    ) -> None:
        batches = Batches(columned, columned.split("train"), max_length=max_length, columns=columns)
        batch = batches[np.asarray(rows)]
        chosen = [ROWS[r] for r in rows]
        assert histories_of(batch) == [HISTORIES[r.user][max(0, r.end - max_length) : r.end] for r in chosen]
        assert batch.items[batch.target].tolist() == [r.item for r in chosen]
        spans, values = batch.spans(), column_values()
        assert list(batch.columns) == list(columns)
        for name in columns:
            found = batch.columns[name][spans.index].numpy()
            first = [BEGINS[r.user] + max(0, r.end - max_length) for r in chosen]
            last = [BEGINS[r.user] + r.end for r in chosen]
            wanted = [values[name][place] for a, b in zip(first, last, strict=True) for place in range(a, b)]
            assert found.tolist() == [np.asarray(w).tolist() for w in wanted]
            assert not batch.columns[name][batch.target].any()  # nothing is known of the target
        for name in ("category", "image"):
            assert np.array_equal(
                batch.item_features[name].numpy(), columned.items[name][batch.items.numpy()]
            )

    def test_each_distinct_behaviour_once(self, columned: Store) -> None:
        batches = Batches(columned, columned.split("train"), max_length=1000, columns=("action", "surface"))
        batch = batches[np.arange(len(ROWS))]
        rows = torch.stack([batch.items, batch.columns["action"], batch.columns["surface"]], 1).tolist()
        values = column_values()
        flat = [item for history in HISTORIES for item in history]
        pooled = set(zip(flat, values["action"].tolist(), values["surface"].tolist(), strict=True))
        assert sorted(map(tuple, rows)) == sorted(pooled | {(r.item, 0, 0) for r in ROWS})

    def test_columns_that_nobody_asks_for_change_nothing(self, store: Store, columned: Store) -> None:
        for rows in ([0, 3, 3, 9], range(len(ROWS))):
            plain, other = make(store, rows, 4), make(columned, rows, 4)
            assert other.columns == {}
            assert torch.equal(plain.items, other.items)
            assert torch.equal(plain.pool, other.pool)

    def test_sizes_beyond_a_whole_number(self, tmp_path: Path) -> None:
        """Distinct behaviours are told apart though the product of all sizes has no 64 bits."""
        features = (*FEATURES, *(Feature(f"c{n}", "behaviour", "categorical", 2**31 - 1) for n in range(5)))
        values = {f"c{n}": np.array([2**31 - 2, 2**31 - 2, n == 4, 0]) for n in range(5)}
        rows = [Row(user=0, item=1, end=4)]
        store = write(tmp_path / "s", [[1, 1, 2, 1]], {"train": rows}, num_items=3, features=features,
                      columns=values)  # fmt: skip
        batch = Batches(store, store.split("train"), max_length=4, columns=tuple(values))[np.arange(1)]
        spans = batch.spans()
        assert batch.items[spans.index].tolist() == [1, 1, 2, 1]
        assert len(batch.items) == 3
        assert spans.index[3] == batch.target[0]  # a behaviour of which nothing is known is its item
        for name, wanted in values.items():
            assert batch.columns[name][spans.index].tolist() == wanted.tolist()

    def test_a_column_that_is_not_there(self, store: Store, columned: Store) -> None:
        with pytest.raises(DataError, match="its behaviours are item ids alone"):
            CTRData(store.path, max_length=4, batch_size=6, columns=("action",))
        with pytest.raises(DataError, match="did you mean 'action'"):
            Batches(columned, columned.split("train"), max_length=4, columns=("actions",))

    def test_a_batch_moves_with_its_columns(self, columned: Store) -> None:
        data = CTRData(columned.path, max_length=4, batch_size=6, columns=("action",))
        batch = next(iter(data.eval_loader("valid")))
        assert batch.columns["action"].dtype == torch.int64
        assert batch.to("meta").columns["action"].is_meta


def costs(rows: int, seed: int = 0) -> np.ndarray:
    """Heavy-tailed, like history lengths."""
    return np.random.default_rng(seed).lognormal(4, 1.2, rows).clip(0, 1000).astype(np.int64)


def dealt(sampler: StratifiedBatchSampler) -> list[list[int]]:
    return [batch.tolist() for batch in sampler]


class TestStratifiedBatchSampler:
    @given(
        rows=st.integers(1, 60), batch_size=st.integers(1, 70), epoch=st.integers(0, 3), shuffle=st.booleans()
    )
    def test_every_row_once(self, rows: int, batch_size: int, epoch: int, shuffle: bool) -> None:
        sampler = StratifiedBatchSampler(costs(rows), batch_size=batch_size, shuffle=shuffle)
        sampler.set_epoch(epoch)
        batches = dealt(sampler)
        assert sorted(row for batch in batches for row in batch) == list(range(rows))
        assert len(batches) == len(sampler) == -(-rows // batch_size)
        assert max(len(batch) for batch in batches) <= batch_size
        if shuffle:
            assert max(len(batch) for batch in batches) - min(len(batch) for batch in batches) <= 1

    def test_cost_hardly_varies(self) -> None:
        """At most a tenth of the spread of random batches."""
        cost = costs(4096)
        even = np.array([cost[batch].sum() for batch in StratifiedBatchSampler(cost, batch_size=64)])
        shuffled = np.random.default_rng(0).permutation(4096).reshape(-1, 64)
        random = cost[shuffled].sum(1)
        assert even.std() < 0.1 * random.std()

    def test_every_batch_holds_short_and_long(self) -> None:
        cost = costs(4096)
        for quantile in (0.1, 0.5, 0.9):
            bar = np.quantile(cost, quantile)
            shares = [np.mean(cost[batch] <= bar) for batch in StratifiedBatchSampler(cost, batch_size=64)]
            assert np.ptp(shares) <= 2 / 64

    def test_equal_costs_are_a_plain_shuffle(self) -> None:
        """Ties are broken at random: neighbours in the file are not neighbours in a batch."""
        batches = dealt(StratifiedBatchSampler(np.full(400, 7), batch_size=20))
        together = sum(row + 1 in batch for batch in batches for row in batch)
        assert together < 60  # 19 expected, 380 if the order were kept

    def test_epochs_are_dealt_anew_and_the_same_again(self) -> None:
        sampler = StratifiedBatchSampler(costs(100), batch_size=10, seed=3)
        first = dealt(sampler)
        assert dealt(sampler) == first
        sampler.set_epoch(1)
        second = dealt(sampler)
        assert second != first
        fresh = StratifiedBatchSampler(costs(100), batch_size=10, seed=3)
        fresh.set_epoch(1)
        assert dealt(fresh) == second
        assert dealt(StratifiedBatchSampler(costs(100), batch_size=10, seed=4)) != first

    @pytest.mark.parametrize("processes", [2, 3, 4])
    @pytest.mark.parametrize("rows", [120, 121])
    def test_processes_share_an_epoch(self, rows: int, processes: int) -> None:
        """Together one process's batches, in turn; only to come out even is a batch given twice."""
        cost = costs(rows)
        alone = dealt(StratifiedBatchSampler(cost, batch_size=10))
        ranks = [
            dealt(StratifiedBatchSampler(cost, batch_size=10, rank=r, processes=processes))
            for r in range(processes)
        ]
        steps = -(-len(alone) // processes)
        assert [len(batches) for batches in ranks] == [steps] * processes
        together = [ranks[number % processes][number // processes] for number in range(steps * processes)]
        assert together[: len(alone)] == alone
        assert together[len(alone) :] == alone[: steps * processes - len(alone)]

    def test_processes_finish_a_step_together(self) -> None:
        cost = costs(4096)
        loads = [
            np.array(
                [
                    cost[batch].sum()
                    for batch in StratifiedBatchSampler(cost, batch_size=64, rank=rank, processes=2)
                ]
            )
            for rank in (0, 1)
        ]
        assert np.abs(loads[0] / loads[1] - 1).max() < 0.1

    def test_skip_leaves_out_what_is_done_once(self) -> None:
        sampler = StratifiedBatchSampler(costs(100), batch_size=10)
        whole = dealt(sampler)
        sampler.skip = 4
        assert dealt(sampler) == whole[4:]
        assert dealt(sampler) == whole

    def test_in_order(self) -> None:
        sampler = StratifiedBatchSampler(costs(25), batch_size=10, shuffle=False)
        assert dealt(sampler) == [list(range(10)), list(range(10, 20)), list(range(20, 25))]

    @pytest.mark.parametrize("shuffle", [True, False])
    def test_no_rows(self, shuffle: bool) -> None:
        assert dealt(StratifiedBatchSampler(np.zeros(0, dtype=np.int64), batch_size=4, shuffle=shuffle)) == []

    def test_no_batch(self) -> None:
        with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
            StratifiedBatchSampler(costs(5), batch_size=0)


def same(a: Batch, b: Batch) -> bool:
    """Whether two batches hold the same values everywhere."""

    def flat(batch: Batch) -> dict[str, Tensor]:
        values: dict[str, Any] = dict(vars(batch))
        nested = {f"{k}.{n}": t for k, v in values.items() if isinstance(v, dict) for n, t in v.items()}
        return nested | {k: v for k, v in values.items() if isinstance(v, Tensor)}

    x, y = flat(a), flat(b)
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


class TestCTRData:
    def make(self, store: Store, **how: Any) -> CTRData:
        return CTRData(store.path, max_length=4, batch_size=6, **how)

    def test_evaluation_is_in_order(self, store: Store) -> None:
        loader = self.make(store, eval_batch_size=10).eval_loader("train")
        assert [r for batch in loader for r in batch.rows.tolist()] == list(range(len(ROWS)))
        valid = list(self.make(store).val_dataloader())
        assert [len(batch) for batch in valid] == [7]

    def test_every_training_row_once(self, store: Store) -> None:
        rows = [r for batch in self.make(store).train_dataloader() for r in batch.rows.tolist()]
        assert sorted(rows) == list(range(len(ROWS)))

    def test_goes_on_where_it_stopped(self, store: Store) -> None:
        loader = self.make(store, seed=5).train_dataloader()
        assert isinstance(loader.sampler, StratifiedBatchSampler)
        loader.sampler.set_epoch(2)
        whole = list(loader)
        data = self.make(store, seed=5)
        data.load_state_dict({"epoch": 2, "batches": 3})
        rest = list(data.train_dataloader())
        assert len(rest) == len(whole) - 3
        assert all(same(a, b) for a, b in zip(rest, whole[3:], strict=True))

    def test_worker_processes_change_nothing(self, store: Store) -> None:
        alone = list(self.make(store).eval_loader("train"))
        worker = list(self.make(store, workers=1).eval_loader("train"))
        assert len(alone) == len(worker)
        assert all(same(a, b) for a, b in zip(alone, worker, strict=True))

    def test_mistakes(self, store: Store, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="eval_batch_size must be at least 1, got 0"):
            self.make(store, eval_batch_size=0)
        with pytest.raises(DataError, match="no split 'tset'"):
            self.make(store).batches("tset")
        with pytest.raises(DataError, match="not a prepared data set"):
            CTRData(tmp_path, max_length=4, batch_size=6)

    def test_splits_are_their_own(self, store: Store) -> None:
        split = store.split("test")
        assert isinstance(split, Split)
        batch = make(store, [0], 5, "test")
        assert batch.items[batch.target].tolist() == [ROWS[5].item]
