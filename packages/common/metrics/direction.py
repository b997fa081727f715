"""Whether more or less of a metric is better, by its name."""

from __future__ import annotations

import re
from typing import Literal

from common.errors import ConfigError, nearest

Direction = Literal["max", "min"]

DIRECTIONS: dict[str, Direction] = {
    "auc": "max",
    "gauc": "max",
    "auc_by_user": "max",
    "accuracy": "max",
    "ndcg": "max",
    "recall": "max",
    "precision": "max",
    "mrr": "max",
    "map": "max",
    "success": "max",
    "loss": "min",
    "logloss": "min",
    "logloss_by_user": "min",
    "info_nce": "min",
}
"""Direction by the metric's name without prefix, cut-off and bucket; the one line that a new metric adds."""


def direction(name: str) -> Direction:
    """Whether a metric is to be maximised or minimised.

    Args:
        name: As it is logged: ``valid/auc``, ``valid/ndcg@10``, ``valid/logloss/0-50``, ``train/loss``.

    Raises:
        ConfigError: The metric is not known; names those that are.
    """
    at = 1 if "/" in name else 0
    parts = name.split("/")
    base, cutoff = re.fullmatch(r"(.*?)(@\d+)?", parts[at]).groups(default="")  # type: ignore[union-attr]  # any text matches
    if base in DIRECTIONS:
        return DIRECTIONS[base]
    close = nearest(base, DIRECTIONS)
    hint = f"; did you mean '{'/'.join([*parts[:at], close + cutoff, *parts[at + 1 :]])}'?" if close else ""
    raise ConfigError(
        f"monitor: whether more or less of '{name}' is better is not known{hint} "
        f"(there are {', '.join(DIRECTIONS)})"
    )
