"""Click-through metrics, whole and per bucket of true history length, counted by sample and by user."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from common.errors import DataError

Bucket = tuple[int, int | None]

DEFAULT_BUCKETS: tuple[Bucket, ...] = ((0, 50), (50, 100), (0, 100), (100, 200), (200, None))
"""Half-open ranges ``[low, high)`` of history length; ``None`` is no upper end."""


def bucket_name(bucket: Bucket) -> str:
    """Name of a bucket in metric keys: ``"0-50"``, or ``"200+"`` without an upper end."""
    low, high = bucket
    return f"{low}+" if high is None else f"{low}-{high}"


def bucket_masks(
    length: Int[np.ndarray, " rows"], buckets: Sequence[Bucket] = DEFAULT_BUCKETS
) -> dict[str, Bool[np.ndarray, " rows"]]:
    """Which rows fall into each bucket.

    Args:
        length: TRUE history length of each row, in behaviours, not the truncated one.
        buckets: Half-open ranges ``[low, high)``; they may overlap.

    Returns:
        One mask per bucket, by its name.

    Raises:
        ValueError: A bucket is empty by construction.
    """
    for low, high in buckets:
        if low < 0 or (high is not None and high <= low):
            raise ValueError(f"a bucket needs 0 <= low < high, got ({low}, {high})")
    return {
        bucket_name((low, high)): (length >= low) & (length < high if high is not None else True)
        for low, high in buckets
    }


@dataclass(frozen=True)
class Metrics:
    """Metrics by key; where a value is ``None``, ``reasons`` says why under the same key."""

    values: dict[str, float | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def put(self, key: str, value: float | None, reason: str = "") -> None:
        """Store one metric; a missing value needs a reason."""
        self.values[key] = None if value is None else float(value)
        if value is None:
            self.reasons[key] = reason


@dataclass(frozen=True)
class Rows:
    """The rows of one split or bucket, sorted by user, then by score.

    Args:
        label: 0 or 1.
        score: Predicted click probability.
        weight: Weight of each row.
        user: User of each row, where it is known.
        probability: True click probability, where a simulation knows it.
    """

    label: Float[np.ndarray, " rows"]
    score: Float[np.ndarray, " rows"]
    weight: Float[np.ndarray, " rows"]
    user: Int[np.ndarray, " rows"] | None
    probability: Float[np.ndarray, " rows"] | None

    def pick(self, rows: Shaped[np.ndarray, " picked"]) -> Rows:
        """Rows by mask or by position."""
        user = None if self.user is None else self.user[rows]
        probability = None if self.probability is None else self.probability[rows]
        return Rows(self.label[rows], self.score[rows], self.weight[rows], user, probability)

    @property
    def one_per_user(self) -> Float[np.ndarray, " rows"]:
        """Weights that sum to one for each user of positive weight."""
        assert self.user is not None
        first = _starts(self.user)
        each = np.diff(first, append=len(self.user))
        total = np.repeat(np.add.reduceat(self.weight, first), each) if len(first) else self.weight
        return np.asarray(np.divide(self.weight, total, out=np.zeros_like(total), where=total > 0))


Measured = tuple[float | None, str] | None
"""A value; None with the reason why it is not defined; None alone where a column that it needs is missing."""


def _starts(*columns: Shaped[np.ndarray, " rows"]) -> Int[np.ndarray, " runs"]:
    """First positions of the runs of rows that are equal in every column."""
    change = np.zeros(len(columns[0]), dtype=bool)
    change[:1] = True
    for column in columns:
        change[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(change)


def user_auc(
    *,
    user: Int[np.ndarray, " rows"],
    label: Shaped[np.ndarray, " rows"],
    score: Float[np.ndarray, " rows"],
    weight: Float[np.ndarray, " rows"] | None = None,
) -> tuple[Int[np.ndarray, " users"], Float[np.ndarray, " users"], Float[np.ndarray, " users"]]:
    """AUC of each user, all at once.

    ``AUC_u = sum_{i clicked, j not} w_i w_j ([s_i > s_j] + [s_i = s_j] / 2) / (W_clicked W_not)``,
    the value that scikit-learn's ``roc_auc_score`` gives for the rows of that user. No library has an AUC by
    group but as a loop over groups; over the 22,709 users of KuaiRand-Pure's test rows that takes half a
    minute, and this a tenth of a second.

    Args:
        user: User of each row.
        label: 0 or 1.
        score: Any score that ranks.
        weight: Weight of each row, not negative; 1 by default.

    Returns:
        The users in rising order, their AUC (NaN where all rows have one class), their total weight.
    """
    weight = np.ones(len(user)) if weight is None else np.asarray(weight, dtype=np.float64)
    order = np.lexsort((score, user))
    user, score, weight = user[order], score[order], weight[order]
    clicked = weight * label[order]
    skipped = weight - clicked
    first = _starts(user)
    if not len(first):
        return user, np.zeros(0), np.zeros(0)
    rows = np.diff(first, append=len(user))
    below = np.cumsum(skipped) - skipped
    below -= np.repeat(below[first], rows)  # not clicked, same user, earlier in the order
    tie = _starts(user, score)
    tie_wins = np.add.reduceat(clicked, tie) * (below[tie] + np.add.reduceat(skipped, tie) / 2)
    wins = np.add.reduceat(tie_wins, np.searchsorted(tie, first))
    pairs = np.add.reduceat(clicked, first) * np.add.reduceat(skipped, first)
    auc = np.divide(wins, pairs, out=np.full(len(first), np.nan), where=pairs > 0)
    return user[first], auc, np.add.reduceat(weight, first)


def _auc(
    label: Shaped[np.ndarray, " rows"],
    score: Float[np.ndarray, " rows"],
    weight: Float[np.ndarray, " rows"],
) -> tuple[float | None, str]:
    positive = float(weight @ label)
    total = float(weight.sum())
    if total <= 0:
        return None, "no rows"
    if positive <= 0 or not np.any(weight * (1 - label) > 0):
        return None, f"all {len(label)} rows have label {int(positive > 0)}"
    from sklearn.metrics import roc_auc_score  # imported late: it takes two seconds

    order = np.argsort(score, kind="stable")  # scikit-learn sorts again, which is then cheap
    return float(roc_auc_score(label[order], score[order], sample_weight=weight[order])), ""


def _soft_auc(
    target: Float[np.ndarray, " rows"],
    score: Float[np.ndarray, " rows"],
    weight: Float[np.ndarray, " rows"],
) -> tuple[float | None, str]:
    """AUC where each row counts as clicked with weight p and as not clicked with weight 1 - p."""
    label = np.repeat(np.array([0.0, 1.0]), len(target))
    return _auc(label, np.tile(score, 2), np.concatenate((weight * (1 - target), weight * target)))


def _logloss(
    label: Shaped[np.ndarray, " rows"],
    score: Float[np.ndarray, " rows"],
    weight: Float[np.ndarray, " rows"],
) -> tuple[float | None, str]:
    if float(weight.sum()) <= 0:
        return None, "no rows"
    from sklearn.metrics import log_loss  # imported late: it takes two seconds

    return float(log_loss(label, score, sample_weight=weight, labels=[0.0, 1.0])), ""


def _soft_logloss(
    target: Float[np.ndarray, " rows"],
    score: Float[np.ndarray, " rows"],
    weight: Float[np.ndarray, " rows"],
) -> tuple[float | None, str]:
    label = np.repeat(np.array([0.0, 1.0]), len(target))
    return _logloss(label, np.tile(score, 2), np.concatenate((weight * (1 - target), weight * target)))


def auc(rows: Rows) -> Measured:
    """Area under the ROC curve, scikit-learn's."""
    return _auc(rows.label, rows.score, rows.weight)


