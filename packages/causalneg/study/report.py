"""A retrieval study's arms against each other: rows of results.json, the table, the plots."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from causalneg.commands import beside
from causalneg.data import read_dataset
from causalneg.evaluation.evaluate import evaluate_bm25
from common.errors import DataError
from common.files import atomic_write
from common.machine import describe_hardware
from common.report.plots import Panel, Series, bar_plot, line_plot
from common.report.tables import MISSING, format_difference, format_p, format_seconds, markdown_table
from common.stats.paired import Difference, MeanBootstrap, Spread, holm, paired_difference, spread
from common.study.engine import RunSpec, is_done
from common.training.record import Record

BM25_FILE = "bm25.json"
NDCG = "ndcg@10"
METRICS = (NDCG, "recall@10", "recall@100", "mrr@10")
VIEWS = {
    "": "clean",
    "/mixed": "mixed",
    "/mixed-plain": "mixed, plain gold",
    "/mixed-styled": "mixed, styled gold",
}
"""Endings of the metrics, and what they are measured on."""

DIAGNOSES = {
    "style_shift": "style shift",
    "source_auc": "source AUC (score)",
    "source_auc_within": "within query",
    "embedding_auc": "source AUC (embedding)",
    "mutual_information": "I(Z; s), bits",
    "mutual_information_p": "p",
    "hardness_gap": "hardness gap",
}


@dataclass(frozen=True)
class Head:
    """What stands at the head of a table.

    Args:
        name: Name of the study.
        description: One or two sentences.
        command: The command that makes it.
        sets: File of each training set.
        bm25: Metrics of BM25 by split and view.
        data: The BEIR folder.
        reference: The arm that others are tested against; beside the main matrix, the first arm of a tag
            that lacks it.
        workers: Runs at a time.
    """

    name: str
    description: str
    command: str
    sets: Mapping[str, Path]
    bm25: Mapping[str, Mapping[str, float]]
    data: Path
    reference: str
    workers: int


def bm25_line(
    data: Path, mixed: Path | None, splits: Sequence[str], out: Path
) -> dict[str, dict[str, float]]:
    """Metrics of BM25 on every split, clean and mixed; also left in ``out``, with its run files."""
    found: dict[str, dict[str, float]] = {}
    for ending, folder in (("", data), ("/mixed", mixed)):
        if folder is None:
            continue
        for one in evaluate_bm25(read_dataset(folder, splits=splits), splits):
            one.save(out / "eval")
            found[one.split + ending] = dict(one.metrics.mean)
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / BM25_FILE, json.dumps(found, indent=1) + "\n")
    return found


@dataclass(frozen=True)
class Run:
    """What one finished run left behind.

    Args:
        spec: Which run.
        folder: Its folder.
        record: Its record.
    """

    spec: RunSpec
    folder: Path
    record: Record

    @cached_property
    def splits(self) -> list[str]:
        """Splits that it was tested on."""
        return list(self.record.notes["tests"])

    def per_query(self, split: str, metric: str, view: str) -> dict[str, float]:
        """A metric by query id.

        Raises:
            DataError: The file is gone.
        """
        name = self.record.notes["evaluated"].get(split + ("/mixed" if view else ""))
        if name is None:
            return {}
        path = self.folder / "eval" / name / "per_query.json"
        try:
            values: dict[str, float] = json.loads(path.read_text())[metric]
        except (OSError, ValueError, KeyError) as error:
            hint = "remove the run's folder to train it again"
            raise DataError(f"{path}: cannot be read ({error}); {hint}") from error
        if view in ("/mixed-plain", "/mixed-styled"):
            styled = set(self.record.notes["styled_gold"].get(split, []))
            return {q: v for q, v in values.items() if (q in styled) == (view == "/mixed-styled")}
        return values

    def history(self, column: str) -> tuple[list[int], list[float]]:
        """Steps and values of a logged figure; none where nothing was logged."""
        steps: list[int] = []
        values: list[float] = []
        if not (self.folder / "metrics.csv").is_file():
            return steps, values
        with (self.folder / "metrics.csv").open() as file:
            for row in csv.DictReader(file):
                if row.get(column):
                    steps.append(int(float(row["step"])))
                    values.append(float(row[column]))
        return steps, values


def read_runs(plan: Sequence[RunSpec], out: Path) -> list[Run]:
    """The finished runs of a plan, in its order."""
    done = [spec for spec in plan if is_done(spec, out)]
    return [Run(spec, out / spec.key, Record.load(out / spec.key / "record.json")) for spec in done]


def retrieval_rows(plan: Sequence[RunSpec], out: Path) -> list[dict[str, Any]]:
    """Rows of results.json: one per run and test split.

    Returns:
        ``{"arm", "seed", "split", "encoder", "tag" (only beside the main matrix), "metrics": {...}}``; the
        diagnoses, which do not depend on the split, stand in each.
    """
    rows = []
    for run in read_runs(plan, out):
        metrics = run.record.metrics
        shared = {k.removeprefix("diagnosis/"): v for k, v in metrics.items() if k.startswith("diagnosis/")}
        for split in run.splits:
            own = {k.removeprefix(f"{split}/"): v for k, v in metrics.items() if k.startswith(f"{split}/")}
            row: dict[str, Any] = {"arm": run.spec.arm, "seed": run.spec.seed, "split": split}
            row["encoder"] = run.spec.backbone
            if run.spec.tag:
                row["tag"] = run.spec.tag
            rows.append({**row, "metrics": {**own, **shared}})
    return rows


class Comparison:
    """Compares the arms of a study, query by query: queries resampled, seeds pooled.

    Args:
        runs: Finished runs of one tag.
        reference: The arm that others are tested against.
        resamples: Number of bootstrap resamples.

    Raises:
        DataError: There is no run.
    """

    def __init__(self, runs: Sequence[Run], reference: str, *, resamples: int = 1000) -> None:
        if not runs:
            raise DataError("no run of the study has finished, so there is nothing to compare")
        self.runs, self.reference, self.resamples = list(runs), reference, resamples
        self.arms = list(dict.fromkeys(run.spec.arm for run in runs))
        self.splits = runs[0].splits
        self._kept: dict[tuple[str, str, str, str], list[Float[np.ndarray, " resamples"]]] = {}

    def of(self, arm: str) -> list[Run]:
        """The runs of an arm, one per seed."""
        return [run for run in self.runs if run.spec.arm == arm]

    def values(self, arm: str, split: str, metric: str = NDCG, view: str = "") -> list[float]:
        """A metric of each seed."""
        found = (list(run.per_query(split, metric, view).values()) for run in self.of(arm))
        return [float(np.mean(values)) for values in found if values]

    def spread(self, arm: str, split: str, metric: str = NDCG, view: str = "") -> Spread | None:
        """Mean and standard deviation over seeds; None where it was not measured."""
        values = self.values(arm, split, metric, view)
        return spread(values) if values else None

    def _resampled(self, arm: str, split: str, metric: str, view: str) -> list[Float[np.ndarray, " r"]]:
        key = (arm, split, metric, view)
        if key not in self._kept:
            rows = []
            for run in self.of(arm):
                values = run.per_query(split, metric, view)
                if values:
                    rows.append(MeanBootstrap(values, resamples=self.resamples).mean(values))
            self._kept[key] = rows
        return self._kept[key]

    def level(self, arm: str, split: str, view: str = "") -> Difference | None:
        """nDCG@10 of an arm with its interval."""
        rows = self._resampled(arm, split, NDCG, view)
        return paired_difference(rows, [np.zeros_like(row) for row in rows]) if rows else None

    def differences(
        self, split: str, view: str = "", metric: str = NDCG
    ) -> dict[str, tuple[Difference, float]]:
        """Every arm minus the reference, with its p corrected after Holm over the arms."""
        reference = self._resampled(self.reference, split, metric, view)
        found: dict[str, Difference] = {}
        for arm in self.arms:
            ours = self._resampled(arm, split, metric, view)
            if arm != self.reference and ours and len(ours) == len(reference):
                difference = paired_difference(ours, reference)
                if difference is not None:
                    found[arm] = difference
        corrected = holm([difference.p for difference in found.values()])
        return {arm: (d, p) for (arm, d), p in zip(found.items(), corrected, strict=True)}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None and math.isfinite(v)]
    return float(np.mean(known)) if known else None


def _spread(value: Spread | None) -> str:
    if value is None:
        return MISSING
    deviation = "" if math.isnan(value.deviation) else f" ± {100 * value.deviation:.2f}"
    return f"{100 * value.mean:.2f}{deviation}"


def _shown(value: float | None, digits: int = 3) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"


def _versus(found: Mapping[str, tuple[Difference, float]], arm: str) -> list[str]:
    if arm not in found:
        return ["", ""]
    difference, p = found[arm]
    shown = format_difference(100 * difference.mean, 100 * difference.low, 100 * difference.high)
    return [shown + ("*" if p < 0.05 else ""), format_p(p)]


def _arms_table(comparison: Comparison, head: Head, split: str, views: Sequence[str]) -> str:
    against = f"- {comparison.reference} [95 %]"
    headers = ["arm"]
    for view in views:
        headers += [f"nDCG@10 {VIEWS[view]}", against, "p"]
    headers += ["Recall@10", "Recall@100", "MRR@10"]
    versus = {view: comparison.differences(split, view) for view in views}
    rows = []
    for arm in comparison.arms:
        row = [arm]
        for view in views:
            row += [_spread(comparison.spread(arm, split, NDCG, view)), *_versus(versus[view], arm)]
        rows.append([*row, *(_spread(comparison.spread(arm, split, m)) for m in METRICS[1:])])
    line = ["BM25"]
    for view in views:
        line += [_percent(head.bm25.get(split + view, {}).get(NDCG)), "", ""]
    rows.append([*line, *(_percent(head.bm25.get(split, {}).get(m)) for m in METRICS[1:])])
    return markdown_table(headers, rows)


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.2f}"


def _gold_table(comparison: Comparison, split: str) -> str:
    """Mixed corpus, by the style of the gold, and what the style costs."""
    rows = []
    for arm in comparison.arms:
        clean, plain, styled = (
            _mean(comparison.values(arm, split, NDCG, view)) for view in ("", "/mixed-plain", "/mixed-styled")
        )
        gap = None if plain is None or styled is None else 100 * (styled - plain)
        rows.append([arm, *map(_percent, (clean, plain, styled)), MISSING if gap is None else f"{gap:+.2f}"])
    return markdown_table(["arm", "clean", "mixed, plain gold", "mixed, styled gold", "styled - plain"], rows)


def _diagnoses_table(comparison: Comparison) -> str:
    rows = []
    for arm in comparison.arms:
        records = [run.record.metrics for run in comparison.of(arm)]
        row = [arm]
        for name in DIAGNOSES:
            trained = _mean([m.get(f"diagnosis/{name}") for m in records])
            untrained = _mean([m.get(f"diagnosis/untrained/{name}") for m in records])
            row.append(_shown(trained) + ("" if untrained is None else f" ({_shown(untrained)})"))
        rows.append(row)
    return markdown_table(["arm", *DIAGNOSES.values()], rows)


def _signals(run: Run, name: str) -> tuple[float | None, float | None]:
    """Mean of a logged figure in the first and the last fifth of training.

    Of the batches that were logged, or of the held-out queries where that was done more often.
    """
    values = max((run.history(f"{where}/{name}")[1] for where in ("train", "probe")), key=len)
    part = max(len(values) // 5, 1)
    return (float(np.mean(values[:part])), float(np.mean(values[-part:]))) if values else (None, None)


def _signals_table(comparison: Comparison) -> str:
    rows = []
    for arm in comparison.arms:
        row = [arm]
        for name in ("gradient_share", "gradient_cosine"):
            pairs = [_signals(run, name) for run in comparison.of(arm)]
            first, last = _mean([a for a, _ in pairs]), _mean([b for _, b in pairs])
            row.append(MISSING if first is None else f"{_shown(first)} -> {_shown(last)}")
        if set(row[1:]) != {MISSING}:
            rows.append(row)
    if not rows:
        return "No arm has mined and generated negatives side by side."
    return markdown_table(
        ["arm", "gradient share, generated over mined", "cosine, positive and generated"], rows
    )


def _sets_table(sets: Mapping[str, Path]) -> str:
    rows = []
    for name, path in sets.items():
        report, card = beside(path, ".report.json"), beside(path, ".card.json")
        if report.is_file():
            content = json.loads(report.read_text())
            false = content.get("false_negative_rate")
            word = "unknown" if false is None else f"{100 * false:.1f} % false negatives"
            rows.append([name, f"{content['negatives']} for {content['queries']} queries", word])
        elif card.is_file():
            content = json.loads(card.read_text())
            shares = ", ".join(f"{100 * share:.1f} % {kind}" for kind, share in content["shares"].items())
            kept = f"{content['kept']} of {content['written']} written kept"
            rows.append([name, kept, f"{shares} (before verification)"])
    return markdown_table(["set", "size", "what is in it"], rows)


def shows(comparison: Comparison, split: str, views: Sequence[str]) -> str:
    """In words: which arms gain and which lose against the reference, on each view of a split."""
    sentences = []
    for view in views:
        found = comparison.differences(split, view)
        groups: dict[str, list[str]] = {"gain": [], "lose": [], "show no clear difference": []}
        for arm, (difference, p) in found.items():
            verdict = "show no clear difference" if p >= 0.05 else "gain" if difference.mean > 0 else "lose"
            groups[verdict].append(f"{arm} ({100 * difference.mean:+.2f})")
        parts = [f"{', '.join(arms)} {verdict}" for verdict, arms in groups.items() if arms]
        sentences.append(
            f"{split}, {VIEWS[view]} corpus, against {comparison.reference}: {'; '.join(parts)}."
        )
    return " ".join(sentences)


def study_table(head: Head, plan: Sequence[RunSpec], out: Path, *, resamples: int = 1000) -> str:
    """The whole table.md of a study."""
    runs = read_runs(plan, out)
    tags = list(dict.fromkeys(run.spec.tag for run in runs))
    main = Comparison([run for run in runs if run.spec.tag == tags[0]], head.reference, resamples=resamples)
    seeds = sorted({run.spec.seed for run in runs})
    seconds = sum(run.record.wall_seconds or 0.0 for run in runs)
    has_mixed = bool(main.values(main.arms[0], main.splits[0], NDCG, "/mixed"))
    views = ["", "/mixed"] if has_mixed else [""]
    planned = len({spec.key for spec in plan})
    lines = [
        f"# Retrieval study: {head.name}",
        "",
        head.description,
        "",
        f"- command: `{head.command}`",
        f"- data: {head.data.name}, {main.runs[0].record.notes['documents']} documents, "
        f"{main.runs[0].record.notes['train_queries']} training queries; tests: {', '.join(main.splits)}",
        f"- runs: {len(runs)} of {planned}, seeds {', '.join(map(str, seeds))}; "
        f"{format_seconds(seconds)} of training and testing in all, {head.workers} at a time",
        f"- hardware: {describe_hardware(runs[0].record.hardware)}",
        f"- x 100; ± is the standard deviation over seeds; intervals: {resamples} resamples of queries, "
        "seeds pooled; p: two-sided, corrected after Holm over the arms of a column; * is a corrected p "
        "below .05",
        "",
        "## What this shows",
        "",
        " ".join(shows(main, split, views) for split in main.splits),
    ]

    def section(title: str, text: str) -> None:
        lines.extend(["", f"## {title}", "", text])

    for split in main.splits:
        section(f"{split}: arms against {head.reference}", _arms_table(main, head, split, views))
        if has_mixed:
            section(f"{split}: nDCG@10 by the style of the gold", _gold_table(main, split))
    section("Does the encoder score by who wrote it? Trained (untrained in brackets)", _diagnoses_table(main))
    section("Signals while training: first fifth -> last fifth of the steps", _signals_table(main))
    for tag in tags[1:]:
        own = [run for run in runs if run.spec.tag == tag]
        arms = [run.spec.arm for run in own]
        against = head.reference if head.reference in arms else arms[0]
        beside_main = Comparison(own, against, resamples=resamples)
        for split in beside_main.splits:
            section(f"{split}, {tag}", _arms_table(beside_main, head, split, views))
        section(f"Source diagnostics, {tag}", _diagnoses_table(beside_main))
    section("The training sets", _sets_table(head.sets))
    return "\n".join(lines) + "\n"


def study_plots(plan: Sequence[RunSpec], out: Path, reference: str) -> list[Path]:
    """Draw nDCG by arm with intervals, similarity by source, and the source AUC over training."""
    runs = read_runs(plan, out)
    first = runs[0].spec.tag
    main = Comparison([run for run in runs if run.spec.tag == first], reference)
    made = [out / "ndcg.png"]
    panels = []
    for split in main.splits:
        series = []
        for view in ("", "/mixed"):
            levels = [main.level(arm, split, view) for arm in main.arms]
            if any(level is not None for level in levels):
                y, low, high = (
                    [100 * getattr(level, part) if level else math.nan for level in levels]
                    for part in ("mean", "low", "high")
                )
                series.append(Series(VIEWS[view], _short(main.arms), y, low, high))
        panels.append(Panel(split, series, y_label="nDCG@10 x 100"))
    bar_plot(made[0], panels, title="nDCG@10 by arm, 95 % intervals over queries", columns=1, width=12)
    if histograms := _histogram_panels(main):
        made.append(out / "similarity.png")
        line_plot(made[-1], histograms, title="Similarity to the query by source, held-out queries")
    if lines := _over_training(main):
        made.append(out / "source_auc.png")
        line_plot(made[-1], lines, title="Source over training, held-out queries")
    return made


def _short(arms: Sequence[str]) -> list[str]:
    return [arm.replace("+", "+\n").replace("-", "-\n") for arm in arms]


def _histogram_panels(comparison: Comparison) -> list[Panel]:
    panels = []
    for arm in comparison.arms:
        path = comparison.of(arm)[0].folder / "diagnosis.json"
        if not path.is_file():
            continue
        found = json.loads(path.read_text())["trained"]["histogram"]
        edges = np.array(found["edges"])
        middle = ((edges[1:] + edges[:-1]) / 2).tolist()
        series = []
        for colour, source in enumerate(("positive", "mined", "generated")):
            counts = np.array(found["counts"].get(source, []), dtype=np.float64)
            if counts.sum():
                series.append(Series(source, middle, (counts / counts.sum()).tolist(), colour=colour))
        if series:
            panels.append(Panel(arm, series, x_label="cosine", y_label="share"))
    return panels


def _over_training(comparison: Comparison) -> list[Panel]:
    panels = []
    for name, title in (("style_shift", "style shift"), ("source_auc", "source AUC (score)")):
        series = []
        for place, arm in enumerate(comparison.arms):
            found = [run.history(f"probe/{name}") for run in comparison.of(arm)]
            if found and all(values for _, values in found):
                length = min(len(values) for _, values in found)
                mean = np.mean([values[:length] for _, values in found], axis=0).tolist()
                series.append(Series(arm, found[0][0][:length], mean, dashed=place >= 10))
        if series:
            panels.append(Panel(title, series, x_label="step"))
    return panels
