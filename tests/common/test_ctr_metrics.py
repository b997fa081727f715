"""Metrics against scikit-learn, by hand, and where they are not defined."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from sklearn.metrics import log_loss, roc_auc_score

from common.errors import DataError
from common.metrics.ctr import DEFAULT_BUCKETS, bucket_masks, bucket_name, ctr_metrics, user_auc

rows = st.lists(
    st.tuples(
        st.integers(0, 1),  # label
        st.integers(0, 4).map(lambda tenth: tenth / 4),  # score: ties are frequent, 0 and 1 occur
        st.integers(0, 5),  # user
        st.sampled_from([0, 1, 49, 50, 99, 100, 199, 200, 3000]),  # true length
        st.sampled_from([0.0, 0.25, 1.0, 3.0]),  # weight
        st.sampled_from([0.0, 0.1, 0.5, 1.0]),  # true probability
    ),
    min_size=1,
    max_size=60,
)


def columns(table: list[tuple[float, ...]]) -> tuple[np.ndarray, ...]:
    return tuple(np.array(column) for column in zip(*table, strict=True))


def looped_gauc(user: np.ndarray, label: np.ndarray, score: np.ndarray, weight: np.ndarray) -> float | None:
    """The definition: one scikit-learn call a user."""
    total, above = 0.0, 0.0
    for one in np.unique(user):
        mine = (user == one) & (weight > 0)
        if len(set(label[mine])) == 2:
            above += weight[mine].sum() * roc_auc_score(label[mine], score[mine], sample_weight=weight[mine])
            total += weight[mine].sum()
    return above / total if total else None


@settings(max_examples=40, deadline=None)
@given(rows)
def test_equals_scikit_learn(table: list[tuple[float, ...]]) -> None:
    label, score, user, length, weight, _ = columns(table)
    found = ctr_metrics(label=label, score=score, user=user, length=length, weight=weight)
    groups = {"": np.ones(len(label), dtype=bool)} | {
        f"/{name}": mask for name, mask in bucket_masks(length).items()
    }
    for suffix, mask in groups.items():
        here = mask & (weight > 0)
        y, s, w = label[here], score[here], weight[here]
        if len(set(y)) == 2:
            expected = roc_auc_score(y, s, sample_weight=w)
            assert found.values[f"auc{suffix}"] == pytest.approx(expected, abs=1e-12)
        else:
            assert found.values[f"auc{suffix}"] is None
            assert found.reasons[f"auc{suffix}"]
        if len(y):
            expected = log_loss(y, s.astype(np.float64), sample_weight=w, labels=[0, 1])
            assert found.values[f"logloss{suffix}"] == pytest.approx(expected, rel=1e-12, abs=1e-12)
        else:
            assert found.values[f"logloss{suffix}"] is None
        gauc = looped_gauc(user[here], y, s, w)
        assert found.values[f"gauc{suffix}"] == (None if gauc is None else pytest.approx(gauc, abs=1e-12))
        assert found.values[f"samples{suffix}"] == mask.sum()
        assert found.values[f"users{suffix}"] == len(set(user[mask]))


@settings(max_examples=40, deadline=None)
@given(rows)
def test_nothing_is_ever_nan_and_every_gap_has_a_reason(table: list[tuple[float, ...]]) -> None:
    label, score, user, length, weight, probability = columns(table)
    found = ctr_metrics(
        label=label, score=score, user=user, length=length, weight=weight, probability=probability
    )
    assert all(value is None or math.isfinite(value) for value in found.values.values())
    assert set(found.reasons) == {key for key, value in found.values.items() if value is None}


@settings(max_examples=40, deadline=None)
@given(rows)
def test_auc_of_each_user_equals_scikit_learn(table: list[tuple[float, ...]]) -> None:
    label, score, user, _, weight, _ = columns(table)
    users, auc, total = user_auc(user=user, label=label, score=score, weight=weight)
    assert list(users) == sorted(set(user))
    for one, value, mass in zip(users, auc, total, strict=True):
        mine = (user == one) & (weight > 0)
        assert mass == pytest.approx(weight[mine].sum())
        if len(set(label[mine])) == 2:
            expected = roc_auc_score(label[mine], score[mine], sample_weight=weight[mine])
            assert value == pytest.approx(expected, abs=1e-12)
        else:
            assert math.isnan(value)


def test_gauc_and_calibration_by_hand() -> None:
    # user 7: 2 clicks over 1 skip, one pair right, one tied -> .75, 3 rows; user 8: wrong -> 0, 2 rows;
    # user 9: clicks only, dropped.
    user = np.array([7, 7, 7, 8, 8, 9])
    label = np.array([1, 1, 0, 1, 0, 1])
    score = np.array([0.9, 0.4, 0.4, 0.1, 0.2, 0.5])
    found = ctr_metrics(label=label, score=score, user=user).values
    assert found["gauc"] == pytest.approx((3 * 0.75 + 2 * 0) / 5)
    assert found["calibration"] == pytest.approx(2.5 / 4)


def test_by_user_each_user_counts_one() -> None:
    # User 0 has four rows of weight 1/4, user 1 one row of weight 1.
    label = np.array([1, 1, 0, 0, 0])
    score = np.array([0.8, 0.8, 0.3, 0.3, 0.9])
    user = np.array([0, 0, 0, 0, 1])
    found = ctr_metrics(label=label, score=score, user=user).values
    # Clicked mass 1/2; skipped: below it 1/2, above it 1.
    assert found["auc_by_user"] == pytest.approx(0.5 / 1.5)
    assert found["auc"] == pytest.approx(2 / 3)
    losses = -np.log([0.8, 0.7, 0.1])
    assert found["logloss_by_user"] == pytest.approx(((losses[0] + losses[1]) / 2 + losses[2]) / 2)


def test_by_user_counts_the_rows_of_the_bucket_only() -> None:
    label, score = np.array([1, 0, 1, 0, 0]), np.array([0.6, 0.2, 0.3, 0.5, 0.4])
    user, length = np.array([0, 0, 1, 1, 1]), np.array([10, 10, 10, 10, 500])
    inside = length < 50
    whole = ctr_metrics(label=label, score=score, user=user, length=length).values
    alone = ctr_metrics(label=label[inside], score=score[inside], user=user[inside]).values
    assert whole["auc_by_user/0-50"] == alone["auc_by_user"]


@settings(max_examples=40, deadline=None)
@given(rows)
def test_expected_values_are_means_over_pairs_and_rows(table: list[tuple[float, ...]]) -> None:
    label, score, _, _, weight, p = columns(table)
    found = ctr_metrics(label=label, score=score, weight=weight, probability=p).values
    clicked, skipped = weight * p, weight * (1 - p)
    wins = (score[:, None] > score[None]) + 0.5 * (score[:, None] == score[None])
    pairs = clicked.sum() * skipped.sum()
    if pairs > 0:
        assert found["expected_auc"] == pytest.approx(clicked @ wins @ skipped / pairs, abs=1e-9)
    else:
        assert found["expected_auc"] is None


def test_the_true_probability_is_the_best_score() -> None:
    generator = np.random.default_rng(0)
    p = generator.beta(2, 3, 20_000)
    label = (generator.random(len(p)) < p).astype(np.uint8)
    score = np.clip(p + generator.normal(0, 0.2, len(p)), 0, 1)
    found = ctr_metrics(label=label, score=score, probability=p).values
    assert found["best_auc"] == roc_auc_score(label, p)
    assert found["best_expected_auc"] > found["expected_auc"]  # type: ignore[operator]  # both are numbers here
    assert found["best_expected_logloss"] < found["expected_logloss"]  # type: ignore[operator]  # likewise
    entropy = -(p * np.log(p) + (1 - p) * np.log1p(-p)).mean()
    assert found["best_expected_logloss"] == pytest.approx(entropy)


def test_buckets_are_half_open_and_named() -> None:
    assert [bucket_name(bucket) for bucket in DEFAULT_BUCKETS] == [
        "0-50",
        "50-100",
        "0-100",
        "100-200",
        "200+",
    ]
    masks = bucket_masks(np.array([0, 49, 50, 99, 100, 199, 200, 10_000]))
    assert [int(mask.sum()) for mask in masks.values()] == [2, 2, 4, 2, 2]
    assert masks["200+"].tolist() == [False] * 6 + [True] * 2


@pytest.mark.parametrize("bucket", [(5, 5), (-1, 3), (10, 2)])
def test_a_bucket_that_holds_nothing_is_refused(bucket: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="low < high"):
        bucket_masks(np.array([1]), [bucket])


def test_one_class_gives_a_gap_and_the_rest_goes_on() -> None:
    found = ctr_metrics(
        label=np.array([1, 1, 1, 0]),
        score=np.array([0.5, 0.6, 0.7, 0.2]),
        user=np.array([0, 0, 1, 1]),
        length=np.array([10, 10, 300, 300]),
    )
    assert found.values["auc/0-50"] is None
    assert found.reasons["auc/0-50"] == "all 2 rows have label 1"
    assert found.reasons["gauc/0-50"] == "each of the 1 users has one class only"
    assert found.reasons["auc/100-200"] == "no rows"
    assert found.values["auc/200+"] == 1
    assert found.values["auc"] == 1


def test_scores_that_are_not_finite_make_gaps_not_nan() -> None:
    found = ctr_metrics(
        label=np.array([1, 0, 1]), score=np.array([0.5, math.nan, math.inf]), user=np.arange(3)
    )
    assert found.values["auc"] is None
    assert found.reasons["logloss"] == "2 of 3 scores are not finite"
    assert found.values["samples"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": [0, 2]}, "labels must be 0 or 1, found 2"),
        ({"score": [0.1, 1.5]}, r"score must be a probability in \[0, 1\]"),
        ({"probability": [0.1, math.nan]}, r"probability must be a probability in \[0, 1\]"),
        ({"weight": [1, -1]}, "weights must be finite and not negative"),
    ],
)
def test_wrong_columns_are_refused(change: dict[str, list[float]], message: str) -> None:
    good = {"label": [0, 1], "score": [0.1, 0.2]}
    both: Any = {name: np.array(column) for name, column in {**good, **change}.items()}
    with pytest.raises(DataError, match=message):
        ctr_metrics(**both)


def test_columns_of_different_lengths_are_refused() -> None:
    """By the check of shapes under pytest, by the function itself otherwise."""
    with pytest.raises((DataError, TypeCheckError)):
        ctr_metrics(label=np.array([0, 1]), score=np.array([0.1, 0.2]), user=np.arange(3))
