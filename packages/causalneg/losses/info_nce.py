"""InfoNCE: cross-entropy of finding a query's positive among its candidates.

The negatives of all queries stand one after the other in one table, any number of them for each query, zero
included; ``negative_row`` says whose each one is. Nothing is padded, no query is looped over, and without
in-batch candidates the cost follows the number of negatives.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from causalneg.losses.similarity import (
    check_temperature,
    checked_rows,
    full_precision,
    segment_logsumexp,
    similarity_to_own,
)

Candidates = Literal["positives", "documents"]
"""Which of the other queries' texts are candidates: their positives, or their negatives as well."""


def info_nce(
    query: Float[Tensor, "queries dim"],
    positive: Float[Tensor, "queries dim"],
    negatives: Float[Tensor, "negatives dim"],
    negative_row: Int[Tensor, " negatives"],
    temperature: float | int = 0.05,
    in_batch: bool | Candidates = False,
    *,
    known_positive: Bool[Tensor, "queries candidates"] | None = None,
    positive_id: Int[Tensor, " queries"] | None = None,
    negative_id: Int[Tensor, " negatives"] | None = None,
    known_row: Int[Tensor, " known"] | None = None,
    known_id: Int[Tensor, " known"] | None = None,
    gather: bool = False,
    reduction: Literal["mean", "none"] = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " queries"]:
    """Cross-entropy of finding each query's positive among its candidates.

    ``L_b = -log( exp(s(q_b, d_b+) / tau) / sum over candidates d of b of exp(s(q_b, d) / tau) )``, averaged
    over the queries. Candidates of b are its positive, its own negatives, and with ``in_batch`` texts of the
    other queries. Candidates that are known positives of b, or the very document that is its positive, are
    taken out; the positive itself stays.

    Source: van den Oord et al., Representation Learning with Contrastive Predictive Coding (2018), eq. 4;
    CausalNeg, training loss. The authors' plugin always compares with the documents of the whole local batch
    and divides this term, but not the entropy, by the number of processes; here the candidates are chosen and
    nothing is divided. A text that is a candidate twice, as two queries' negative, counts twice, as usual.

    Args:
        query: L2-normalised embeddings of the queries.
        positive: Embedding of each query's positive.
        negatives: Embeddings of all negatives.
        negative_row: Query of each negative, in any order.
        temperature: tau.
        in_batch: False: only a query's own texts. True or ``"positives"``: the other queries' positives too.
            ``"documents"``: the other queries' positives and negatives.
        known_positive: For in-batch candidates without ``gather``: whether the text of a column is a known
            positive of the query of a row. Columns are the positives, with ``"documents"`` followed by the
            negatives. A query's own column is not looked at.
        positive_id: Number of each positive's document, instead of ``known_positive``; the same number is the
            same document, in all processes if they gather.
        negative_id: Number of each negative's document.
        known_row: Query of each pair (query, document that is known to answer it).
        known_id: Number of the document of each such pair.
        gather: Whether candidates also come from the other processes of torch.distributed, with gradients
            back to them. Batches may differ in size. Every process must call; without processes it does
            nothing. Each one's loss stays the mean over its own queries: averaging gradients over processes,
            as DDP does, then gives the gradient of the mean of their losses.
        reduction: ``"none"`` returns the loss of each query.

    Raises:
        DataError: A negative belongs to no query.
        ValueError: There is no query, ``temperature`` is not positive, the options contradict each other, or
            shapes do not fit.
    """
    check_temperature(temperature)
    if not len(query):
        raise ValueError("a loss needs at least one query")
    if gather and not in_batch:
        raise ValueError("gather takes candidates from other queries, so it needs in_batch")
    if known_positive is not None and (gather or not in_batch):
        raise ValueError(
            "known_positive is about in-batch candidates of one process; give positive_id instead"
        )
    known = _Known(positive_id, negative_id, known_row, known_id)
    row = checked_rows(negative_row, len(query))
    width = "documents" if in_batch == "documents" else "positives"
    with torch.autocast(query.device.type, enabled=False):
        query, positive, negatives = (
            full_precision(query),
            full_precision(positive),
            full_precision(negatives),
        )
        target = (query * positive).sum(-1) / temperature
        total = target
        if in_batch:
            others, before = _gather(positive) if gather else (positive, 0)
            if width == "documents":
                others = torch.cat([others, _gather(negatives)[0] if gather else negatives])
            own = torch.arange(len(query), device=query.device)
            masked = known.columns(width, gather) if known_positive is None else known_positive.clone()
            logits = query @ others.T / temperature
            if masked is not None:
                if masked.shape != logits.shape:
                    raise ValueError(
                        f"known_positive must be {list(logits.shape)} for {width}, got {list(masked.shape)}"
                    )
                masked[own, own + before] = False
                logits = logits.masked_fill(masked, -math.inf)
            total = torch.logsumexp(logits, 1)
        if width == "positives" and len(negatives):
            logits = similarity_to_own(query, negatives, row) / temperature
            own_known = known.own(row)
            if own_known is not None:
                logits = logits.masked_fill(own_known, -math.inf)
            total = torch.logaddexp(total, segment_logsumexp(logits, row, len(query)))
        loss = total - target
    return loss if reduction == "none" else loss.mean()


