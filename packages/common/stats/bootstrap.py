"""Paired bootstrap over users or queries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.special import ndtr

from common.metrics.ctr import user_auc
from common.stats.spread import spread

Values = Mapping[str, Float[np.ndarray, " resamples_plus_one"]]
"""A metric per group: first on the rows as they are, then on every resample."""


@dataclass(frozen=True)
class Difference:
    """A difference between two arms, with what the bootstrap says about it.

    Args:
        mean: Difference on the rows as they are, averaged over seeds.
        low: Lower end of the interval.
        high: Upper end of the interval.
        p: Two-sided p; 1 where the difference is exactly 0 in every resample.
        deviation: Standard deviation of the difference over seeds; NaN for one seed.
        error: Standard error of the difference.
        freedom: Degrees of freedom of its t distribution; infinite for a normal one.
    """

    mean: float
    low: float
    high: float
    p: float
    deviation: float
    error: float
    freedom: float = math.inf


class UserBootstrap:
    """Metrics on the same resamples of users for every model, so that any two can be compared in pairs.

    Users are drawn with replacement, each with all its rows; a resample is a weight per user, the number of
    times it was drawn. Rows of one user are not independent, so rows are never drawn on their own.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993); the cluster bootstrap of Field and
    Welsh (JRSS B, 2007).

    Args:
        user: User of each row.
        label: 0 or 1.
        groups: Rows of each group (whole, buckets) by name; by default one group ``""`` of all rows.
        resamples: Number of resamples.
        seed: Seed of the resamples.

    Raises:
        ValueError: There are no rows, or fewer than 2 resamples.
    """

    def __init__(
        self,
        *,
        user: Int[np.ndarray, " rows"],
        label: Shaped[np.ndarray, " rows"],
        groups: Mapping[str, Bool[np.ndarray, " rows"]] | None = None,
        resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        """Draw all resamples at once."""
        if not len(user):
            raise ValueError("a bootstrap needs at least one row")
        if resamples < 2:
            raise ValueError(f"resamples must be at least 2, got {resamples}")
        self.label = np.asarray(label, dtype=bool)
        everything = np.ones(len(user), dtype=bool)
        self.groups = {"": everything} if groups is None else dict(groups)
        users, self.user = np.unique(user, return_inverse=True)
        self.counts = _draw(len(users), resamples, seed)

    def auc(self, score: Float[np.ndarray, " rows"]) -> Values:
        """Area under the ROC curve on every resample.

        Equal to scikit-learn's ``roc_auc_score`` with the resample's counts as ``sample_weight``. Scores are
        sorted once; a resample then costs a cumulative sum. NaN where a resample has one class only.
        """
        order = np.argsort(score, kind="stable")
        label, user, ranked = self.label[order], self.user[order], np.asarray(score)[order]
        return {
            name: self._auc(label[kept], user[kept], ranked[kept])
            for name, kept in ((name, mask[order]) for name, mask in self.groups.items())
        }

    def _auc(
        self,
        label: Bool[np.ndarray, " rows"],
        user: Int[np.ndarray, " rows"],
        score: Float[np.ndarray, " rows"],
    ) -> Float[np.ndarray, " resamples"]:
        clicked, skipped = user[label], user[~label]
        below = np.searchsorted(score[~label], score[label], side="left")
        equal = np.searchsorted(score[~label], score[label], side="right")
        tied = np.flatnonzero(equal > below)
        total = np.zeros(len(skipped) + 1, dtype=np.int64)
        out = np.full(len(self.counts), np.nan)
        for resample, count in enumerate(self.counts):
            np.cumsum(count[skipped], out=total[1:])
            weight = count[clicked]
            wins = 2 * int(weight @ total[below])
            wins += int(weight[tied] @ (total[equal[tied]] - total[below[tied]]))
            pairs = 2 * int(weight.sum()) * int(total[-1])
            if pairs:
                out[resample] = wins / pairs
        return out

    def logloss(self, score: Float[np.ndarray, " rows"]) -> Values:
        """Mean negative log likelihood on every resample, equal to scikit-learn's ``log_loss``."""
        limit = np.finfo(np.float64).eps
        clipped = np.clip(np.asarray(score, dtype=np.float64), limit, 1 - limit)
        loss = -np.log(np.where(self.label, clipped, 1 - clipped))
        tops = {name: self._sum(loss * mask) for name, mask in self.groups.items()}
        return self._ratios(tops, {name: self._sum(mask * 1.0) for name, mask in self.groups.items()})

    def gauc(self, score: Float[np.ndarray, " rows"]) -> Values:
        """AUC of each user weighted by its rows, users of one class dropped, on every resample."""
        tops, bottoms = {}, {}
        for name, mask in self.groups.items():
            users, auc, rows = user_auc(user=self.user[mask], label=self.label[mask], score=score[mask])
            valid = np.isfinite(auc)
            tops[name], bottoms[name] = np.zeros((2, self.counts.shape[1]))
            tops[name][users[valid]] = auc[valid] * rows[valid]
            bottoms[name][users[valid]] = rows[valid]
        return self._ratios(tops, bottoms)

    def _sum(self, values: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " users"]:
        return np.bincount(self.user, weights=values, minlength=self.counts.shape[1])

    def _ratios(
        self,
        tops: Mapping[str, Float[np.ndarray, " users"]],
        bottoms: Mapping[str, Float[np.ndarray, " users"]],
    ) -> Values:
        """Sum of tops over sum of bottoms of each group, on every resample."""
        columns = np.stack([*tops.values(), *bottoms.values()], axis=1)
        sums = np.concatenate([self.counts[at : at + 64] @ columns for at in range(0, len(self.counts), 64)])
        top, bottom = np.split(sums, 2, axis=1)
        ratios = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)
        return dict(zip(tops, ratios.T, strict=True))


