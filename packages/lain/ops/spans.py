"""Spans: per sample, a run of rows in the batch's item table; the form of every history here.

Samples with histories of different lengths are a sparse matrix: one line per sample, one stored
entry per behaviour, the column saying which row of the table the behaviour is. Scores of queries
against histories are then a *sampled* dense product (:func:`span_dot`), weighted sums of
behaviours a sparse-dense product (:func:`span_sum`). Nothing is padded and no ``[pairs, width]``
array is made: memory follows the number of behaviours, and an item that many samples mention is
stored and projected once.

The three products are closed under differentiation: each one's gradient is the other two.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

with warnings.catch_warnings():  # torch says once per process that CSR support is in beta
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1))


@dataclass(frozen=True, eq=False)
class Spans:
    """Which table rows belong to which sample: sample ``i`` owns ``index[offsets[i]:offsets[i+1]]``.

    A *pair* is one (sample, behaviour); the pairs of a sample are in time order, oldest first.

    Args:
        offsets: Where each sample's pairs begin, and the end of the last.
        index: Row of the table for each pair.
    """

    offsets: Int[Tensor, " samples_plus_one"]
    index: Int[Tensor, " pairs"]

    @classmethod
    def from_runs(
        cls, pool: Int[Tensor, " pool"], start: Int[Tensor, " samples"], count: Int[Tensor, " samples"]
    ) -> Spans:
        """Spans ``pool[start[i] : start[i] + count[i]]`` into a pool that samples may share."""
        offsets = _offsets(count)
        pairs = int(offsets[-1])
        shift = torch.repeat_interleave(start - offsets[:-1], count, output_size=pairs)
        return cls(offsets, pool[shift + torch.arange(pairs, device=pool.device)])

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> Int[Tensor, " samples"]:
        """Number of pairs of each sample."""
        return self.offsets[1:] - self.offsets[:-1]

    @cached_property
    def row(self) -> Int[Tensor, " pairs"]:
        """Sample of each pair."""
        samples = torch.arange(self.samples, device=self.index.device)
        return torch.repeat_interleave(samples, self.lengths, output_size=len(self.index))

    @cached_property
    def place(self) -> Int[Tensor, " pairs"]:
        """Place of each pair in its span, 0 for the oldest."""
        return torch.arange(len(self.index), device=self.index.device) - self.offsets[:-1][self.row]

    @cached_property
    def by_index(self) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
        """The pairs sorted by table row: their order, and their samples in that order."""
        order = torch.argsort(self.index, stable=True)
        return order, self.row[order]

    def tail(self, count: int) -> Spans:
        """The last ``count`` pairs of every sample."""
        keep = torch.clamp(self.lengths, max=count)
        return Spans.from_runs(self.index, self.offsets[1:] - keep, keep)

    def select(self, keep: Bool[Tensor, " pairs"]) -> Spans:
        """Only the pairs where ``keep`` is true, in the same order."""
        return Spans(_offsets(keep)[self.offsets], self.index[keep])

    def top(self, score: Float[Tensor, " pairs"], count: int) -> Spans:
        """The ``count`` best pairs of every sample, in time order; of equal scores the latest win.

        Args:
            score: Finite score of each pair; no gradient flows through the choice.
            count: Pairs to keep; shorter samples keep all they have.
        """
        lengths = self.lengths
        longest = int(lengths.max()) if len(lengths) else 0
        if longest <= count:
            return self
        filled = torch.arange(longest, device=score.device) < lengths[:, None]
        padded = score.new_full(filled.shape, float("-inf")).masked_scatter_(filled, score.detach())
        bar = padded.topk(count, dim=1, sorted=True).values[:, -1:]  # -inf where all pairs fit
        above, equal = padded > bar, (padded == bar) & filled
        room = count - above.sum(1, keepdim=True)
        latest = equal.flip(1).cumsum(1, dtype=torch.int32).flip(1)
        return self.select((above | (equal & (latest <= room)))[filled])

    def with_prefix(self, prefix: Int[Tensor, "samples extra"]) -> tuple[Spans, Int[Tensor, "samples extra"]]:
        """Put the same number of further rows in front of every sample's pairs.

        Args:
            prefix: Table rows to put in front, per sample.

        Returns:
            The longer spans, and the pair number of each prefixed row in them.
        """
        samples, extra = prefix.shape
        offsets = self.offsets + extra * torch.arange(samples + 1, device=self.offsets.device)
        place = offsets[:-1, None] + torch.arange(extra, device=self.offsets.device)
        index = self.index.new_empty(len(self.index) + samples * extra)
        index[place.reshape(-1)] = prefix.reshape(-1)
        moved = torch.arange(len(self.index), device=self.index.device) + extra * (self.row + 1)
        index[moved] = self.index
        return Spans(offsets, index), place


def _offsets(count: Bool[Tensor, " n"] | Int[Tensor, " n"]) -> Int[Tensor, " n_plus_one"]:
    offsets = torch.zeros(len(count) + 1, dtype=torch.long, device=count.device)
    torch.cumsum(count, 0, out=offsets[1:])
    return offsets


def span_dot(
    query: Float[Tensor, "samples heads width"], table: Float[Tensor, "rows heads width"], spans: Spans
) -> Float[Tensor, "pairs heads"]:
    """Dot product of every pair: ``out[p, h] = query[sample(p), h] . table[index(p), h]``.

    Computed in float32 at least, also under autocast (sparse products have no half precision).
    """
    query, table = _full(query), _full(table)
    return _apply(_SpanDot, query, table, spans)


def span_sum(
    weight: Float[Tensor, "pairs heads"], table: Float[Tensor, "rows heads width"], spans: Spans
) -> Float[Tensor, "samples heads width"]:
    """Weighted sum of every sample's rows: ``out[i, h] = sum_p weight[p, h] table[index(p), h]``.

    A sample without pairs gets zeros.
    """
    weight, table = _full(weight), _full(table)
    return _apply(_SpanSum, weight, table, spans)


def span_scatter(
    weight: Float[Tensor, "pairs heads"],
    source: Float[Tensor, "samples heads width"],
    spans: Spans,
    rows: int,
) -> Float[Tensor, "rows heads width"]:
    """The transposed sum: ``out[u, h] = sum_{p: index(p) = u} weight[p, h] source[sample(p), h]``."""
    weight, source = _full(weight), _full(source)
    return _apply(_SpanScatter, weight, source, spans, rows)


def span_softmax(logits: Float[Tensor, "pairs heads"], spans: Spans) -> Float[Tensor, "pairs heads"]:
    """Softmax over the pairs of each sample, head by head, stable for logits of any size."""
    return span_softmax_with(logits, logits.new_empty(spans.samples, 0, logits.shape[1]), spans)[0]


def span_softmax_with(
    logits: Float[Tensor, "pairs heads"], extra: Float[Tensor, "samples extra heads"], spans: Spans
) -> tuple[Float[Tensor, "pairs heads"], Float[Tensor, "samples extra heads"]]:
    """One softmax over the pairs of each sample and a fixed number of further logits.

    Args:
        logits: Logits of the pairs.
        extra: Further logits of each sample, the prompts' say.
        spans: The pairs of each sample.

    Returns:
        The weights of the pairs, and those of the further logits; together they sum to 1.
    """
    heads = logits.shape[1]
    with torch.no_grad():
        peak = logits.new_full((spans.samples, heads), float("-inf"))
        peak.scatter_reduce_(0, spans.row[:, None].expand(-1, heads), logits, "amax")
        if extra.shape[1]:
            peak = torch.maximum(peak, extra.amax(1))
    weight = torch.exp(logits - peak.index_select(0, spans.row))
    of_extra = torch.exp(extra - peak[:, None])
    total = of_extra.sum(1).index_add(0, spans.row, weight)
    return weight / total.index_select(0, spans.row), of_extra / total[:, None]


def take(table: Float[Tensor, "rows width"], index: Int[Tensor, " pairs"]) -> Float[Tensor, "pairs width"]:
    """``table[index]``, with a gradient that is summed by a sparse product, not entry by entry."""
    return _apply(_Take, table, index)


def pair_linear(
    query: Float[Tensor, "queries width"],
    row: Int[Tensor, " pairs"],
    table: Float[Tensor, "rows width"],
    index: Int[Tensor, " pairs"],
    weight: Float[Tensor, "units width"],
) -> Float[Tensor, "pairs units"]:
    """A linear layer on elementwise products: ``out[p] = weight (query[row[p]] * table[index[p]])``.

    The products are made and remade (in the backward pass) a cache-sized piece at a time, so no
    ``[pairs, width]`` array ever exists.
    """
    return _apply(_PairLinear, _full(query), row, _full(table), index, _full(weight))


def span_linear(
    query: Float[Tensor, "samples width"],
    table: Float[Tensor, "rows width"],
    spans: Spans,
    weight: Float[Tensor, "units width"],
    product: Float[Tensor, "units width"],
    start: Float[Tensor, "samples units"],
    behind: Float[Tensor, "further units"],
) -> Float[Tensor, "pairs_and_further units"]:
    """A linear layer on the items of every span and on their products with the sample's query.

    ``out[p] = start[i] + weight k + product (query[i] * k)``, with i the sample of pair p and k its item.
    That is ``start[i] + (weight + product diag(query[i])) k``: for spans with enough in them every sample
    makes that matrix and multiplies its items by it once, so that neither products nor parts of the sum
    are ever arrays over all pairs. Small spans, and a GPU, take :func:`pair_linear`.

    Args:
        query: The query of each sample.
        table: The items.
        spans: The items of each sample.
        weight: What acts on an item.
        product: What acts on the product of query and item.
        start: What is added to all pairs of a sample.
        behind: Rows that are put behind those of the pairs as they are.

    Returns:
        One row per pair, then ``behind``.
    """
    query, table, weight = _full(query), _full(table), _full(weight)
    product, start, behind = _full(product), _full(start), _full(behind)
    elements = len(spans.index) * table.shape[1]
    if query.device.type == "cpu" and elements >= _SpanLinear.ELEMENTS * spans.samples:
        return _apply(_SpanLinear, query, table, spans, weight, product, start, behind)
    out = pair_linear(query, spans.row, table, spans.index, product)
    out = take(start, spans.row) + take(nn.functional.linear(table, weight), spans.index) + out
    return torch.cat([out, behind])


def _full(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _apply(function: type[torch.autograd.Function], *args: Any) -> Tensor:
    out: Tensor = function.apply(*args)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
    return out


def _product(
    offsets: Tensor, index: Tensor, weight: Tensor, dense: Tensor, rows: int
) -> Float[Tensor, "rows heads width"]:
    """One CSR matrix per head times a dense table."""
    heads, width = dense.shape[1:]
    out = dense.new_empty(rows, heads, width)
    with torch.autocast(dense.device.type, enabled=False):
        for head in range(heads):
            matrix = torch.sparse_csr_tensor(
                offsets, index, weight[:, head].contiguous(), (rows, len(dense)), check_invariants=False
            )
            out[:, head] = matrix @ dense[:, head].contiguous()
    return out


class _SpanDot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, table: Tensor, spans: Spans) -> Tensor:
        ctx.save_for_backward(query, table)
        ctx.spans = spans
        out = query.new_empty(len(spans.index), query.shape[1])
        if not len(spans.index):
            return out
        if len(spans.index) >= len(query) * len(table):
            # Items repeat so often that all products are fewer than the pairs (and torch's sampled
            # product refuses more entries than a matrix has cells).
            with torch.autocast(query.device.type, enabled=False):
                return torch.einsum("ihd,uhd->iuh", query, table)[spans.row, spans.index]
        zero = query.new_zeros(len(spans.index))
        pattern = torch.sparse_csr_tensor(
            spans.offsets, spans.index, zero, (len(query), len(table)), check_invariants=False
        )
        with torch.autocast(query.device.type, enabled=False):
            for head in range(query.shape[1]):
                q, k = query[:, head].contiguous(), table[:, head].contiguous()
                out[:, head] = torch.sparse.sampled_addmm(pattern, q, k.T, beta=0.0).values()
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, table = ctx.saved_tensors
        need_query, need_table, _ = ctx.needs_input_grad
        return (
            span_sum(grad, table, ctx.spans) if need_query else None,
            span_scatter(grad, query, ctx.spans, len(table)) if need_table else None,
            None,
        )


class _SpanSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, table: Tensor, spans: Spans) -> Tensor:
        ctx.save_for_backward(weight, table)
        ctx.spans = spans
        return _product(spans.offsets, spans.index, weight, table, spans.samples)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, table = ctx.saved_tensors
        need_weight, need_table, _ = ctx.needs_input_grad
        return (
            span_dot(grad, table, ctx.spans) if need_weight else None,
            span_scatter(weight, grad, ctx.spans, len(table)) if need_table else None,
            None,
        )


class _SpanScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, source: Tensor, spans: Spans, rows: int) -> Tensor:
        ctx.save_for_backward(weight, source)
        ctx.spans = spans
        order, sample = spans.by_index
        offsets = _offsets(torch.bincount(spans.index, minlength=rows))
        return _product(offsets, sample, weight[order], source, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, source = ctx.saved_tensors
        need_weight, need_source, *_ = ctx.needs_input_grad
        return (
            span_dot(source, grad, ctx.spans) if need_weight else None,
            span_sum(weight, grad, ctx.spans) if need_source else None,
            None,
            None,
        )


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = len(table)
        return nn.functional.embedding(index, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return _sum_by(index, _full(grad), ctx.rows).to(grad.dtype), None


def _sum_by(index: Tensor, values: Tensor, rows: int) -> Tensor:
    """Sum of the values that share an index."""
    order = torch.argsort(index, stable=True)
    offsets = _offsets(torch.bincount(index, minlength=rows))
    return _product(offsets, order, values.new_ones(len(index), 1), values[:, None], rows)[:, 0]


class _PairLinear(torch.autograd.Function):
    PIECE = 1 << 19
    """Elements of one piece: 2 MB of float32, so that its few arrays stay in a core's cache."""

    @staticmethod
    def pieces(row: Tensor, width: int, device: torch.device) -> list[slice]:
        size = max(_PairLinear.PIECE // width, 1) if device.type == "cpu" else max(len(row), 1)
        return [slice(begin, begin + size) for begin in range(0, len(row), size)]

    @staticmethod
    def forward(ctx: Any, query: Tensor, row: Tensor, table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(query, row, table, index, weight)
        out = query.new_empty(len(row), len(weight))
        with torch.autocast(query.device.type, enabled=False):
            for piece in _PairLinear.pieces(row, query.shape[1], query.device):
                product = query.index_select(0, row[piece]).mul_(table.index_select(0, index[piece]))
                torch.mm(product, weight.T, out=out[piece])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, row, table, index, weight = ctx.saved_tensors
        d_query, d_table, d_weight = (torch.zeros_like(x) for x in (query, table, weight))
        for piece in _PairLinear.pieces(row, query.shape[1], query.device):
            q, k, g = query.index_select(0, row[piece]), table.index_select(0, index[piece]), grad[piece]
            d_weight.addmm_(g.T, q * k)
            d_product = g @ weight
            d_query.index_add_(0, row[piece], k.mul_(d_product))
            d_table.index_add_(0, index[piece], q.mul_(d_product))
        return d_query, None, d_table, None, d_weight


class _SpanLinear(torch.autograd.Function):
    ELEMENTS = 1 << 13
    """Elements of an average span's items from which a matrix per sample pays for its making."""

    @staticmethod
    def each(spans: Spans) -> list[tuple[int, slice]]:
        """The samples that have pairs, and where."""
        ends = spans.offsets.tolist()
        return [(i, slice(ends[i], ends[i + 1])) for i in range(spans.samples) if ends[i] < ends[i + 1]]

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        table: Tensor,
        spans: Spans,
        weight: Tensor,
        product: Tensor,
        start: Tensor,
        behind: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(query, table, weight, product)
        ctx.spans = spans
        out = query.new_empty(len(spans.index) + len(behind), len(weight))
        out[len(spans.index) :] = behind
        matrix = torch.empty_like(weight)
        with torch.autocast(query.device.type, enabled=False):
            for i, pairs in _SpanLinear.each(spans):
                torch.addcmul(weight, product, query[i], out=matrix)
                items = table.index_select(0, spans.index[pairs])
                torch.addmm(start[i], items, matrix.T, out=out[pairs])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, table, weight, product = ctx.saved_tensors
        spans: Spans = ctx.spans
        d_query, d_table = torch.zeros_like(query), torch.zeros_like(table)
        d_weight, d_product = torch.zeros_like(weight), torch.zeros_like(product)
        d_start = query.new_zeros(len(query), len(weight))
        matrix, d_matrix = torch.empty_like(weight), torch.empty_like(weight)
        for i, pairs in _SpanLinear.each(spans):
            index, g = spans.index[pairs], grad[pairs]
            torch.mm(g.T, table.index_select(0, index), out=d_matrix)
            torch.addcmul(weight, product, query[i], out=matrix)
            d_table.index_add_(0, index, g @ matrix)
            d_weight += d_matrix
            d_product.addcmul_(d_matrix, query[i])
            torch.sum(d_matrix.mul_(product), 0, out=d_query[i])
            torch.sum(g, 0, out=d_start[i])
        return d_query, d_table, None, d_weight, d_product, d_start, grad[len(spans.index) :]
