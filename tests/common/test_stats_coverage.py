"""Intervals over users crossed with seeds: by hand, and whether they cover a truth that is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from jaxtyping import Float
from scipy.stats import t

from common.stats.bootstrap import Difference, MeanBootstrap, paired_difference
from common.stats.crossed import crossed_difference
from common.stats.equivalence import equivalence

USERS, RESAMPLES = 200, 400

MIXTURES = {
    "users": (1.0, 0.0, 0.0),
    "users and noise": (1.0, 0.0, 1.0),
    "all alike": (1.0, 1.0, 1.0),
    "seeds above users": (1.0, 2.0, 1.0),
    "seeds alone": (0.01, 1.0, 0.01),
    "noise": (0.1, 0.0, 1.0),
}
"""Standard deviations of what each user, each seed (times sqrt(USERS)) and each pair of them adds."""


def pigeonhole(
    seeds: Float[np.ndarray, "seeds resamples_plus_one"], generator: np.random.Generator
) -> tuple[float, float]:
    """Users and seeds both drawn with replacement: the interval that was not taken."""
    drawn = generator.integers(0, len(seeds), (len(seeds), seeds.shape[1] - 1))
    means = np.take_along_axis(seeds[:, 1:], drawn, 0).mean(axis=0)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def coverage(mixture: tuple[float, float, float], seeds: int, draws: int) -> dict[str, float]:
    """Share of fresh samples whose interval holds the true difference, 0, per kind of interval."""
    of_user, of_seed, of_both = mixture
    generator = np.random.default_rng(seeds)
    counts = MeanBootstrap(map(str, range(USERS)), resamples=RESAMPLES, seed=1).counts / USERS
    held = dict.fromkeys(("crossed", "pigeonhole", "units"), 0)
    for _ in range(draws):
        values = (
            of_user * generator.normal(size=USERS)
            + of_seed / math.sqrt(USERS) * generator.normal(size=(seeds, 1))
            + of_both * generator.normal(size=(seeds, USERS))
        )
        resampled = values @ counts.T
        treated, reference = list(resampled), list(np.zeros_like(resampled))
        crossed, units = crossed_difference(treated, reference), paired_difference(treated, reference)
        assert crossed is not None
        assert units is not None
        held["crossed"] += crossed.low <= 0 <= crossed.high
        held["units"] += units.low <= 0 <= units.high
        low, high = pigeonhole(resampled, generator)
        held["pigeonhole"] += low <= 0 <= high
    return {name: count / draws for name, count in held.items()}


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_the_crossed_interval_covers_the_truth(mixture: str, seeds: int) -> None:
    found = coverage(MIXTURES[mixture], seeds, draws=4000)  # standard error .35 %
    assert 0.93 <= found["crossed"] <= 0.97


@pytest.mark.parametrize(("mixture", "seeds"), [("all alike", 3), ("seeds alone", 3), ("users", 10)])
def test_the_crossed_interval_covers_the_truth_in_short(mixture: str, seeds: int) -> None:
    found = coverage(
        MIXTURES[mixture], seeds, draws=800
    )  # standard error .8 %: 3 of these beside the 93 to 97
    assert 0.93 - 0.024 <= found["crossed"] <= 0.97 + 0.024


def test_drawing_seeds_or_leaving_them_out_does_not_cover_it() -> None:
    """Why neither the pigeonhole bootstrap nor the interval over users alone speaks about new seeds."""
    found = coverage(MIXTURES["seeds alone"], 3, draws=300)
    assert found["pigeonhole"] < 0.85
    assert found["units"] < 0.2


def test_crossed_difference_by_hand() -> None:
    # Differences 2, 4, 6 of three seeds; on the resamples each is moved by -1, 0, 1.
    reference = [np.zeros(4)] * 3
    treated = [np.array([d, d - 1, d, d + 1]) for d in (2.0, 4.0, 6.0)]
    found = crossed_difference(treated, reference)
    assert found is not None
    # V_u = var(3, 4, 5) = 1, V_s = var(2, 4, 6) / 3 = 4 / 3, V_e = 0.
    assert found.mean == 4
    assert found.error == pytest.approx(math.sqrt(7 / 3))
    assert found.freedom == pytest.approx((7 / 3) ** 2 * 2 / (4 / 3) ** 2)
    half = t.ppf(0.975, found.freedom) * found.error
    assert (found.low, found.high) == pytest.approx((4 - half, 4 + half))
    assert found.p == pytest.approx(2 * t.sf(4 / found.error, found.freedom))
    assert found.deviation == 2


def test_what_users_and_seeds_share_counts_once() -> None:
    # Both seeds have the difference 1; resamples move them apart: V_u = 0, V_s = 0, V_e > 0.
    treated = [np.array([1.0, 2.0, 0.0, 1.0]), np.array([1.0, 0.0, 2.0, 1.0])]
    found = crossed_difference(treated, [np.zeros(4)] * 2)
    assert found is not None
    assert (found.mean, found.low, found.high, found.error, found.freedom) == (1, 1, 1, 0, math.inf)


def test_one_seed_says_nothing_about_others() -> None:
    with pytest.raises(ValueError, match="at least 2 of them, got 1"):
        crossed_difference([np.zeros(3)], [np.zeros(3)])


def difference(mean: float, error: float, freedom: float = math.inf) -> Difference:
    return Difference(mean, math.nan, math.nan, math.nan, math.nan, error, freedom)


def test_equivalence_by_hand() -> None:
    # One standard normal beyond -(0 + 2) / 1 on either side: 1 - Phi(2).
    assert equivalence(difference(0.0, 1.0), 2.0) == pytest.approx(0.0227501, abs=1e-7)
    # The nearer margin decides: P(T_4 < (.5 - 1) / .25 = -2) = .0580583.
    assert equivalence(difference(0.5, 0.25, 4.0), 1.0) == pytest.approx(0.0580583, abs=1e-7)
    assert equivalence(difference(-0.5, 0.25, 4.0), 1.0) == pytest.approx(0.0580583, abs=1e-7)
    assert equivalence(difference(3.0, 1.0), 2.0) > 0.5
    assert equivalence(difference(0.0, 0.0), 1.0) == 0
    assert equivalence(difference(1.0, 0.0), 1.0) == 1
    with pytest.raises(ValueError, match="margin must be above 0"):
        equivalence(difference(0.0, 1.0), 0.0)


def test_equivalence_is_the_90_percent_interval_inside_the_margins() -> None:
    for mean in (0.0, 0.3, 0.6):
        found = difference(mean, 0.25, 6.0)
        high = mean + t.ppf(0.95, 6) * 0.25
        assert equivalence(found, high + 1e-9) < 0.05 < equivalence(found, high - 1e-9)
