"""Where one run is worst: slices of its test rows; and the data that it was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Shaped

from common.errors import UserError
from common.metrics.ctr import DEFAULT_BUCKETS, bucket_masks, ctr_metrics
from common.report.page.render import Section, Titled
from common.report.tables import Table, format_number
from common.study.collect import Run
from lain.data.store import Split, Store
from lain.study.examples import loss
from lain.study.resample import read_predictions

WORST = 10
"""Slices that are shown."""

FEWEST = 100
"""Rows that a slice needs; below a tenth of all rows, where these are few."""

QUARTERS = 4


def data_of(run: Run) -> Store | None:
    """The prepared data of a run; None where they are gone, or have another content than was trained on."""
    try:
        store = Store.open(Path(str(run.record.config.get("data", ""))))
    except UserError:
        return None
    return store if store.fingerprint == run.record.inputs.get("data") else None


def slices(run: Run, store: Store | None) -> Iterator[tuple[str, str, Bool[np.ndarray, " rows"]]]:
    """Slices of the test rows: what they are cut by, the value, the rows.

    By true history length, by how often the user and the item come among these rows, and by every categorical
    feature of items, users and rows, where the data are there.

    Args:
        run: The run.
        store: Its data.
    """
    table = read_predictions(run)
    for name, mask in bucket_masks(np.asarray(table["length"]), DEFAULT_BUCKETS).items():
        yield "history length", name, mask
    for kind in ("user", "item"):
        _, place, counts = np.unique(np.asarray(table[kind]), return_inverse=True, return_counts=True)
        rows = counts[place]
        edges = np.unique(np.quantile(rows, np.linspace(0, 1, QUARTERS + 1)[1:-1]))
        for low, high in zip([0, *edges], [*edges, np.inf], strict=True):
            mask = (rows > low) & (rows <= high)
            top = f"{high:.0f}" if np.isfinite(high) else "more"
            yield f"test rows of the {kind}", f"{low + 1:.0f} to {top}", mask
    if store is not None and "test" in store.splits and len(store.split("test")) == len(table):
        yield from _by_features(store, store.split("test"))


def _by_features(store: Store, split: Split) -> Iterator[tuple[str, str, Bool[np.ndarray, " rows"]]]:
    columns = {
        "item": (store.items, np.asarray(split.item)),
        "user": (store.users, np.asarray(split.user)),
        "context": (split.context, np.arange(len(split))),
    }
    for feature in store.features:
        table, rows = columns.get(feature.source, ({}, np.arange(0)))
        if feature.kind != "categorical" or feature.name not in table:
            continue
        values = np.asarray(table[feature.name][rows])
        known, counts = np.unique(values, return_counts=True)
        for value in known[np.argsort(-counts, kind="stable")[: 10 * WORST]]:
            yield f"{feature.source} {feature.name}", str(value), values == value


def run_slices(run: Run) -> Section | None:
    """The slices with the highest log loss over what their own click rate gives; None without predictions."""
    if not (run.folder / "predictions" / "test.parquet").is_file():
        return None
    table = read_predictions(run)
    label, score = np.asarray(table["label"]), np.asarray(table["score"], dtype=np.float64)
    if not len(label) or not np.isfinite(score).all():
        return None
    each, store = loss(score, label), data_of(run)
    fewest = min(FEWEST, max(len(label) // 10, 1))
    found = []
    for kind, value, mask in slices(run, store):
        count = int(mask.sum())
        if fewest <= count < len(label):
            gain = _gain(each[mask], label[mask])
            auc = ctr_metrics(label=label[mask], score=score[mask]).values["auc"]
            shares = [f"{100 * values[mask].mean():.1f}" for values in (label, score)]
            cells = [f"{each[mask].mean():.4f}", f"{gain:+.4f}"]
            auc_cell = format_number(None if auc is None else 100 * auc)
            found.append((gain, [kind, value, str(count), *shares, *cells, auc_cell]))
    found.sort(key=lambda one: one[0])
    headers = ["slice by", "value", "rows", "clicked, %", "predicted, %", "log loss"]
    headers += ["better than its rate by", "AUC x 100"]
    words = (
        f"The {min(WORST, len(found))} of {len(found)} slices with at least {fewest} test rows in which the "
        "model gains least on a guess that knows the click rate of the slice."
    )
    if store is None:
        words += " Without slices by features: the data are not where they were, or are others."
    rows = [row for _, row in found[:WORST]]
    tables = [Titled("Slices", Table(headers, rows, "llrrrrrr"))]
    return Section("Worst slices", text=[words], tables=tables) if rows else None


def _gain(each: Float[np.ndarray, " rows"], label: Shaped[np.ndarray, " rows"]) -> float:
    """Log loss of the constant guess that knows the click rate, minus the model's."""
    rate = float(label.mean())
    constant = loss(np.full(len(label), rate), label).mean() if 0 < rate < 1 else 0.0
    return float(constant - each.mean())


def run_data(run: Run) -> Section | None:
    """The data of a run, split by split; None where they are gone or have changed."""
    store = data_of(run)
    if store is None:
        return None
    rows = []
    for name in store.splits:
        split = store.split(name)
        label = np.asarray(split.label)
        rate = format_number(100 * float(label.mean()), 1) if len(label) else ""
        rows.append([name, str(len(split)), str(len(np.unique(np.asarray(split.user)))), rate])
    words = f"{store.name}: {store.num_users} users, {store.num_items - 1} items."
    table = Table(["split", "rows", "users", "clicked, %"], rows)
    return Section(
        "Data", text=[words], facts=[("folder", str(store.path))], tables=[Titled("Splits", table)]
    )
