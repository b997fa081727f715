"""Distillation: a query's texts scored as a teacher scores them, who reads query and text together."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from jaxtyping import Bool, Float, Int
from torch import Tensor

from causalneg.losses.similarity import (
    check_temperature,
    checked_rows,
    full_precision,
    segment_logsumexp,
    segment_sum,
    similarity_to_own,
    zero_loss,
)
from causalneg.losses.term import EmbeddedBatch, Term


def teacher_kl(
    query: Float[Tensor, "queries dim"],
    positive: Float[Tensor, "queries dim"],
    negatives: Float[Tensor, "negatives dim"],
    negative_row: Int[Tensor, " negatives"],
    positive_teacher: Float[Tensor, " queries"],
    negative_teacher: Float[Tensor, " negatives"],
    temperature: float | int = 0.05,
    teacher_temperature: float | int = 1.0,
) -> Float[Tensor, ""]:
    """How far the encoder's distribution over a query's own texts is from the teacher's.

    ``p = softmax(t / tau_t)`` and ``q = softmax(s / tau)`` over the positive and the own negatives:
    ``L = sum p (log p - log q)``, averaged over the queries that have negatives and whose texts all have a
    teacher's score. Zero, with a way for gradients, if none has.

    Source: knowledge distillation of FlagEmbedding (BGE), ``kl_div``; there every query has as many texts.

    Args:
        query: L2-normalised embeddings of the queries.
        positive: Embedding of each query's positive.
        negatives: Embeddings of all negatives.
        negative_row: Query of each negative, in any order.
        positive_teacher: Teacher's score of each positive; NaN for none.
        negative_teacher: Teacher's score of each negative; NaN for none.
        temperature: tau.
        teacher_temperature: tau_t.

    Raises:
        DataError: A negative belongs to no query.
        ValueError: A temperature is not positive.
    """
    check_temperature(temperature)
    check_temperature(teacher_temperature)
    queries = len(query)
    row = checked_rows(negative_row, queries)
    with torch.autocast(query.device.type, enabled=False):
        query, positive, negatives = map(full_precision, (query, positive, negatives))
        scored = _scored(row, positive_teacher, negative_teacher)
        if not bool(scored.any()):
            return zero_loss(query, negatives) + zero_loss(query, positive)
        of_scored = scored[row]
        best = torch.where(scored, positive_teacher, 0).to(query.dtype) / teacher_temperature
        rest = torch.where(of_scored, negative_teacher, 0).to(query.dtype) / teacher_temperature
        own = (query * positive).sum(-1) / temperature
        others = similarity_to_own(query, negatives, row) / temperature
        total, teacher_total = (
            torch.logaddexp(first, segment_logsumexp(second, row, queries))
            for first, second in ((own, others), (best, rest))
        )
        log_best, log_rest = best - teacher_total, rest - teacher_total[row]
        distance = log_best.exp() * (log_best - own + total)
        distance = distance + segment_sum(log_rest.exp() * (log_rest - others + total[row]), row, queries)
        return distance[scored].mean()


def margin_mse(
    query: Float[Tensor, "queries dim"],
    positive: Float[Tensor, "queries dim"],
    negatives: Float[Tensor, "negatives dim"],
    negative_row: Int[Tensor, " negatives"],
    positive_teacher: Float[Tensor, " queries"],
    negative_teacher: Float[Tensor, " negatives"],
    scale: float | int = 1.0,
) -> Float[Tensor, ""]:
    """Squared difference of the encoder's and the teacher's margin between positive and negative.

    ``L = (scale (s+ - s-) - (t+ - t-))^2``, averaged over the negatives that the teacher scored, as it did
    their positives. Zero, with a way for gradients, if there is none.

    Source: Hofstätter et al., Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge
    Distillation (2020). There embeddings are not normalised; ``scale`` brings similarities, which lie in
    [-1, 1], to the range of the teacher's scores.

    Args:
        query: L2-normalised embeddings of the queries.
        positive: Embedding of each query's positive.
        negatives: Embeddings of all negatives.
        negative_row: Query of each negative, in any order.
        positive_teacher: Teacher's score of each positive; NaN for none.
        negative_teacher: Teacher's score of each negative; NaN for none.
        scale: What similarities are multiplied with.

    Raises:
        DataError: A negative belongs to no query.
    """
    row = checked_rows(negative_row, len(query))
    with torch.autocast(query.device.type, enabled=False):
        query, positive, negatives = map(full_precision, (query, positive, negatives))
        wanted = positive_teacher[row] - negative_teacher
        scored = torch.isfinite(wanted)
        if not bool(scored.any()):
            return zero_loss(query, negatives) + zero_loss(query, positive)
        margin = (query * positive).sum(-1)[row] - similarity_to_own(query, negatives, row)
        return (scale * margin[scored] - wanted[scored].to(query.dtype)).square().mean()


def _scored(
    row: Int[Tensor, " negatives"],
    positive_teacher: Float[Tensor, " queries"],
    negative_teacher: Float[Tensor, " negatives"],
) -> Bool[Tensor, " queries"]:
    """Queries with negatives whose texts all have a score."""
    queries = len(positive_teacher)
    count = torch.bincount(row, minlength=queries)
    known = segment_sum(torch.isfinite(negative_teacher).float(), row, queries)
    return torch.isfinite(positive_teacher) & (count > 0) & (known == count)


class _TeacherTerm(Term):
    """A term that needs the scores of a teacher.

    Args:
        weight: Its weight in the loss; 0 turns it off.
    """

    @staticmethod
    def scores(batch: EmbeddedBatch) -> tuple[Float[Tensor, " queries"], Float[Tensor, " negatives"]]:
        """The teacher's scores of positives and negatives; NaN for none."""
        if batch.positive_teacher is None or batch.negative_teacher is None:
            nan = batch.query.new_full((), torch.nan)
            return nan.expand(len(batch.query)), nan.expand(len(batch.negatives))
        return batch.positive_teacher, batch.negative_teacher