def logloss(rows: Rows) -> Measured:
    """Mean of ``-log p(label)``, scikit-learn's."""
    return _logloss(rows.label, rows.score, rows.weight)


def calibration(rows: Rows) -> Measured:
    """Sum of scores over number of clicks."""
    observed = float(rows.weight @ rows.label)
    if observed <= 0:
        return None, "no clicks" if len(rows.label) else "no rows"
    return float(rows.weight @ rows.score) / observed, ""


def samples(rows: Rows) -> Measured:
    """Number of rows."""
    return float(len(rows.label)), ""


def gauc(rows: Rows) -> Measured:
    """AUC of each user, averaged with the user's weight; users of one class are dropped."""
    if rows.user is None:
        return None
    _, each, weight = user_auc(user=rows.user, label=rows.label, score=rows.score, weight=rows.weight)
    valid = np.isfinite(each) & (weight > 0)
    if not valid.any():
        return None, "no rows" if not len(each) else f"each of the {len(each)} users has one class only"
    return float(np.average(each[valid], weights=weight[valid])), ""


def users(rows: Rows) -> Measured:
    """Number of users."""
    return None if rows.user is None else (float(len(_starts(rows.user))), "")


def auc_by_user(rows: Rows) -> Measured:
    """AUC in which each user counts one, however many rows it has there."""
    return None if rows.user is None else _auc(rows.label, rows.score, rows.one_per_user)


def logloss_by_user(rows: Rows) -> Measured:
    """Logloss in which each user counts one."""
    return None if rows.user is None else _logloss(rows.label, rows.score, rows.one_per_user)


def best_auc(rows: Rows) -> Measured:
    """AUC of the true probability as the score, same labels."""
    return None if rows.probability is None else _auc(rows.label, rows.probability, rows.weight)


def best_logloss(rows: Rows) -> Measured:
    """Logloss of the true probability as the score, same labels."""
    return None if rows.probability is None else _logloss(rows.label, rows.probability, rows.weight)


