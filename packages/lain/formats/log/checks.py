"""Leaks that show in a prepared data set, reported and never in the way.

What is looked for: the target standing last in the history of its own click, a feature that alone tells
clicks from the rest, and ids so sparse that their tables hold nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Shaped

from lain.data.store import Split, Store

ROWS_LOOKED_AT = 200_000
SPARSE_IDS = 1_000_000
"""Tables with fewer rows than this do no harm."""

TELLING_AUC = 0.97
"""A feature that alone reaches this AUC is hardly known before the click."""


def leaks(path: Path) -> list[str]:
    """What looks like a leak, one line each.

    Args:
        path: A prepared data set.
    """
    store = Store.open(path)
    found: list[str] = []
    for name in store.splits:
        split = store.split(name)
        rows = _chosen(len(split))
        line = _target_last(store, split, rows, name)
        if line is not None:
            found.append(line)
    if "train" in store.splits:
        found += _telling_features(store)
    return [*found, *_sparse_ids(store)]


def _sparse_ids(store: Store) -> list[str]:
    """Features whose ids are far more than the values there can be: hashes, which make tables of nothing."""
    found = []
    for feature in store.features:
        rows = {"item": store.num_items, "user": store.num_users}.get(
            feature.source, sum(store.splits.values())
        )
        values = rows * feature.width
        if feature.size > SPARSE_IDS and feature.size > 20 * values:
            found.append(
                f"feature '{feature.name}': ids up to {feature.size - 1:,} for at most {values:,} different "
                "values "
                f"make a table of {feature.size:,} rows; number the values from 1 on (`lain prepare log` "
                "does)"
            )
    return found


def _chosen(rows: int) -> Int[np.ndarray, " chosen"]:
    """Evenly spread rows, as many as are looked at."""
    step = max(1, -(-rows // ROWS_LOOKED_AT))
    return np.arange(0, rows, step)


def _target_last(store: Store, split: Split, rows: Int[np.ndarray, " chosen"], name: str) -> str | None:
    end, user = np.asarray(split.end[rows], np.int64), np.asarray(split.user[rows], np.int64)
    start = np.zeros_like(end) if split.start is None else np.asarray(split.start[rows], np.int64)
    rows, end, user = rows[end > start], end[end > start], user[end > start]
    if not len(rows):
        return None
    last = np.asarray(store.histories.values[store.histories.offsets[user] + end - 1])
    same, label = last == np.asarray(split.item[rows]), np.asarray(split.label[rows]) == 1
    if label.sum() < 20:
        return None
    of_clicks = float(same[label].mean())
    of_others = float(same[~label].mean()) if (~label).any() else 0.0
    if of_clicks < 0.5 or of_clicks < 3 * of_others:
        return None
    return (f"{name}: in {of_clicks:.0%} of the clicks the last behaviour of the history is the target "
            "itself "
            f"({of_others:.1%} of the other rows): the history seems to reach past its row, by "
            "one")  # fmt: skip


def _telling_features(store: Store) -> list[str]:
    split = store.split("train")
    rows = _chosen(len(split))
    label = np.asarray(split.label[rows]) == 1
    if label.sum() < 20 or (~label).sum() < 20:
        return []
    found = []
    for feature in store.features:
        if feature.source != "context" or feature.kind in ("list", "time"):
            continue
        values = np.asarray(split.context[feature.name][rows])
        auc = _one_feature_auc(values if values.ndim == 1 else values[:, 0], label)
        if auc >= TELLING_AUC:
            found.append(f"train: feature '{feature.name}' alone tells clicks from the rest (AUC "
                         f"{auc:.3f}): is it known "
                         "before the click?")  # fmt: skip
    return found


def _one_feature_auc(values: Shaped[np.ndarray, " rows"], label: Shaped[np.ndarray, " rows"]) -> float:
    """AUC of the best score that is a function of the feature, learned on half of the rows."""
    if values.dtype.kind == "f":
        edges = np.unique(np.quantile(values, np.linspace(0, 1, 65)[1:-1]))
        values = np.digitize(values, edges)
    give = np.random.default_rng(0).random(len(values)) < 0.5
    judge = ~give
    size = int(values.max()) + 1
    clicks = np.bincount(values[give], weights=label[give], minlength=size)
    count = np.bincount(values[give], minlength=size)
    score: Float[np.ndarray, " values"] = (clicks + label.mean()) / (count + 1)
    rated = score[values[judge]]
    clicked = label[judge]
    if not clicked.any() or clicked.all():
        return 0.5
    _, rank, counts = np.unique(rated, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    positives, total = int(clicked.sum()), len(clicked)
    above = middle[rank][clicked].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (total - positives)))
