"""The search of one user's history for many candidates chooses what the search pair by pair chooses."""

from __future__ import annotations

import pytest
import torch

from lain.ops.products import span_dot
from lain.ops.search import span_top
from lain.ops.spans import RepeatedSpan, Spans


def pair_by_pair(span: torch.Tensor, samples: int) -> Spans:
    """The same pairs, all written out."""
    return Spans(torch.arange(samples + 1) * len(span), span.repeat(samples))


@pytest.mark.parametrize("kind", ["random", "ties", "nearly ties"])
@pytest.mark.parametrize(("length", "count"), [(5, 8), (60, 20), (97, 10), (400, 7)])
def test_equal_to_the_search_pair_by_pair(kind: str, length: int, count: int) -> None:
    torch.manual_seed(length)
    query, table = torch.randn(9, 24), torch.randn(300, 24)
    if kind == "ties":
        query, table = query.round(), table.round()
    if kind == "nearly ties":  # thousands of products within a few units of the last place
        table = torch.randn(1, 24) + 1e-7 * table
    span = torch.randint(300, (length,))
    with torch.inference_mode():
        found = span_top(query, table, RepeatedSpan(span, 9), count)
        whole = pair_by_pair(span, 9)
        wanted = whole.top(span_dot(query[:, None], table[:, None], whole)[:, 0], count)
        assert torch.equal(found.offsets, wanted.offsets)
        assert torch.equal(found.index, wanted.index)


def test_a_repeated_span_is_its_pairs() -> None:
    span = torch.tensor([4, 1, 1, 7])
    found, wanted = RepeatedSpan(span, 3), pair_by_pair(span, 3)
    for part in ("offsets", "index", "lengths", "row", "place"):
        assert torch.equal(getattr(found, part), getattr(wanted, part)), part
    for count in (0, 2, 9):
        assert torch.equal(found.tail(count).index, wanted.tail(count).index)
        assert torch.equal(found.tail(count).offsets, wanted.tail(count).offsets)
    again = Spans(torch.tensor([0, 4]), span).take(torch.zeros(3, dtype=torch.long))
    assert isinstance(again, RepeatedSpan)
    assert torch.equal(again.index, wanted.index)
