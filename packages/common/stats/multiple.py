"""Correction of p-values for many comparisons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(p: Sequence[float]) -> list[float]:
    """P-values corrected for many comparisons: ``max over j <= i of min(1, (m - j) p_(j))``, j from 0.

    Controls the chance of even one false finding, whatever the dependence between the tests.

    Source: Holm, A simple sequentially rejective multiple test procedure (1979).

    Args:
        p: P-values of one family of tests.

    Returns:
        Corrected p-values in the order given.
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    corrected = np.empty(len(values))
    factor = len(values) - np.arange(len(values))
    corrected[order] = np.maximum.accumulate(np.minimum(values[order] * factor, 1))
    return [float(value) for value in corrected]
