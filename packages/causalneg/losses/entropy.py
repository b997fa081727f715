"""Query-view entropy: a query's generated negatives equally similar, as probable as their number says."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from jaxtyping import Bool, Float, Int
from torch import Tensor

from causalneg.losses.similarity import (
    Gradient,
    check_temperature,
    checked_rows,
    full_precision,
    segment_logsumexp,
    segment_sum,
    similarity_by_source,
    zero_loss,
)
from causalneg.losses.term import EmbeddedBatch, Term


def query_view_entropy(
    query: Float[Tensor, "queries dim"],
    negatives: Float[Tensor, "negatives dim"],
    negative_row: Int[Tensor, " negatives"],
    generated: Bool[Tensor, " negatives"],
    temperature: float | int = 0.1,
    *,
    scope: Literal["own", "batch"] = "own",
    gradient: Gradient = "generated",
) -> Float[Tensor, ""]:
    """Makes a query's generated negatives equally similar, and as probable as their number says.

    ``p = softmax(s / tau_e)`` over the query's N_m mined and N_g generated negatives, ``p~ = p`` renormalised
    over the generated ones: ``L = -H(p~) + (sum over generated of p - N_g / (N_m + N_g))^2``, H in nats,
    averaged over the queries that have generated negatives. Zero, with a way for gradients, if none has.

    Source: CausalNeg, query-view entropy; the authors add 1e-10 inside the logarithm, here it is exact.

    What it can and cannot do: at its optimum the generated similarities all equal ``tau_e`` times the log of
    the mean of ``exp(s / tau_e)`` of the mined ones. One generated negative has no entropy to gain. The
    balance term's gradient vanishes for generated negatives far below the mined ones.

    Args:
        query: L2-normalised embeddings of the queries.
        negatives: L2-normalised embeddings of all negatives.
        negative_row: Query of each negative, in any order.
        generated: Whether each negative was generated.
        temperature: tau_e.
        scope: Negatives that a query's softmax runs over: its ``"own"`` (published), or all of the
            ``"batch"`` (not in the paper; costs queries x negatives).
        gradient: What its gradient reaches; published is ``"generated"``: queries and mined negatives are
            constants.

    Raises:
        DataError: A negative belongs to no query.
        ValueError: ``temperature`` is not positive.
    """
    check_temperature(temperature)
    queries, row = len(query), checked_rows(negative_row, len(query))
    generated_at, mined_at = torch.nonzero(generated)[:, 0], torch.nonzero(~generated)[:, 0]
    if not len(generated_at):
        return zero_loss(query, negatives)
    row_generated, row_mined = row[generated_at], row[mined_at]
    count = torch.bincount(row_generated, minlength=queries)
    active = torch.nonzero(count)[:, 0]
    with torch.autocast(query.device.type, enabled=False):
        if scope == "batch":
            of_query = (query if gradient == "all" else query.detach()).index_select(0, active)
            of_mined = negatives.index_select(0, mined_at)
            of_mined = of_mined.detach() if gradient == "generated" else of_mined
            s_generated = (
                full_precision(of_query)
                @ full_precision(negatives.index_select(0, generated_at)).T
                / temperature
            )
            s_mined = full_precision(of_query) @ full_precision(of_mined).T / temperature
            log_generated, log_mined = torch.logsumexp(s_generated, 1), torch.logsumexp(s_mined, 1)
            log_p = s_generated - log_generated[:, None]
            entropy = -(log_p.exp() * log_p).sum(1)
            share = log_generated.new_tensor(len(generated_at) / len(negatives))
        else:
            s_generated, s_mined = similarity_by_source(
                query, negatives, row, generated_at, mined_at, gradient
            )
            log_generated = segment_logsumexp(s_generated / temperature, row_generated, queries)
            log_p = s_generated / temperature - log_generated.index_select(0, row_generated)
            entropy = -segment_sum(log_p.exp() * log_p, row_generated, queries).index_select(0, active)
            log_generated = log_generated.index_select(0, active)
            log_mined = segment_logsumexp(s_mined / temperature, row_mined, queries).index_select(0, active)
            share = (count.to(s_generated) / torch.bincount(row, minlength=queries)).index_select(0, active)
        balance = (torch.sigmoid(log_generated - log_mined) - share) ** 2
        return (balance - entropy).mean()


class EntropyTerm(Term):
    """``weight * query_view_entropy``.

    Args:
        weight: lambda of the method; published: 0.05.
        temperature: tau_e.
        scope: Negatives that a query's softmax runs over: its own (published), or all of the batch.
        gradient: What its gradient reaches; published: the generated negatives.
    """

    def __init__(
        self,
        *,
        weight: Annotated[float, Ge(0)] = 0.05,
        temperature: Annotated[float, Gt(0)] = 0.1,
        scope: Literal["own", "batch"] = "own",
        gradient: Gradient = "generated",
    ) -> None:
        super().__init__(weight=weight)
        self.temperature, self.scope, self.gradient = temperature, scope, gradient

    def value(self, batch: EmbeddedBatch) -> Float[Tensor, ""]:
        """The entropy, without its weight."""
        return query_view_entropy(
            batch.query,
            batch.negatives,
            batch.negative_row,
            batch.generated,
            self.temperature,
            scope=self.scope,
            gradient=self.gradient,
        )