class MeanBootstrap:
    """Means over the same resamples of queries for every model, so that any two can be compared in pairs.

    Queries are drawn with replacement; a resample is a weight per query, the number of times it was drawn.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993); for retrieval Sakai, Evaluating
    evaluation metrics based on the bootstrap (SIGIR 2006).

    Args:
        queries: Ids of the queries, in any order: resamples depend on which they are, not on their order.
        resamples: Number of resamples.
        seed: Seed of the resamples.

    Raises:
        ValueError: There are no queries, an id is there twice, or there are fewer than 2 resamples.
    """

    def __init__(self, queries: Iterable[str], *, resamples: int = 1000, seed: int = 0) -> None:
        """Draw all resamples at once."""
        self.queries = sorted(queries)
        if not self.queries:
            raise ValueError("a bootstrap needs at least one query")
        twice = [a for a, b in pairwise(self.queries) if a == b]
        if twice:
            raise ValueError(f"query {twice[0]} is there twice")
        if resamples < 2:
            raise ValueError(f"resamples must be at least 2, got {resamples}")
        self.counts = _draw(len(self.queries), resamples, seed)

    def mean(self, values: Mapping[str, float]) -> Float[np.ndarray, " resamples_plus_one"]:
        """Mean over the queries as they are, then on every resample; what :func:`paired_difference` reads.

        Args:
            values: A metric by query. NaN leaves a query out; so do it in both arms of a comparison.
                Queries that this bootstrap is not about are passed over.

        Returns:
            The means; NaN where a resample has no query with a value.

        Raises:
            ValueError: A query has no entry.
        """
        missing = [query for query in self.queries if query not in values]
        if missing:
            raise ValueError(f"{len(missing)} queries have no value, {missing[0]} is the first")
        column = np.array([values[query] for query in self.queries], dtype=np.float64)
        valid = ~np.isnan(column)
        top = self.counts @ np.where(valid, column, 0)
        bottom = self.counts @ valid.astype(np.float64)
        means: Float[np.ndarray, " resamples"] = np.full(len(top), np.nan)
        np.divide(top, bottom, out=means, where=bottom > 0)
        return means


def _draw(units: int, resamples: int, seed: int) -> Int[np.ndarray, "resamples_plus_one units"]:
    """How often each unit is drawn: once in row 0, the units as they are; then in every resample."""
    generator = np.random.default_rng(seed)
    counts = np.ones((resamples + 1, units), dtype=np.int32)
    for row in counts[1:]:
        row[:] = np.bincount(generator.integers(0, units, units), minlength=units)
    return counts


def paired_difference(
    treated: Sequence[Float[np.ndarray, " resamples_plus_one"]],
    reference: Sequence[Float[np.ndarray, " resamples_plus_one"]],
    *,
    confidence: float = 0.95,
) -> Difference | None:
    """Difference of a metric between two arms, its seeds pooled within each resample.

    ``d_r = mean over seeds of (treated_r - reference_r)``. The interval holds the middle ``confidence`` of
    the ``d_r``; ``p = 2 Phi(-|d_0| / sd(d_r))``. The share of resamples beyond zero says the same but cannot
    fall below 2 / resamples, which a correction for many comparisons would turn into "never significant".

    Users (or queries) are resampled, seeds are not: the interval speaks about new users, ``deviation`` about
    new seeds. For both at once see :func:`common.stats.crossed.crossed_difference`.

    Args:
        treated: Per seed the metric as it is, then on every resample, from one :class:`UserBootstrap` or
            :class:`MeanBootstrap`.
        reference: The same of the other arm, seeds in the same order.
        confidence: Share of resamples inside the interval.

    Returns:
        The difference, or ``None`` where the metric is not defined on the rows as they are.

    Raises:
        ValueError: The arms differ in seeds, or ``confidence`` is not inside (0, 1).
    """
    seeds = seed_differences(treated, reference, confidence)
    if seeds is None:
        return None
    pooled = seeds.mean(axis=0)
    low, high = np.quantile(pooled[1:], [(1 - confidence) / 2, (1 + confidence) / 2])
    mean, error = float(pooled[0]), float(pooled[1:].std(ddof=1))
    p = float(2 * ndtr(-abs(mean) / error)) if error > 0 else float(mean == 0)
    return Difference(mean, float(low), float(high), p, spread(list(seeds[:, 0])).deviation, error)


def seed_differences(
    treated: Sequence[Float[np.ndarray, " resamples_plus_one"]],
    reference: Sequence[Float[np.ndarray, " resamples_plus_one"]],
    confidence: float,
) -> Float[np.ndarray, "seeds defined"] | None:
    """Difference of each seed on the rows as they are, then on every resample where all seeds have one.

    Returns:
        The differences, or ``None`` where the metric is not defined on the rows as they are.

    Raises:
        ValueError: The arms differ in seeds, or ``confidence`` is not inside (0, 1).
    """
    if len(treated) != len(reference) or not len(treated):
        raise ValueError(f"both arms need the same seeds, got {len(treated)} and {len(reference)}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie inside (0, 1), got {confidence}")
    seeds = np.stack(list(treated)) - np.stack(list(reference))
    defined = np.isfinite(seeds).all(axis=0)
    if not defined[0] or defined.sum() < 3:
        return None
    kept: Float[np.ndarray, "seeds defined"] = seeds[:, defined]
    return kept
