"""Distribution matching: generated negatives as similar to their queries as the mined ones are."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from jaxtyping import Bool, Float, Int
from torch import Tensor

from causalneg.losses.similarity import Gradient, checked_rows, similarity_by_source, zero_loss
from causalneg.losses.term import EmbeddedBatch, Term

Distance = Literal["wasserstein", "wasserstein2", "energy"]
"""Distance between two samples of numbers; see :func:`distribution_matching`."""


def distribution_matching(
    query: Float[Tensor, "queries dim"],
    negatives: Float[Tensor, "negatives dim"],
    negative_row: Int[Tensor, " negatives"],
    generated: Bool[Tensor, " negatives"],
    *,
    distance: Distance = "wasserstein",
    gradient: Gradient = "generated",
    bands: int = 0,
) -> Float[Tensor, ""]:
    """Distance between the similarities of the batch's generated and of its mined negatives.

    With F_g and F_m the empirical distribution functions of a negative's similarity to its own query:

    - ``"wasserstein"``: ``integral over u in (0, 1) of |F_g^-1(u) - F_m^-1(u)|``
    - ``"wasserstein2"``: ``integral over u of (F_g^-1(u) - F_m^-1(u))^2``, the square of W2
    - ``"energy"``: ``2 integral over x of (F_g(x) - F_m(x))^2 = 2 E|g - m| - E|g - g'| - E|m - m'|``

    Exact for any two sizes, by one sort. Zero, with a way for gradients, where a source is missing.

    Source: this project, experimental. Unlike the query-view entropy its optimum leaves nothing of the
    source in the score. It also forces up negatives that are easy because they are off topic: see
    :func:`easy_negatives`. Inside ``bands`` it leaves those alone.

    Args:
        query: L2-normalised embeddings of the queries.
        negatives: L2-normalised embeddings of all negatives.
        negative_row: Query of each negative, in any order.
        generated: Whether each negative was generated.
        distance: Which distance.
        gradient: What its gradient reaches.
        bands: Hardness bands: the mined similarities cut at this many equal shares. Sources are then matched
            band by band, each band weighted by its share of the generated negatives; generated ones outside
            the range of the mined ones, and bands without one source, are left alone. 0 matches everything.

    Raises:
        DataError: A negative belongs to no query.
        ValueError: ``bands`` is negative.
    """
    if bands < 0:
        raise ValueError(f"bands must not be negative, got {bands}")
    row = checked_rows(negative_row, len(query))
    generated_at, mined_at = torch.nonzero(generated)[:, 0], torch.nonzero(~generated)[:, 0]
    if not len(generated_at) or not len(mined_at):
        return zero_loss(query, negatives)
    s_generated, s_mined = similarity_by_source(query, negatives, row, generated_at, mined_at, gradient)
    if not bands:
        return _distance(s_generated, s_mined, distance)
    edges = torch.quantile(s_mined.detach(), torch.linspace(0, 1, bands + 1).to(s_mined))
    inside = (s_generated >= edges[0]) & (s_generated <= edges[-1])
    band_generated = torch.bucketize(s_generated.detach(), edges[1:-1]).masked_fill(~inside, -1)
    band_mined = torch.bucketize(s_mined.detach(), edges[1:-1])
    terms = [s_generated.sum() * 0]
    for band in range(bands):
        a, b = s_generated[band_generated == band], s_mined[band_mined == band]
        if len(a) and len(b):
            terms.append(_distance(a, b, distance) * (len(a) / len(s_generated)))
    return torch.stack(terms).sum()


def _distance(first: Float[Tensor, " m"], second: Float[Tensor, " n"], distance: str) -> Float[Tensor, ""]:
    """A distance between two samples, each of at least one number."""
    m, n = len(first), len(second)
    if distance == "energy":
        values, order = torch.cat([first, second]).sort()
        step = torch.cat([first.new_full((m,), 1 / m), second.new_full((n,), -1 / n)])[order]
        return 2 * (step.cumsum(0)[:-1] ** 2 * (values[1:] - values[:-1])).sum()
    # Both quantile functions are constant between the levels i / m and j / n; in whole numbers of 1 / (m n).
    a, b = torch.arange(1, m + 1, device=first.device), torch.arange(1, n + 1, device=first.device)
    levels = torch.cat([a * n, b * m]).sort().values
    width = torch.diff(levels, prepend=levels.new_zeros(1)).to(first.dtype) / (m * n)
    apart = first.sort().values[(levels - 1) // n] - second.sort().values[(levels - 1) // m]
    return (width * (apart.abs() if distance == "wasserstein" else apart**2)).sum()


def hardness_gap(similarity: Float[Tensor, " negatives"], generated: Bool[Tensor, " negatives"]) -> float:
    """``(mean similarity of generated - of mined negatives) / standard deviation of the mined ones``.

    Below 0 the generated negatives are the easier ones. NaN where a source is missing or the mined ones do
    not vary.

    Args:
        similarity: Similarity of each negative to its own query.
        generated: Whether each negative was generated.
    """
    similarity = similarity.detach().double()
    s_generated, s_mined = similarity[generated], similarity[~generated]
    if not len(s_generated) or not len(s_mined):
        return math.nan
    deviation = float(s_mined.std(unbiased=False))
    return float(s_generated.mean() - s_mined.mean()) / deviation if deviation > 0 else math.nan


def easy_negatives(gap: float, *, threshold: float = 1.0) -> str | None:
    """A line for the user when generated negatives are much easier than mined ones, else None.

    Matching distributions then teaches the encoder that texts off the topic are near it.

    Args:
        gap: What :func:`hardness_gap` found.
        threshold: Gap from which there is a line, in standard deviations of the mined similarities.
    """
    if not gap < -threshold:
        return None
    return (
        f"generated negatives are {-gap:.1f} standard deviations easier than mined ones: matching their "
        "similarities would pull texts off the topic towards the query; write harder ones, or match in bands"
    )


class MatchingTerm(Term):
    """``weight * distribution_matching``.

    Args:
        weight: Its weight in the loss.
        distance: Distance between the two distributions.
        gradient: What its gradient reaches.
        bands: Hardness bands that are matched apart; 0 matches everything.
    """

    def __init__(
        self,
        *,
        weight: Annotated[float, Ge(0)] = 1.0,
        distance: Distance = "wasserstein",
        gradient: Gradient = "generated",
        bands: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(weight=weight)
        self.distance: Distance = distance
        self.gradient, self.bands = gradient, bands

    def value(self, batch: EmbeddedBatch) -> Float[Tensor, ""]:
        """The distance, without its weight."""
        return distribution_matching(
            batch.query,
            batch.negatives,
            batch.negative_row,
            batch.generated,
            distance=self.distance,
            gradient=self.gradient,
            bands=self.bands,
        )

    def warning(self, hardness_gap: float) -> str | None:
        """What a user should know where generated negatives are much easier than mined ones."""
        return easy_negatives(hardness_gap) if self.weight else None
