"""Rows of different lengths."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from common.ragged import Ragged

ROWS = st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=5)


@given(st.lists(ROWS, min_size=1, max_size=4))
def test_parts_put_together_hold_their_rows_in_order(parts: list[list[list[int]]]) -> None:
    whole = Ragged.concatenate([Ragged.from_lists(rows) for rows in parts])
    whole.validate()
    assert [row.tolist() for row in (whole[n] for n in range(len(whole)))] == [r for p in parts for r in p]


@given(ROWS, st.data())
def test_gathered_rows_are_those_asked_for(rows: list[list[int]], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=6)) if rows else []
    found = Ragged.from_lists(rows).gather(np.array(chosen, dtype=np.int64))
    assert [found[n].tolist() for n in range(len(found))] == [rows[n] for n in chosen]
