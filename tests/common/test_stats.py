"""The bootstrap against scikit-learn and against new samples, and corrections by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel
from sklearn.metrics import log_loss, roc_auc_score

from common.stats.bootstrap import MeanBootstrap, UserBootstrap, paired_difference
from common.stats.multiple import holm
from common.stats.spread import spread

rows = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 4).map(lambda tenth: tenth / 4), st.integers(0, 5)),
    min_size=1,
    max_size=40,
)


def population(
    generator: np.random.Generator, users: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """User, label and the scores of two models; rows of a user have much in common."""
    user = np.repeat(np.arange(users), generator.integers(1, 12, users))
    taste = generator.normal(size=users)[user]
    label = generator.random(len(user)) < 1 / (1 + np.exp(-taste))
    good = taste + generator.normal(0, 1, len(user))
    poor = taste * (generator.random(users) < 0.7)[user] + generator.normal(0, 1.2, len(user))
    return user, label, good, poor


@settings(max_examples=40, deadline=None)
@given(rows)
def test_every_resample_equals_scikit_learn(table: list[tuple[float, ...]]) -> None:
    label, score, user = (np.array(column) for column in zip(*table, strict=True))
    some = score <= 0.5
    bootstrap = UserBootstrap(user=user, label=label, groups={"all": score >= 0, "some": some}, resamples=8)
    auc, loss = bootstrap.auc(score), bootstrap.logloss(score)
    place = np.unique(user, return_inverse=True)[1]
    for resample, counts in enumerate(bootstrap.counts):
        for name, mask in (("all", score >= 0), ("some", some)):
            weight = counts[place] * mask
            drawn = weight > 0
            y, s, w = label[drawn], score[drawn], weight[drawn]
            if len(set(y)) == 2:
                expected = roc_auc_score(y, s, sample_weight=w)
                assert auc[name][resample] == pytest.approx(expected, abs=1e-12)
            else:
                assert math.isnan(auc[name][resample])
            if len(y):
                expected = log_loss(y, s.astype(np.float64), sample_weight=w, labels=[0, 1])
                assert loss[name][resample] == pytest.approx(expected, rel=1e-12, abs=1e-12)
            else:
                assert math.isnan(loss[name][resample])


@settings(max_examples=40, deadline=None)
@given(rows)
def test_gauc_equals_the_loop_over_drawn_users(table: list[tuple[float, ...]]) -> None:
    label, score, user = (np.array(column) for column in zip(*table, strict=True))
    bootstrap = UserBootstrap(user=user, label=label, resamples=8)
    users = np.unique(user)
    for counts, found in zip(bootstrap.counts, bootstrap.gauc(score)[""], strict=True):
        above = total = 0.0
        for one, count in zip(users, counts, strict=True):
            mine = user == one
            if len(set(label[mine])) == 2:
                above += count * mine.sum() * roc_auc_score(label[mine], score[mine])
                total += count * mine.sum()
        assert found == pytest.approx(above / total) if total else math.isnan(found)


def test_resamples_draw_as_many_users_as_there_are() -> None:
    user = np.repeat(np.arange(50), 3)
    bootstrap = UserBootstrap(user=user, label=np.tile([0, 1, 1], 50), resamples=200)
    assert (bootstrap.counts[0] == 1).all()
    assert (bootstrap.counts.sum(axis=1) == 50).all()
    # With replacement: a user is left out with chance (1 - 1/50)^50 = .364.
    assert (bootstrap.counts[1:] == 0).mean() == pytest.approx((1 - 1 / 50) ** 50, abs=0.01)


def test_copies_of_rows_bring_no_certainty() -> None:
    """Rows are not independent: writing each of them four times must change no interval."""
    user, label, good, poor = population(np.random.default_rng(1), 200)

    def ends(copies: int) -> tuple[float, float, float]:
        u, y, a, b = (np.repeat(column, copies) for column in (user, label, good, poor))
        bootstrap = UserBootstrap(user=u, label=y, resamples=200)
        found = paired_difference([bootstrap.auc(a)[""]], [bootstrap.auc(b)[""]])
        assert found is not None
        return found.low, found.high, found.p

    assert ends(1) == pytest.approx(ends(4), abs=1e-12)


def test_standard_error_is_that_of_new_users() -> None:
    """The spread over resamples of one sample of users is the spread over fresh samples of users."""
    generator = np.random.default_rng(2)
    fresh, errors = [], []
    for sample in range(300):
        user, label, good, poor = population(generator, 300)
        fresh.append(roc_auc_score(label, good) - roc_auc_score(label, poor))
        if sample < 20:
            bootstrap = UserBootstrap(user=user, label=label, resamples=300, seed=sample)
            errors.append((bootstrap.auc(good)[""] - bootstrap.auc(poor)[""])[1:].std(ddof=1))
    # The relative error of a standard deviation of 300 numbers is 1 / sqrt(600) = 4 %; 3 of these.
    assert np.mean(errors) == pytest.approx(np.std(fresh, ddof=1), rel=0.12)


def test_p_agrees_with_the_share_of_resamples_beyond_zero() -> None:
    user, label, good, poor = population(np.random.default_rng(3), 60)
    blend = 0.05 * good + 0.95 * poor
    bootstrap = UserBootstrap(user=user, label=label, resamples=5000)
    found = paired_difference([bootstrap.auc(blend)[""]], [bootstrap.auc(poor)[""]])
    assert found is not None
    drawn = (bootstrap.auc(blend)[""] - bootstrap.auc(poor)[""])[1:]
    share = 2 * min((drawn <= 0).mean(), (drawn >= 0).mean())
    assert 0.001 < share < 0.9
    assert found.p == pytest.approx(share, abs=0.03)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(st.integers(-8, 8).map(float), st.just(float("nan"))), min_size=1, max_size=12))
def test_every_mean_is_that_of_the_drawn_queries(values: list[float]) -> None:
    per_query = {f"q{place}": value for place, value in enumerate(values)}
    bootstrap = MeanBootstrap(per_query, resamples=8)
    for counts, found in zip(bootstrap.counts, bootstrap.mean(per_query), strict=True):
        drawn = [per_query[q] for q, n in zip(bootstrap.queries, counts, strict=True) for _ in range(n)]
        kept = [value for value in drawn if not math.isnan(value)]
        assert found == pytest.approx(sum(kept) / len(kept)) if kept else math.isnan(found)


def test_queries_are_resampled_whatever_their_order() -> None:
    values = {f"q{place}": float(place % 7) for place in range(40)}
    one = MeanBootstrap(values, resamples=50, seed=3)
    other = MeanBootstrap(list(values)[::-1], resamples=50, seed=3)
    turned = dict(reversed(values.items())) | {"another": 1e9}
    assert np.array_equal(one.mean(values), other.mean(turned))
    assert not np.array_equal(one.mean(values), MeanBootstrap(values, resamples=50, seed=4).mean(values))
    assert one.mean(values)[0] == pytest.approx(sum(values.values()) / 40)


def test_difference_of_queries_is_that_of_the_paired_t_test() -> None:
    """Of many queries both rest on the same error, sd / sqrt(n), and on the normal distribution."""
    generator = np.random.default_rng(5)
    hard = generator.random(400)
    ours, theirs = ((hard + generator.normal(shift, 0.3, 400)).tolist() for shift in (0.04, 0.0))
    names = [f"q{place}" for place in range(400)]
    bootstrap = MeanBootstrap(names, resamples=4000)
    means = [bootstrap.mean(dict(zip(names, values, strict=True))) for values in (ours, theirs)]
    found, expected = paired_difference(means[:1], means[1:]), ttest_rel(ours, theirs)
    assert found is not None
    assert found.mean == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert 0.001 < expected.pvalue < 0.5
    # The error is known to 1 / sqrt(8000) = 1.1 %, which near z = 2 moves p by 5 %; 3 of these.
    assert found.p == pytest.approx(expected.pvalue, rel=0.15)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.003)


def test_seeds_are_pooled_within_each_resample_of_queries() -> None:
    """One arm is better on query a with seed 0 and worse with seed 1: no difference, whoever is drawn."""
    bootstrap = MeanBootstrap(["a", "b"], resamples=20)
    ours = [bootstrap.mean({"a": 1.0, "b": 0.0}), bootstrap.mean({"a": 0.0, "b": 0.0})]
    theirs = [bootstrap.mean({"a": 0.0, "b": 0.0}), bootstrap.mean({"a": 1.0, "b": 0.0})]
    found = paired_difference(ours, theirs)
    assert found is not None
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert found.deviation == pytest.approx(math.sqrt(0.5))  # of 1/2 and -1/2


def test_queries_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one query"):
        MeanBootstrap([])
    with pytest.raises(ValueError, match="query b is there twice"):
        MeanBootstrap(["b", "a", "b"])
    with pytest.raises(ValueError, match="at least 2, got 1"):
        MeanBootstrap(["a"], resamples=1)
    with pytest.raises(ValueError, match="2 queries have no value, b is the first"):
        MeanBootstrap(["c", "a", "b"], resamples=2).mean({"a": 1.0})


def test_paired_difference_by_hand() -> None:
    ours = [np.array([3.0, 2, 3, 4]), np.array([5.0, 4, 5, 6])]
    theirs = [np.array([1.0, 1, 1, 1]), np.array([2.0, 2, 2, 2])]
    found = paired_difference(ours, theirs, confidence=0.5)
    assert found is not None
    assert found.mean == 2.5  # (2 + 3) / 2
    assert (found.low, found.high) == (2.0, 3.0)  # quartiles of 1.5, 2.5, 3.5
    assert found.p == pytest.approx(math.erfc(2.5 / math.sqrt(2)))  # sd of the resamples is 1
    assert found.deviation == pytest.approx(math.sqrt(0.5))  # of 2 and 3


def test_equal_models_do_not_differ() -> None:
    user, label, good, _ = population(np.random.default_rng(4), 50)
    values = UserBootstrap(user=user, label=label, resamples=50).auc(good)[""]
    found = paired_difference([values], [values])
    assert found is not None
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert math.isnan(found.deviation)


def test_a_metric_that_is_not_defined_has_no_difference() -> None:
    values = UserBootstrap(user=np.arange(3), label=np.ones(3), resamples=5).auc(np.arange(3.0))[""]
    assert paired_difference([values], [values]) is None


def test_arms_with_different_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="same seeds, got 1 and 2"):
        paired_difference([np.zeros(3)], [np.zeros(3)] * 2)
    with pytest.raises(ValueError, match="confidence"):
        paired_difference([np.zeros(3)], [np.zeros(3)], confidence=1.0)
    with pytest.raises(ValueError, match="at least one row"):
        UserBootstrap(user=np.zeros(0, dtype=int), label=np.zeros(0))
    with pytest.raises(ValueError, match="at least 2, got 1"):
        UserBootstrap(user=np.zeros(1, dtype=int), label=np.zeros(1), resamples=1)


def test_spread() -> None:
    assert spread([1.0, 2.0, 6.0]) == spread([6.0, 1.0, 2.0])
    assert (spread([1.0, 3.0]).mean, spread([1.0, 3.0]).deviation) == (2.0, math.sqrt(2))
    assert math.isnan(spread([1.0]).deviation)
    with pytest.raises(ValueError, match="no values"):
        spread([])


def test_holm_by_hand() -> None:
    # Sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04; never below the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_p_and_bonferroni(p: list[float]) -> None:
    corrected = holm(p)
    for raw, found in zip(p, corrected, strict=True):
        assert raw <= found <= min(1, len(p) * raw) + 1e-12
    assert corrected == [corrected[p.index(raw)] for raw in p]  # equal p, equal correction
