"""Similarities of negatives to their own queries, and sums over each query's negatives; nothing is padded.

Similarity is the dot product: the cosine, given the L2-normalised embeddings that every encoder here makes.
Sums run in float32 at least, also under autocast.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from common.errors import DataError

with warnings.catch_warnings():  # torch says once per process that CSR support is in beta
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1))

Gradient = Literal["generated", "both", "all"]
"""What a term's gradient reaches: generated negatives, generated and mined ones, or the queries too."""


def own_similarity(
    query: Float[Tensor, "queries dim"],
    negatives: Float[Tensor, "negatives dim"],
    negative_row: Int[Tensor, " negatives"],
) -> Float[Tensor, " negatives"]:
    """Similarity of every negative to its own query: ``s_j = query[negative_row[j]] . negatives[j]``.

    Args:
        query: L2-normalised embeddings of the queries.
        negatives: L2-normalised embeddings of all their negatives.
        negative_row: Query of each negative, in any order.

    Raises:
        DataError: A negative belongs to no query.
    """
    return similarity_to_own(query, negatives, checked_rows(negative_row, len(query)))


def similarity_by_source(
    query: Float[Tensor, "queries dim"],
    negatives: Float[Tensor, "negatives dim"],
    row: Int[Tensor, " negatives"],
    generated_at: Int[Tensor, " generated"],
    mined_at: Int[Tensor, " mined"],
    gradient: Gradient,
) -> tuple[Float[Tensor, " generated"], Float[Tensor, " mined"]]:
    """Similarities of the generated and of the mined negatives, through which gradients reach those named."""
    if gradient == "generated":
        similarity = similarity_to_own(query.detach(), negatives, row, generated_at)
        return similarity[generated_at], similarity.detach()[mined_at]
    similarity = similarity_to_own(query if gradient == "all" else query.detach(), negatives, row)
    return similarity[generated_at], similarity[mined_at]


def similarity_to_own(
    query: Float[Tensor, "queries dim"],
    negatives: Float[Tensor, "negatives dim"],
    row: Int[Tensor, " negatives"],
    trained: Int[Tensor, " trained"] | None = None,
) -> Float[Tensor, " negatives"]:
    """Similarities of negatives to their own queries; with ``trained`` only these require gradients."""
    apply: Any = _OwnSimilarity.apply
    with torch.autocast(query.device.type, enabled=False):
        similarity: Tensor = apply(full_precision(query), full_precision(negatives), row, trained)
    return similarity


class _OwnSimilarity(torch.autograd.Function):
    """Products at the cells (query of j, j) of a sparse matrix: no array of negatives x dim comes of it.

    ``s_j = q_row[j] . d_j``, so with ``g_j = dL/ds_j`` the gradients are ``dL/dd_j = g_j q_row[j]`` and
    ``dL/dq_i = sum over j of row i of g_j d_j``: the sparse matrix of all g times the negatives.

    Memory traffic is what these losses cost. Gathering each negative's query and multiplying writes two such
    arrays; here the only one is the gradient of the negatives.
    """

    @staticmethod
    def matrix(row: Tensor, values: Tensor, queries: int) -> tuple[Tensor, Tensor | None]:
        """Values at their cells in CSR form, and the order that they had to be put in, if any."""
        order = None if bool((row[1:] >= row[:-1]).all()) else torch.argsort(row, stable=True)
        offsets = torch.zeros(queries + 1, dtype=torch.long, device=row.device)
        torch.cumsum(torch.bincount(row, minlength=queries), 0, out=offsets[1:])
        columns = torch.arange(len(row), device=row.device) if order is None else order
        values = values if order is None else values[order]
        return torch.sparse_csr_tensor(
            offsets, columns, values, (queries, len(row)), check_invariants=False
        ), order

    @staticmethod
    def forward(ctx: Any, query: Tensor, negatives: Tensor, row: Tensor, trained: Tensor | None) -> Tensor:
        """Sampled product."""
        ctx.save_for_backward(query, negatives, row, trained)
        out = query.new_zeros(len(row))
        if not len(row):
            return out
        cells, order = _OwnSimilarity.matrix(row, out, len(query))
        found: Tensor = torch.sparse.sampled_addmm(
            cells, query.contiguous(), negatives.contiguous().T, beta=0.0
        ).values()
        return found if order is None else out.index_copy_(0, order, found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """To a query the weighted sum of its negatives, to a negative its weighted query."""
        query, negatives, row, trained = ctx.saved_tensors
        of_query = of_negatives = None
        if ctx.needs_input_grad[0]:
            of_query = torch.zeros_like(query)
            if len(row):
                of_query = _OwnSimilarity.matrix(row, gradient, len(query))[0] @ negatives.contiguous()
        if ctx.needs_input_grad[1] and trained is None:
            of_negatives = query.index_select(0, row).mul_(gradient[:, None])
        elif ctx.needs_input_grad[1]:
            of_trained = query.index_select(0, row[trained]).mul_(gradient[trained, None])
            of_negatives = torch.zeros_like(negatives).index_copy_(0, trained, of_trained)
        return of_query, of_negatives, None, None


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not positive."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")


def checked_rows(row: Int[Tensor, " n"], queries: int) -> Int[Tensor, " n"]:
    """Row numbers as torch indexes with them; checked where that costs no wait for a device."""
    if row.device.type == "cpu" and len(row):
        low, high = (int(end) for end in row.aminmax())
        if low < 0 or high >= queries:
            wrong = low if low < 0 else high
            raise DataError(f"negative_row names query {wrong}, but there are {queries} queries")
    return row.long()


def full_precision(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """In float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def zero_loss(
    query: Float[Tensor, "queries dim"], negatives: Float[Tensor, "negatives dim"]
) -> Float[Tensor, ""]:
    """Zero, through which gradients (of zero) reach all embeddings."""
    return full_precision(query).sum() * 0 + full_precision(negatives).sum() * 0


def segment_sum(values: Float[Tensor, " n"], row: Int[Tensor, " n"], rows: int) -> Float[Tensor, " rows"]:
    """Sum of every row's values."""
    return values.new_zeros(rows).index_add(0, row, values)


def segment_logsumexp(
    logits: Float[Tensor, " n"], row: Int[Tensor, " n"], rows: int
) -> Float[Tensor, " rows"]:
    """``log sum exp`` of every row's logits, stable; -inf, without a gradient, for rows that have none."""
    with torch.no_grad():
        peak = logits.new_full((rows,), -math.inf).scatter_reduce(0, row, logits, "amax")
        empty = torch.isneginf(peak)
        peak = peak.masked_fill(empty, 0)
    total = segment_sum(torch.exp(logits - peak.index_select(0, row)), row, rows)
    return (total.masked_fill(empty, 1).log() + peak).masked_fill(empty, -math.inf)