def expected_auc(rows: Rows) -> Measured:
    """AUC with each row clicked with weight p and not clicked with weight 1 - p: no noise of labels."""
    return None if rows.probability is None else _soft_auc(rows.probability, rows.score, rows.weight)


def expected_logloss(rows: Rows) -> Measured:
    """Logloss with each row clicked with weight p and not clicked with weight 1 - p."""
    return None if rows.probability is None else _soft_logloss(rows.probability, rows.score, rows.weight)


def best_expected_auc(rows: Rows) -> Measured:
    """The expected AUC of the true probability."""
    return None if rows.probability is None else _soft_auc(rows.probability, rows.probability, rows.weight)


def best_expected_logloss(rows: Rows) -> Measured:
    """The expected logloss of the true probability."""
    true = rows.probability
    return None if true is None else _soft_logloss(true, true, rows.weight)


CTR_MEASURES: dict[str, Callable[[Rows], Measured]] = {
    "auc": auc,
    "logloss": logloss,
    "calibration": calibration,
    "samples": samples,
    "gauc": gauc,
    "users": users,
    "auc_by_user": auc_by_user,
    "logloss_by_user": logloss_by_user,
    "best_auc": best_auc,
    "best_logloss": best_logloss,
    "expected_auc": expected_auc,
    "expected_logloss": expected_logloss,
    "best_expected_auc": best_expected_auc,
    "best_expected_logloss": best_expected_logloss,
}
"""Measures by name, each also under ``/BUCKET``. A new one is a function and a line here; one that needs a
column that is not there gives None and is left out."""


def _column(name: str, values: Shaped[np.ndarray, " rows"], rows: int) -> Float[np.ndarray, " rows"]:
    if np.shape(values) != (rows,):
        raise DataError(f"{name} has shape {np.shape(values)}, but there are {rows} labels")
    return np.asarray(values, dtype=np.float64)


def ctr_metrics(
    *,
    label: Shaped[np.ndarray, " rows"],
    score: Float[np.ndarray, " rows"],
    user: Int[np.ndarray, " rows"] | None = None,
    length: Int[np.ndarray, " rows"] | None = None,
    weight: Shaped[np.ndarray, " rows"] | None = None,
    probability: Float[np.ndarray, " rows"] | None = None,
    buckets: Sequence[Bucket] = DEFAULT_BUCKETS,
) -> Metrics:
    """AUC, gAUC, logloss and calibration, whole and per bucket of true history length.

    Keys are those of :data:`CTR_MEASURES`, each also with ``/0-50``, ``/50-100``, ...; those that need a user
    or a true probability are there where it is given.

    A metric that is not defined (one class, no rows, a score that is not finite) is ``None`` with a reason;
    no value is ever NaN.

    Args:
        label: 0 or 1.
        score: Predicted click probability, in [0, 1].
        user: User of each row; without it no ``gauc`` and nothing by user.
        length: TRUE history length of each row, in behaviours; without it no buckets.
        weight: Weight of each row, not negative; 1 by default.
        probability: True click probability of each row, where a simulation knows it.
        buckets: Half-open ranges of length.

    Raises:
        DataError: A label is not 0 or 1, a score or probability lies outside [0, 1], a weight is negative,
            or the columns differ in length.
    """
    rows = len(label)
    target = _column("label", label, rows)
    values = _column("score", score, rows)
    weights = np.ones(rows) if weight is None else _column("weight", weight, rows)
    truth = None if probability is None else _column("probability", probability, rows)
    if not np.isin(target, (0.0, 1.0)).all():
        raise DataError(f"labels must be 0 or 1, found {target[~np.isin(target, (0.0, 1.0))][0]:g}")
    if not (weights >= 0).all() or not np.isfinite(weights).all():
        raise DataError("weights must be finite and not negative")
    finite = np.isfinite(values)
    values = np.where(finite, values, 0.5)
    for name, column in (("score", values), ("probability", truth)):
        if column is not None and not ((column >= 0) & (column <= 1)).all():
            raise DataError(f"{name} must be a probability in [0, 1]")
    users = None if user is None else _column("user", user, rows).astype(np.int64)
    masks = {} if length is None else bucket_masks(_column("length", length, rows).astype(np.int64), buckets)

    order = np.lexsort((values,) if users is None else (values, users))
    whole = Rows(target, values, weights, users, truth).pick(order)
    out = Metrics()
    groups = {"": whole} | {f"/{name}": whole.pick(mask[order]) for name, mask in masks.items()}
    for suffix, group in groups.items():
        for name, measure in CTR_MEASURES.items():
            measured = measure(group)
            if measured is not None:
                out.put(f"{name}{suffix}", *measured)
    if not finite.all():
        broken = f"{rows - int(finite.sum())} of {rows} scores are not finite"
        for key in out.values:
            if not key.startswith(("best", "samples", "users")):
                out.put(key, None, broken)
    return out