class KLTerm(_TeacherTerm):
    """:func:`teacher_kl` as a term; it needs sets with a teacher's scores.

    Args:
        weight: Its weight in the loss; 0 turns it off.
        temperature: tau of the encoder's similarities.
        teacher_temperature: tau of the teacher's scores.

    Raises:
        ValueError: A value is out of range.
    """

    def __init__(
        self,
        *,
        weight: Annotated[float, Ge(0)] = 1.0,
        temperature: Annotated[float, Gt(0)] = 0.05,
        teacher_temperature: Annotated[float, Gt(0)] = 1.0,
    ) -> None:
        super().__init__(weight=weight)
        check_temperature(temperature)
        check_temperature(teacher_temperature)
        self.temperature, self.teacher_temperature = temperature, teacher_temperature

    def value(self, batch: EmbeddedBatch) -> Float[Tensor, ""]:
        """The term of one batch."""
        return teacher_kl(
            batch.query, batch.positive, batch.negatives, batch.negative_row, *self.scores(batch),
            self.temperature, self.teacher_temperature,
        )  # fmt: skip


class MarginMSETerm(_TeacherTerm):
    """:func:`margin_mse` as a term; it needs sets with a teacher's scores.

    Args:
        weight: Its weight in the loss; 0 turns it off.
        scale: What similarities are multiplied with.

    Raises:
        ValueError: A value is out of range.
    """

    def __init__(
        self, *, weight: Annotated[float, Ge(0)] = 1.0, scale: Annotated[float, Gt(0)] = 1.0
    ) -> None:
        super().__init__(weight=weight)
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}")
        self.scale = scale

    def value(self, batch: EmbeddedBatch) -> Float[Tensor, ""]:
        """The term of one batch."""
        return margin_mse(
            batch.query, batch.positive, batch.negatives, batch.negative_row, *self.scores(batch), self.scale
        )
