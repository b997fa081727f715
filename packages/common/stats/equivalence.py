"""Showing that there is no difference worth speaking of, which is more than failing to show one."""

from __future__ import annotations

from scipy.stats import t

from common.stats.bootstrap import Difference


def equivalence(difference: Difference, margin: float) -> float:
    """P-value of two one-sided tests: that the difference lies outside ``(-margin, margin)``.

    ``p = max(P(T > (mean + margin) / error), P(T < (mean - margin) / error))`` with T of the difference's
    degrees of freedom. Below .05 the arms are equivalent: the 90 % interval then lies inside the margins.

    Source: Schuirmann, A comparison of the two one-sided tests procedure and the power approach (1987).

    Args:
        difference: The difference between two arms.
        margin: Smallest difference of interest, in the difference's own unit.

    Raises:
        ValueError: ``margin`` is not above 0.
    """
    if not margin > 0:
        raise ValueError(f"margin must be above 0, got {margin}")
    if difference.error == 0:
        return float(abs(difference.mean) >= margin)
    above = t.sf((difference.mean + margin) / difference.error, difference.freedom)
    below = t.cdf((difference.mean - margin) / difference.error, difference.freedom)
    return float(max(above, below))
