"""Mean and standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of one number over seeds.

    Args:
        mean: Mean over the seeds.
        deviation: Sample standard deviation (n - 1); NaN for one seed.
        seeds: How many there were.
    """

    mean: float
    deviation: float
    seeds: int


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation over seeds.

    Raises:
        ValueError: There is no value.
    """
    if not len(values):
        raise ValueError("the spread of no values is not defined")
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return Spread(float(np.mean(values)), deviation, len(values))
