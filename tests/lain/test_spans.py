"""Sums and products over spans against plain loops; their derivatives against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lain.ops.linear import _PairLinear, _SpanLinear, pair_linear, span_linear
from lain.ops.products import span_dot, span_scatter, span_sum
from lain.ops.softmax import span_softmax
from lain.ops.spans import Spans

ROWS = 7


def spans_of(*samples: list[int]) -> Spans:
    """The spans whose samples are these table rows."""
    offsets = torch.tensor([0, *(len(s) for s in samples)]).cumsum(0)
    return Spans(offsets, torch.tensor([row for s in samples for row in s], dtype=torch.long))


def samples_of(spans: Spans) -> list[list[int]]:
    """The table rows of each sample."""
    ends = spans.offsets.tolist()
    return [spans.index[a:b].tolist() for a, b in pairwise(ends)]


def pairs_of(spans: Spans) -> list[tuple[int, int]]:
    """(sample, table row) of each pair."""
    return [(i, row) for i, rows in enumerate(samples_of(spans)) for row in rows]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


ragged = st.lists(st.lists(st.integers(0, ROWS - 1), max_size=9), min_size=1, max_size=6)
widths = st.integers(1, 5)
head_counts = st.integers(1, 3)


class TestSpans:
    @given(rows=ragged)
    def test_numbers_of_pairs(self, rows: list[list[int]]) -> None:
        spans = spans_of(*rows)
        assert spans.samples == len(rows)
        assert spans.lengths.tolist() == [len(r) for r in rows]
        assert spans.row.tolist() == [i for i, r in enumerate(rows) for _ in r]
        assert spans.place.tolist() == [place for r in rows for place in range(len(r))]
        order, sample = spans.by_index
        found = [(spans.index[p].item(), i) for p, i in zip(order.tolist(), sample.tolist(), strict=True)]
        assert found == sorted((row, i) for i, row in pairs_of(spans))

    @given(pool=st.lists(st.integers(0, ROWS - 1), max_size=12), data=st.data())
    def test_runs_may_overlap(self, pool: list[int], data: st.DataObject) -> None:
        runs = []
        for _ in range(data.draw(st.integers(1, 5))):
            start = data.draw(st.integers(0, len(pool)))
            runs.append((start, data.draw(st.integers(0, len(pool) - start))))
        starts, counts = torch.tensor(runs).unbind(1)
        spans = Spans.from_runs(torch.tensor(pool, dtype=torch.long), starts, counts)
        assert samples_of(spans) == [pool[a : a + n] for a, n in runs]

    @given(rows=ragged, count=st.integers(1, 10))
    def test_tail(self, rows: list[list[int]], count: int) -> None:
        assert samples_of(spans_of(*rows).tail(count)) == [r[-count:] for r in rows]

    @given(rows=ragged, data=st.data())
    def test_select(self, rows: list[list[int]], data: st.DataObject) -> None:
        keep = [[data.draw(st.booleans()) for _ in r] for r in rows]
        chosen = torch.tensor([k for ks in keep for k in ks], dtype=torch.bool)
        wanted = [[row for row, k in zip(r, ks, strict=True) if k] for r, ks in zip(rows, keep, strict=True)]
        assert samples_of(spans_of(*rows).select(chosen)) == wanted

    @given(rows=ragged, count=st.integers(1, 10), data=st.data())
    def test_top_with_ties(self, rows: list[list[int]], count: int, data: st.DataObject) -> None:
        """Few different scores, so that most are tied; zeros of both signs are equal."""
        value = st.sampled_from([-1.5, -0.0, 0.0, 2.0])
        scores = [[data.draw(value) for _ in r] for r in rows]
        wanted = []
        for r, s in zip(rows, scores, strict=True):
            ranked = sorted(range(len(r)), key=lambda place, s=s: (s[place], place))  # type: ignore[misc]  # bound at once
            wanted.append([r[place] for place in sorted(ranked[-count:])])
        flat = torch.tensor([x for s in scores for x in s], dtype=torch.float64)
        assert samples_of(spans_of(*rows).top(flat, count)) == wanted

    def test_top_of_equal_scores_is_the_latest(self) -> None:
        spans = spans_of([1, 2, 3, 4], [], [5])
        assert samples_of(spans.top(torch.zeros(5), 2)) == [[3, 4], [], [5]]

    def test_top_lets_no_gradient_through(self) -> None:
        score = torch.tensor([1.0, 3.0, 2.0], requires_grad=True)
        assert samples_of(spans_of([4, 5, 6]).top(score, 2)) == [[5, 6]]

    @given(rows=ragged, extra=st.integers(1, 3))
    def test_with_prefix(self, rows: list[list[int]], extra: int) -> None:
        prefix = 100 + torch.arange(len(rows) * extra).reshape(-1, extra)
        longer, place = spans_of(*rows).with_prefix(prefix)
        assert samples_of(longer) == [p + r for p, r in zip(prefix.tolist(), rows, strict=True)]
        assert torch.equal(longer.index[place], prefix)
        assert torch.equal(longer.place[place], torch.arange(extra).expand(len(rows), -1))


class TestProducts:
    @given(rows=ragged, heads=head_counts, width=widths)
    def test_dot(self, rows: list[list[int]], heads: int, width: int) -> None:
        spans = spans_of(*rows)
        query, table = random(len(rows), heads, width), random(ROWS, heads, width, seed=1)
        out = span_dot(query, table, spans)
        assert out.shape == (len(spans.index), heads)
        for p, (i, row) in enumerate(pairs_of(spans)):
            for h in range(heads):
                wanted = sum(query[i, h, x].item() * table[row, h, x].item() for x in range(width))
                assert out[p, h].item() == pytest.approx(wanted, rel=1e-12, abs=1e-14)

    @given(rows=ragged, heads=head_counts, width=widths)
    def test_sum(self, rows: list[list[int]], heads: int, width: int) -> None:
        spans = spans_of(*rows)
        weight, table = random(len(spans.index), heads), random(ROWS, heads, width, seed=1)
        wanted = torch.zeros(len(rows), heads, width, dtype=torch.float64)
        for p, (i, row) in enumerate(pairs_of(spans)):
            for h in range(heads):
                wanted[i, h] += weight[p, h] * table[row, h]
        torch.testing.assert_close(span_sum(weight, table, spans), wanted, rtol=1e-12, atol=1e-14)

    @given(rows=ragged, heads=head_counts, width=widths)
    def test_scatter(self, rows: list[list[int]], heads: int, width: int) -> None:
        spans = spans_of(*rows)
        weight, source = random(len(spans.index), heads), random(len(rows), heads, width, seed=1)
        wanted = torch.zeros(ROWS, heads, width, dtype=torch.float64)
        for p, (i, row) in enumerate(pairs_of(spans)):
            for h in range(heads):
                wanted[row, h] += weight[p, h] * source[i, h]
        out = span_scatter(weight, source, spans, ROWS)
        torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-14)

    @given(rows=ragged, heads=head_counts, size=st.sampled_from([1.0, 1e3]))
    def test_softmax(self, rows: list[list[int]], heads: int, size: float) -> None:
        spans = spans_of(*rows)
        logits = random(len(spans.index), heads) * size
        out = span_softmax(logits, spans)
        begin = 0
        for r in rows:
            part = slice(begin, begin + len(r))
            torch.testing.assert_close(out[part], logits[part].softmax(0), rtol=1e-12, atol=1e-15)
            begin += len(r)

    def test_softmax_by_hand(self) -> None:
        logits = torch.tensor([[math.log(1.0)], [math.log(3.0)], [5.0]], dtype=torch.float64)
        out = span_softmax(logits, spans_of([0, 1], [], [2]))
        torch.testing.assert_close(out[:, 0], torch.tensor([0.25, 0.75, 1.0], dtype=torch.float64))

    @pytest.mark.parametrize("piece", [1, 6, 1 << 19])
    @given(data=st.data(), width=widths, units=st.integers(1, 4))
    def test_pair_linear(self, piece: int, data: st.DataObject, width: int, units: int) -> None:
        pairs = data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, ROWS - 1)), max_size=12))
        row = torch.tensor([i for i, _ in pairs], dtype=torch.long)
        index = torch.tensor([u for _, u in pairs], dtype=torch.long)
        leaves = [random(4, width), random(ROWS, width, seed=1), random(units, width, seed=2)]
        fast, slow = ([x.clone().requires_grad_() for x in leaves] for _ in range(2))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_PairLinear, "PIECE", piece)
            out = pair_linear(fast[0], row, fast[1], index, fast[2])
            out.square().sum().backward()  # type: ignore[no-untyped-call]  # torch's
        wanted = (slow[0][row] * slow[1][index]) @ slow[2].T
        wanted.square().sum().backward()  # type: ignore[no-untyped-call]  # torch's
        torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-14)
        for a, b in zip(fast, slow, strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-13)

    @pytest.mark.parametrize("elements", [0, 12, 1 << 13])
    @given(rows=ragged, width=widths, units=st.integers(1, 4), further=st.integers(0, 2))
    def test_span_linear(
        self, elements: int, rows: list[list[int]], width: int, units: int, further: int
    ) -> None:
        """Both ways of computing it, chosen by the elements of an average span."""
        spans, samples = spans_of(*rows), len(rows)
        shapes = [(samples, width), (ROWS, width), (units, width), (units, width), (samples, units)]
        leaves = [random(*shape, seed=seed) for seed, shape in enumerate([*shapes, (further, units)])]
        fast, slow = ([x.clone().requires_grad_() for x in leaves] for _ in range(2))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_SpanLinear, "ELEMENTS", elements)
            out = span_linear(fast[0], fast[1], spans, *fast[2:])
        query, table, weight, product, start, behind = slow
        pairs = [start[i] + (weight + product * query[i]) @ table[row] for i, row in pairs_of(spans)]
        wanted = torch.cat([*(x[None] for x in pairs), behind])
        for x in (out, wanted):
            x.square().sum().backward()  # type: ignore[no-untyped-call]  # torch's
        torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-13)
        for a, b in zip(fast, slow, strict=True):
            torch.testing.assert_close(a.grad, torch.zeros_like(b) if b.grad is None else b.grad)


SHAPES = [
    spans_of([2, 0, 2, 6], [], [5], [1, 3]),
    spans_of([], []),
    spans_of([4]),
    spans_of([3, 3, 3], [3, 3]),
]


class TestDerivatives:
    """First and second derivatives; repeated rows, unused rows and empty spans included."""

    @staticmethod
    def check(function: Callable[..., Tensor], *inputs: Tensor) -> None:
        leaves = tuple(x.requires_grad_() for x in inputs)
        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves)

    @pytest.mark.parametrize("spans", SHAPES)
    def test_dot(self, spans: Spans) -> None:
        self.check(
            lambda q, t: span_dot(q, t, spans), random(spans.samples, 2, 3), random(ROWS, 2, 3, seed=1)
        )

    @pytest.mark.parametrize("spans", SHAPES)
    def test_sum(self, spans: Spans) -> None:
        pairs = len(spans.index)
        self.check(lambda w, t: span_sum(w, t, spans), random(pairs, 2), random(ROWS, 2, 3, seed=1))

    @pytest.mark.parametrize("spans", SHAPES)
    def test_scatter(self, spans: Spans) -> None:
        pairs = len(spans.index)
        weight, source = random(pairs, 2), random(spans.samples, 2, 3, seed=1)
        self.check(lambda w, s: span_scatter(w, s, spans, ROWS), weight, source)

    @pytest.mark.parametrize("spans", SHAPES)
    def test_softmax(self, spans: Spans) -> None:
        self.check(lambda x: span_softmax(x, spans), random(len(spans.index), 2))

    @pytest.mark.parametrize("spans", SHAPES)
    def test_attention_of_all_three(self, spans: Spans) -> None:
        def attention(query: Tensor, table: Tensor) -> Tensor:
            return span_sum(span_softmax(span_dot(query, table, spans), spans), table, spans)

        self.check(attention, random(spans.samples, 1, 2), random(ROWS, 1, 2, seed=1))

    @pytest.mark.parametrize("spans", SHAPES)
    def test_pair_linear_once(self, spans: Spans) -> None:
        leaves = [random(spans.samples, 3), random(ROWS, 3, seed=1), random(2, 3, seed=2)]
        query, table, weight = (x.requires_grad_() for x in leaves)

        def function(query: Tensor, table: Tensor, weight: Tensor) -> Tensor:
            return pair_linear(query, spans.row, table, spans.index, weight)

        assert torch.autograd.gradcheck(function, (query, table, weight))

    def test_only_what_is_asked_for(self) -> None:
        """A frozen side costs no gradient and gets none."""
        spans = SHAPES[0]
        query, table = random(spans.samples, 1, 2).requires_grad_(), random(ROWS, 1, 2, seed=1)
        span_dot(query, table, spans).sum().backward()  # type: ignore[no-untyped-call]  # torch's
        assert query.grad is not None
        assert table.grad is None


class TestHalfPrecision:
    """Under autocast the products are in float32: rounding of the inputs is all that is lost."""

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_products_of_halves_are_float32(self, dtype: torch.dtype) -> None:
        spans = SHAPES[0]
        pairs = len(spans.index)
        query, table = random(spans.samples, 2, 3, dtype=dtype), random(ROWS, 2, 3, seed=1, dtype=dtype)
        weight, matrix = random(pairs, 2, dtype=dtype), random(4, 3, seed=2, dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16):
            found = [
                span_dot(query, table, spans),
                span_sum(weight, table, spans),
                span_scatter(weight, query, spans, ROWS),
                pair_linear(query[:, 0], spans.row, table[:, 0], spans.index, matrix),
            ]
        q, t, w, m = (x.double() for x in (query, table, weight, matrix))
        wanted = [
            span_dot(q, t, spans),
            span_sum(w, t, spans),
            span_scatter(w, q, spans, ROWS),
            pair_linear(q[:, 0], spans.row, t[:, 0], spans.index, m),
        ]
        for a, b in zip(found, wanted, strict=True):
            assert a.dtype == torch.float32
            torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=1e-6)

    def test_gradients_come_back_in_the_inputs_precision(self) -> None:
        spans = SHAPES[0]
        leaves = [random(spans.samples, 2, 3, dtype=torch.bfloat16), random(ROWS, 2, 3, dtype=torch.bfloat16)]
        query, table = (x.requires_grad_() for x in leaves)
        with torch.autocast("cpu", torch.bfloat16):
            out = span_sum(span_softmax(span_dot(query, table, spans), spans), table, spans)
        out.sum().backward()  # type: ignore[no-untyped-call]  # torch's
        for x in (query, table):
            assert x.grad is not None
            assert x.grad.dtype == torch.bfloat16
            assert torch.isfinite(x.grad).all()

    def test_an_item_in_many_pairs_sums_its_gradient_in_float32(self) -> None:
        """A thousand pairs of one item: in bfloat16 a sum of ones would stop at 256."""
        spans = spans_of([0] * 1000)
        leaves = [torch.ones(shape, dtype=torch.bfloat16) for shape in ((1, 1), (1, 1), (1, 1), (1, 1))]
        query, table, weight, start = (x.requires_grad_() for x in leaves)
        product, behind = torch.zeros(1, 1, dtype=torch.bfloat16), torch.zeros(0, 1, dtype=torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            out = span_linear(query, table, spans, weight, product, start, behind)
        out.sum().backward()  # type: ignore[no-untyped-call]  # torch's
        for x in (table, weight, start):
            assert x.grad is not None
            assert x.grad.item() == 1000
