"""What stands behind the numbers of a click-through study: users, their rows, what the model looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, Shaped

from common.errors import UserError
from common.metrics.ctr import DEFAULT_BUCKETS, bucket_masks
from common.report.page.render import Entry, Section, Titled, anchor
from common.report.tables import Table
from common.study.collect import Run
from common.study.extremes import Extremes, extremes
from lain.study.resample import WHOLE, read_predictions
from lain.study.table import BASE, CTRReport, group_title, method_arms

if TYPE_CHECKING:
    from lain.data.store import Split, Store
    from lain.model import CTRModel
    from lain.training.config import TrainConfig

SAMPLED = 2
"""Users of each kind that a cell leads to."""

FEWEST = 5
"""Test rows in the bucket that a user needs to be shown, where anybody has as many."""

ROWS = 5
"""Test rows of a user that are shown: those whose loss changed most."""

BEHAVIOURS = 6
"""Behaviours of a history that are shown: those with the most attention."""

FEATURES = 2
"""Features of an item that are shown."""

TINY = 1e-12


@dataclass(frozen=True)
class Cell:
    """A difference of the main tables.

    Args:
        backbone: The backbone.
        arm: The arm, against base.
        group: Bucket of true history length.
        found: Which users changed: loss of base minus that of the arm.
    """

    backbone: str
    arm: str
    group: str
    found: Extremes

    @property
    def anchor(self) -> str:
        """The anchor of its entry."""
        return cell_anchor(self.backbone, self.arm, self.group)


def cell_anchor(backbone: str, arm: str, group: str) -> str:
    """The anchor of what is behind a difference of the main tables."""
    return anchor("changes", backbone, arm, group_title(group))


def loss(score: Float[np.ndarray, " rows"], label: Shaped[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    """Log loss of each row: -log of the probability that was given to what happened."""
    given = np.where(label == 1, score, 1 - score)
    found: Float[np.ndarray, " rows"] = -np.log(np.clip(given, TINY, None))
    return found


class Scores:
    """Predictions of a study's runs on the test rows, mean over seeds.

    Args:
        report: The study.
    """

    def __init__(self, report: CTRReport) -> None:
        self._report = report
        first = read_predictions(report.main.runs[0])
        self.user, self.item = np.asarray(first["user"]), np.asarray(first["item"])
        self.label, self.length = np.asarray(first["label"]), np.asarray(first["length"])
        self._found: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}

    def of(self, backbone: str, arm: str) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
        """Score and log loss of each row, mean over seeds."""
        if (backbone, arm) not in self._found:
            runs = self._report.main.of(backbone, arm)
            scores = [np.asarray(read_predictions(run)["score"], dtype=np.float64) for run in runs]
            losses = [loss(score, self.label) for score in scores]
            self._found[backbone, arm] = np.mean(scores, axis=0), np.mean(losses, axis=0)
        return self._found[backbone, arm]


def changes(user: Int[np.ndarray, " rows"], change: Float[np.ndarray, " rows"], count: int) -> Extremes:
    """The users whose rows changed most, by the mean over their rows; users of few rows are left out.

    Args:
        user: User of each row.
        change: Change of each row; above 0 is better.
        count: Users of each kind, at most.
    """
    known, place, rows = np.unique(user, return_inverse=True, return_counts=True)
    enough = rows >= min(FEWEST, int(rows.max(initial=0)))
    mean = np.bincount(place, weights=change, minlength=len(known)) / np.maximum(rows, 1)
    return extremes([str(one) for one in known[enough]], mean[enough], count)


def find_cells(report: CTRReport, scores: Scores) -> list[Cell]:
    """Every difference of the main tables, with the users that changed."""
    masks = {WHOLE: np.ones(len(scores.user), dtype=bool), **bucket_masks(scores.length, DEFAULT_BUCKETS)}
    cells = []
    for arm in method_arms(report):
        for backbone in report.main.backbones:
            if not {arm, BASE} <= set(report.main.arms(backbone)):
                continue
            change = scores.of(backbone, BASE)[1] - scores.of(backbone, arm)[1]
            for group in report.resampler.groups:
                mask = masks[group] & np.isfinite(change)
                found = changes(scores.user[mask], change[mask], SAMPLED)
                if found.change:
                    cells.append(Cell(backbone, arm, group, found))
    return cells


class Looks:
    """Histories and what models looked at in them, read from the prepared data and the runs' weights.

    Args:
        report: The study.
        scores: Its predictions.
    """

    def __init__(self, report: CTRReport, scores: Scores) -> None:
        self._report, self._scores = report, scores
        self._models: dict[Path, tuple[TrainConfig, CTRModel] | None] = {}

    @cached_property
    def data(self) -> tuple[Store, Split] | None:
        """The prepared data and its test rows; None where they are not those that were predicted."""
        from lain.data.store import Store

        try:
            store = Store.open(self._report.prepared.path)
            split = store.split("test")
        except UserError:
            return None
        same = len(split) == len(self._scores.user) and np.array_equal(split.user, self._scores.user)
        return (store, split) if same and np.array_equal(split.item, self._scores.item) else None

    def item(self, index: int) -> str:
        """An item in words: its index and its first features."""
        words = [str(index)]
        if self.data is not None:
            features = [f for f in self.data[0].features if f.source == "item" and f.kind == "categorical"]
            tables = self.data[0].items
            words += [f"{f.name} {int(tables[f.name][index])}" for f in features if f.name in tables][
                :FEATURES
            ]
        return ", ".join(words)

    def attention(self, run: Run, row: int) -> dict[str, dict[int, float]]:
        """Share of the attention that each item of the history has, by branch; empty where there is none.

        Of a row's weights the absolute values, mean over heads, summed over the behaviours with that item;
        what prompts hold is left out.

        Args:
            run: The run.
            row: The test row.
        """
        import torch

        from lain.data.batch import Batches

        loaded = self._model(run.folder)
        if self.data is None or loaded is None:
            return {}
        (store, split), (config, model) = self.data, loaded
        batches = Batches(store, split, max_length=config.history.max_length, columns=config.history.columns)
        batch = batches[np.array([row])]
        found: dict[str, dict[int, float]] = {}
        with torch.inference_mode():
            records = model(batch).attention
        whole = batch.spans().index
        for branch, record in records.items():
            index = record.spans.index
            if len(index) == len(whole):  # all in time order, whatever the backbone numbers them by
                index = whole
            elif not bool(torch.isin(index, whole).all()):
                continue
            weight = record.weight.double().abs().mean(1)
            total = float(weight.sum())
            shares: dict[int, float] = {}
            for item, value in zip(batch.items[index].tolist(), weight.tolist(), strict=True):
                shares[item] = shares.get(item, 0.0) + (value / total if total else 0.0)
            found[branch] = shares
        return found

    def _model(self, folder: Path) -> tuple[TrainConfig, CTRModel] | None:
        """A trained model; the two of the last cell stay in memory."""
        from lain.training.run import load_model

        if folder not in self._models:
            while len(self._models) > 1:
                self._models.pop(next(iter(self._models)))
            try:
                self._models[folder] = load_model(folder)[:2]
            except UserError:
                self._models[folder] = None
        return self._models[folder]


def _history_table(looks: Looks, cell: Cell, row: int, report: CTRReport) -> tuple[str, Titled | None]:
    """What a user did before a row, and the share of the attention of both arms on it."""
    if looks.data is None:
        return "No history: the prepared data are not those that were predicted.", None
    store, split = looks.data
    begin = 0 if split.start is None else int(split.start[row])
    history = np.asarray(store.histories[int(split.user[row])][begin : int(split.end[row])])
    found = {arm: looks.attention(report.main.of(cell.backbone, arm)[0], row) for arm in (BASE, cell.arm)}
    columns = {(branch, arm): shares for arm, one in found.items() for branch, shares in one.items()}
    order = sorted(columns, key=lambda key: key[0])
    last = {int(item): place for place, item in enumerate(history)}
    weight = {item: max((columns[key].get(item, 0.0) for key in order), default=0.0) for item in last}
    shown = sorted(last, key=lambda item: (-weight[item], -last[item]))[:BEHAVIOURS]
    rows = []
    for item in sorted(shown, key=lambda item: -last[item]):
        times = int((history == item).sum())
        cells = [
            str(len(history) - last[item]),
            f"{looks.item(item)}{f' ({times} times)' if times > 1 else ''}",
        ]
        rows.append([*cells, *(f"{100 * columns[key].get(item, 0.0):.1f}" for key in order)])
    words = f"{len(history)} stored behaviours before the first row above, {len(last)} different items."
    if not order:
        words += " No attention: these runs kept no weights, or have none."
    heads = [f"{branch}, {arm}, %" for branch, arm in order]
    title = "What both arms look at before the first row above" if order else "Latest behaviours"
    table = Table(["behaviours ago", "item", *heads], rows, "rl" + "r" * len(heads))
    return words, Titled(title, table) if rows else None


def user_entry(
    report: CTRReport, scores: Scores, looks: Looks, cell: Cell, user: str, mask: np.ndarray
) -> Entry:
    """A user: test rows with both scores, the history, and the attention of both arms on it.

    Args:
        report: The study.
        scores: Its predictions.
        looks: Histories and attention.
        cell: The two arms and the bucket.
        user: Index of the user.
        mask: The rows of the bucket.
    """
    (before, base), (after, own) = (scores.of(cell.backbone, arm) for arm in (BASE, cell.arm))
    rows = np.flatnonzero(mask & (scores.user == int(user)))
    change = base[rows] - own[rows]
    shown = rows[np.argsort(-np.abs(change), kind="stable")[:ROWS]]
    cells = [
        [looks.item(int(scores.item[row])), "clicked" if scores.label[row] else "not clicked",
         f"{before[row]:.3f}", f"{after[row]:.3f}", f"{base[row] - own[row]:+.3f}"]
        for row in shown
    ]  # fmt: skip
    words, history = _history_table(looks, cell, int(shown[0]), report)
    table = Table(["item", "what happened", BASE, cell.arm, "gain in log loss"], cells, "llrrr")
    length = scores.length[rows]
    span = str(length.min()) if length.min() == length.max() else f"{length.min()} to {length.max()}"
    more = f", {len(shown)} of {len(rows)}" if len(shown) < len(rows) else ""
    return Entry(
        f"{cell.anchor}.{anchor(user)}",
        f"user {user}, {span} behaviours, {len(rows)} test rows",
        f"{cell.found.change[user]:+.3f}",
        facts=[
            (
                "log loss, mean over seeds",
                f"{BASE} {base[rows].mean():.3f}, {cell.arm} {own[rows].mean():.3f}",
            ),
            ("history", words),
        ],
        tables=[
            Titled(f"Test rows that changed most{more}: predicted click probability", table),
            *([history] if history is not None else []),
        ],
    )


def examples(report: CTRReport) -> Section | None:
    """From a cell of the main tables to users, their history and scores; None where nothing is compared."""
    if not method_arms(report):
        return None
    scores = Scores(report)
    cells = find_cells(report, scores)
    if not cells:
        return None
    looks = Looks(report, scores)
    masks: Mapping[str, np.ndarray] = {
        WHOLE: np.ones(len(scores.user), dtype=bool),
        **bucket_masks(scores.length, DEFAULT_BUCKETS),
    }
    entries: dict[tuple[str, str], list[Entry]] = {}
    for cell in cells:
        inner = [
            user_entry(report, scores, looks, cell, user, masks[cell.group]) for user in cell.found.change
        ]
        where = "all rows" if cell.group == WHOLE else f"lengths {cell.group}"
        entries.setdefault((cell.backbone, cell.arm), []).append(
            Entry(cell.anchor, where, text=[cell.found.counts("users")], entries=inner)
        )
    return Section(
        "Users that gained and lost most",
        text=[
            "Every difference of the main tables leads here: the users whose log loss on their test rows of "
            "that bucket, mean over rows and seeds, changed most, with their history and the attention of "
            "the first seed of both arms on it.",
            f"Shown are at most {SAMPLED} users that gained and {SAMPLED} that lost a cell, of those with at "
            f"least {FEWEST} such rows, {ROWS} rows and {BEHAVIOURS} items of a history each; all others are "
            "left out here and stand in the runs' predictions.",
        ],
        entries=[
            Entry(anchor("changes", *pair), f"{pair[0].upper()}: {pair[1]} against {BASE}", entries=inner)
            for pair, inner in entries.items()
        ],
    )