class _Known:
    """Which candidates are documents that answer a query, by the documents' numbers.

    Args:
        positive: Number of each query's positive; None knows nothing.
        negative: Number of each negative.
        row: Query of each known pair.
        known: Document of each known pair.

    Raises:
        ValueError: Some of the numbers are missing.
    """

    def __init__(
        self,
        positive: Int[Tensor, " queries"] | None,
        negative: Int[Tensor, " negatives"] | None,
        row: Int[Tensor, " known"] | None,
        known: Int[Tensor, " known"] | None,
    ) -> None:
        if (row is None) != (known is None):
            raise ValueError("known_row and known_id go together")
        if positive is None and (negative is not None or known is not None):
            raise ValueError("negative_id and known_id need positive_id")
        self.positive, self.negative = positive, negative
        if positive is not None:
            own = torch.arange(len(positive), device=positive.device)
            self.row = own if row is None else torch.cat([own, row.long()])
            self.document = positive.long() if known is None else torch.cat([positive.long(), known.long()])

    def columns(self, width: str, gather: bool) -> Bool[Tensor, "queries candidates"] | None:
        """Whether each in-batch candidate answers each query."""
        if self.positive is None:
            return None
        ids = _gather(self.positive.long())[0] if gather else self.positive.long()
        if width == "documents":
            if self.negative is None:
                raise ValueError('in_batch="documents" with positive_id needs negative_id too')
            ids = torch.cat([ids, _gather(self.negative.long())[0] if gather else self.negative.long()])
        distinct, place = torch.unique(torch.cat([ids, self.document]), return_inverse=True)
        answers = torch.zeros(len(self.positive), len(distinct), dtype=torch.bool, device=ids.device)
        answers[self.row, place[len(ids) :]] = True
        return answers[:, place[: len(ids)]]

    def own(self, row: Int[Tensor, " negatives"]) -> Bool[Tensor, " negatives"] | None:
        """Whether each negative answers its own query."""
        if self.positive is None or self.negative is None:
            return None
        ids = torch.cat([self.negative.long(), self.document])
        distinct, place = torch.unique(ids, return_inverse=True)
        pairs = torch.cat([row, self.row]) * len(distinct) + place
        return torch.isin(pairs[: len(row)], pairs[len(row) :])


class _AllGather(torch.autograd.Function):
    """Rows of all processes; backward sums the gradients of all processes' losses by one's own rows."""

    @staticmethod
    def forward(ctx: Any, x: Shaped[Tensor, "rows *rest"], sizes: list[int]) -> Shaped[Tensor, "all *rest"]:
        """Pad to the longest, exchange, cut."""
        rank = dist.get_rank()
        ctx.own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        padded = x.new_zeros(max(sizes), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "all *rest"]) -> tuple[Float[Tensor, "rows *rest"], None]:
        """The sum over the processes, of one's own rows."""
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.own], None


def _gather(x: Shaped[Tensor, "rows *rest"]) -> tuple[Shaped[Tensor, "all *rest"], int]:
    """The rows of all processes in the order of their numbers, and how many stand before one's own."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x, 0
    counts = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
    sizes = [int(count) for count in counts]
    gather: Any = _AllGather.apply
    return gather(x, sizes), sum(sizes[: dist.get_rank()])
