"""Histories that are windows of a user's sequence: lists merged, and batches cut from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError
from common.ragged import Ragged
from lain.data.batch import Batches
from lain.data.schema import Feature
from lain.data.store import Store
from lain.data.writer import StoreWriter
from lain.formats.log.history import behaviour_order, earlier, gap_codes, merge_lists

LISTS = st.lists(st.lists(st.integers(1, 4), max_size=6), max_size=8)


def merged(lists: list[list[int]]) -> tuple[list[int], list[int]]:
    found = merge_lists([np.array(entries, dtype=np.int64) for entries in lists])
    sequence = [lists[owner][place] for owner, place in zip(found.owner, found.place, strict=True)]
    return sequence, found.start.tolist()


@given(LISTS)
def test_every_list_is_a_window_of_the_sequence(lists: list[list[int]]) -> None:
    sequence, start = merged(lists)
    for entries, begin in zip(lists, start, strict=True):
        assert sequence[begin : begin + len(entries)] == entries
    assert len(sequence) <= sum(map(len, lists))


@pytest.mark.parametrize(
    ("lists", "sequence"),
    [
        ([[1], [1, 2], [1, 2, 3]], [1, 2, 3]),
        ([[1, 2, 3], [2, 3, 4], [4, 5]], [1, 2, 3, 4, 5]),
        ([[1, 2], [1, 2], [1, 2]], [1, 2]),
        ([[1, 2], [], [2, 3]], [1, 2, 3]),
        ([[1, 2], [3], [1, 2]], [1, 2, 3, 1, 2]),
        ([[1, 1, 2], [1, 2, 3]], [1, 1, 2, 3]),
    ],
)
def test_what_goes_on_is_stored_once(lists: list[list[int]], sequence: list[int]) -> None:
    assert merged(lists)[0] == sequence


def window_store(path: Path, sequence: list[int], windows: list[tuple[int, int]]) -> Store:
    """One user, rows with these windows."""
    start, end = (np.array([window[place] for window in windows]) for place in (0, 1))
    writer = StoreWriter(
        path, name="w", features=[Feature("item_id", "item", "categorical", 0)], num_items=9, num_users=1
    )
    with writer as store:
        store.histories(Ragged.from_lists([sequence]))
        rows = len(windows)
        store.split("train", rows).append(
            user=np.zeros(rows, np.int64),
            item=np.ones(rows, np.int64),
            start=start,
            end=end,
            length=end - start,
            label=np.arange(rows) % 2,
        )
    return Store.open(path)


@given(
    windows=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)).map(sorted), min_size=1, max_size=6),
    max_length=st.integers(1, 14),
)
def test_batches_hold_the_windows(
    tmp_path_factory: pytest.TempPathFactory, windows: list[list[int]], max_length: int
) -> None:
    sequence = [int(item) for item in np.random.default_rng(0).integers(1, 9, size=12)]
    store = window_store(tmp_path_factory.mktemp("w") / "s", sequence, [(a, b) for a, b in windows])
    store.verify()
    batches = Batches(store, store.split("train"), max_length=max_length)
    batch = batches[np.arange(len(windows))]
    spans = batch.spans()
    items = batch.items[spans.index].tolist()
    offsets = spans.offsets.tolist()
    for row, (start, end) in enumerate(windows):
        assert items[offsets[row] : offsets[row + 1]] == sequence[start:end][-max_length:]
    assert batches.cost.tolist() == [min(end - start, max_length) for start, end in windows]


def test_a_window_outside_its_sequence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="start 3 is outside"):
        window_store(tmp_path / "s", [1, 2, 3, 4], [(0, 4), (3, 2)])


@given(st.integers(0, 1000))
def test_earlier_counts_what_is_strictly_before(seed: int) -> None:
    rng = np.random.default_rng(seed)
    user, time, tie = rng.integers(4, size=30), rng.integers(6, size=30), rng.integers(99, size=30)
    order = behaviour_order(user, time, tie)
    keys = list(zip(user[order], time[order], tie[order], strict=True))
    assert keys == sorted(keys)
    who, when = rng.integers(5, size=20), rng.integers(-1, 8, size=20)
    found = earlier(user[order], time[order], who, when, 5)
    wanted = [sum((user == u) & (time < t)) for u, t in zip(who, when, strict=True)]
    assert found.tolist() == wanted


def test_gaps_are_powers_of_two_of_seconds() -> None:
    seconds = np.array([0, 0, 1, 3, 7, 10_000_000, 5])
    first = np.array([True, False, False, False, False, False, True])
    assert gap_codes(seconds * 1_000_000, first).tolist() == [1, 2, 3, 4, 5, 26, 1]
