"""A retrieval study as Markdown tables, with sentences made from the numbers by rule."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from causalneg.study.plan import RetrievalStudy
from causalneg.study.prepare import Prepared
from causalneg.study.resample import QueryResampler, splits
from common.files import beside
from common.report.tables import MISSING, Table, format_difference, format_p
from common.stats.bootstrap import Difference
from common.stats.spread import Spread
from common.study.collect import Measure, Run
from common.study.compare import Comparison, Contrast, Tested
from common.study.kind import Report, seed_gaps

RetrievalReport = Report[RetrievalStudy, Prepared, QueryResampler]

NDCG = "ndcg@10"
METRICS = (NDCG, "recall@10", "recall@100", "mrr@10")
VIEWS = {"": "clean", "mixed": "mixed"}
"""The corpora that are searched, by the bucket of their metrics."""

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
class Arms:
    """The arms of one tag and one encoder.

    Args:
        comparison: The runs of the tag.
        encoder: The encoder.
        reference: The arm that others are tested against.
    """

    comparison: Comparison
    encoder: str
    reference: str

    @property
    def names(self) -> list[str]:
        """The arms, in the order of the plan."""
        return self.comparison.arms(self.encoder)

    @property
    def splits(self) -> list[str]:
        """Splits that they were tested on."""
        return splits(self.comparison.runs[0])

    def of(self, arm: str) -> list[Run]:
        """The runs of an arm, one per seed."""
        return self.comparison.of(self.encoder, arm)

    def spread(self, arm: str, measure: Measure) -> Spread | None:
        """Mean and standard deviation over seeds; None where it was not measured."""
        return self.comparison.spread(measure, self.encoder, arm)

    def level(self, arm: str, measure: Measure) -> Difference | None:
        """A metric of an arm with its interval."""
        return self.comparison.level(measure, self.encoder, arm)

    def differences(self, measure: Measure) -> dict[str, Tested]:
        """Every other arm minus the reference, corrected after Holm over the arms."""
        others = [arm for arm in self.names if arm != self.reference]
        tests = [Contrast(measure, self.encoder, arm, self.reference) for arm in others]
        return {test.arm: tested for test, tested in self.comparison.family(tests).items()}


def arms_of(report: RetrievalReport, tag: str = "") -> list[Arms]:
    """The arms of a tag, per encoder.

    They are tested against the study's reference, or against their first arm where a tag lacks it.
    """
    comparison = report.comparison(tag)
    found = []
    for encoder in comparison.backbones:
        names = comparison.arms(encoder)
        reference = report.study.reference if report.study.reference in names else names[0]
        found.append(Arms(comparison, encoder, reference))
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None and math.isfinite(v)]
    return float(np.mean(known)) if known else None


def _average(value: Spread | None) -> float | None:
    return None if value is None else value.mean


def _spread(value: Spread | None) -> str:
    if value is None:
        return MISSING
    deviation = "" if math.isnan(value.deviation) else f" ± {100 * value.deviation:.2f}"
    return f"{100 * value.mean:.2f}{deviation}"


def _shown(value: float | None, digits: int = 3) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"


def _versus(found: Mapping[str, Tested], arm: str) -> list[str]:
    if arm not in found:
        return ["", ""]
    difference, p = found[arm].difference, found[arm].p
    shown = format_difference(100 * difference.mean, 100 * difference.low, 100 * difference.high)
    return [shown + ("*" if found[arm].significant else ""), format_p(p)]


def _arms_table(
    arms: Arms, bm25: Mapping[str, Mapping[str, float]], split: str, views: Sequence[str]
) -> Table:
    against = f"- {arms.reference} [95 %]"
    headers = ["arm"]
    for view in views:
        headers += [f"nDCG@10 {VIEWS[view]}", against, "p"]
    headers += ["Recall@10", "Recall@100", "MRR@10"]
    versus = {view: arms.differences(Measure(NDCG, view, split)) for view in views}
    rows = []
    for arm in arms.names:
        row = [arm]
        for view in views:
            row += [_spread(arms.spread(arm, Measure(NDCG, view, split))), *_versus(versus[view], arm)]
        rows.append([*row, *(_spread(arms.spread(arm, Measure(m, "", split))) for m in METRICS[1:])])
    line = ["BM25"]
    for view in views:
        line += [_percent(bm25.get(f"{split}/{view}" if view else split, {}).get(NDCG)), "", ""]
    rows.append([*line, *(_percent(bm25.get(split, {}).get(m)) for m in METRICS[1:])])
    return Table(headers, rows)


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.2f}"


def _gold_table(arms: Arms, split: str) -> Table:
    """Mixed corpus, by the style of the gold, and what the style costs."""
    rows = []
    for arm in arms.names:
        clean, plain, styled = (
            _average(arms.spread(arm, Measure(NDCG, view, split)))
            for view in ("", "mixed-plain", "mixed-styled")
        )
        gap = None if plain is None or styled is None else 100 * (styled - plain)
        rows.append([arm, *map(_percent, (clean, plain, styled)), MISSING if gap is None else f"{gap:+.2f}"])
    return Table(["arm", "clean", "mixed, plain gold", "mixed, styled gold", "styled - plain"], rows)


def _diagnoses_table(arms: Arms) -> Table:
    rows = []
    for arm in arms.names:
        records = [run.record.metrics for run in arms.of(arm)]
        row = [arm]
        for name in DIAGNOSES:
            trained = _mean([m.get(f"diagnosis/{name}") for m in records])
            untrained = _mean([m.get(f"diagnosis/untrained/{name}") for m in records])
            row.append(_shown(trained) + ("" if untrained is None else f" ({_shown(untrained)})"))
        rows.append(row)
    return Table(["arm", *DIAGNOSES.values()], rows)


def _signals(run: Run, name: str) -> tuple[float | None, float | None]:
    """Mean of a logged figure in the first and the last fifth of training.

    Of the held-out queries, which are the same for every arm; of the batches where there are none.
    """
    values = run.history(f"probe/{name}")[1] or run.history(f"train/{name}")[1]
    part = max(len(values) // 5, 1)
    return (float(np.mean(values[:part])), float(np.mean(values[-part:]))) if values else (None, None)


def _signals_table(arms: Arms) -> Table | None:
    rows = []
    for arm in arms.names:
        row = [arm]
        for name in ("gradient_share", "gradient_cosine"):
            pairs = [_signals(run, name) for run in arms.of(arm)]
            first, last = _mean([a for a, _ in pairs]), _mean([b for _, b in pairs])
            row.append(MISSING if first is None else f"{_shown(first)} -> {_shown(last)}")
        if set(row[1:]) != {MISSING}:
            rows.append(row)
    if not rows:
        return None
    return Table(["arm", "gradient share, generated over mined", "cosine, positive and generated"], rows)


def _sets_table(sets: Mapping[str, Path]) -> Table:
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
    return Table(["set", "size", "what is in it"], rows)


def shows(arms: Arms, split: str, views: Sequence[str]) -> str:
    """In words: which arms gain and which lose against the reference, on each view of a split."""
    sentences = []
    for view in views:
        found = arms.differences(Measure(NDCG, view, split))
        groups: dict[str, list[str]] = {"gain": [], "lose": [], "show no clear difference": []}
        for arm, tested in found.items():
            mean = tested.difference.mean
            verdict = ("gain" if mean > 0 else "lose") if tested.significant else "show no clear difference"
            groups[verdict].append(f"{arm} ({100 * mean:+.2f})")
        parts = [f"{', '.join(named)} {verdict}" for verdict, named in groups.items() if named]
        sentences.append(f"{split}, {VIEWS[view]} corpus, against {arms.reference}: {'; '.join(parts)}.")
    return " ".join(sentences)


def views_of(report: RetrievalReport) -> list[str]:
    """The views that were searched: clean, and mixed where there is a mixed corpus."""
    first = arms_of(report)[0]
    mixed = first.spread(first.names[0], Measure(NDCG, "mixed", first.splits[0]))
    return list(VIEWS) if mixed is not None else [""]


def sections(report: RetrievalReport) -> list[tuple[str, Table | None]]:
    """Every table of a study under its title, the main ones first; None where nothing was measured."""
    main, views, bm25 = arms_of(report), views_of(report), report.prepared.bm25
    found: list[tuple[str, Table | None]] = []

    def suffix(arms: Arms) -> str:
        return f", {arms.encoder}" if len(main) > 1 else ""

    for arms in main:
        for split in main[0].splits:
            title = f"{split}: arms against {arms.reference}{suffix(arms)}"
            found.append((title, _arms_table(arms, bm25, split, views)))
            if len(views) > 1:
                title = f"{split}: nDCG@10 by the style of the gold{suffix(arms)}"
                found.append((title, _gold_table(arms, split)))
        title = f"Does the encoder score by who wrote it? Trained (untrained in brackets){suffix(arms)}"
        found.append((title, _diagnoses_table(arms)))
        title = f"Signals while training: first fifth -> last fifth of the steps{suffix(arms)}"
        found.append((title, _signals_table(arms)))
    for tag in report.tags[1:]:
        for arms in arms_of(report, tag):
            for split in arms.splits:
                found.append((f"{split}, {tag}{suffix(arms)}", _arms_table(arms, bm25, split, views)))
            found.append((f"Source diagnostics, {tag}{suffix(arms)}", _diagnoses_table(arms)))
    found.append(("The training sets", _sets_table(report.prepared.sets)))
    return found


def _summary(arms: Arms, split: str, view: str) -> str:
    """Who gains and who loses on a view; the arms without a clear difference are counted."""
    found = arms.differences(Measure(NDCG, view, split))
    sure = {arm: 100 * tested.difference.mean for arm, tested in found.items() if tested.significant}
    parts = []
    for up, one, several in ((True, "gains", "gain"), (False, "loses", "lose")):
        named = [f"{arm} {mean:+.2f}" for arm, mean in sorted(sure.items(), key=lambda x: -abs(x[1]))
                 if (mean > 0) == up]  # fmt: skip
        parts += [f"{', '.join(named)} {one if len(named) == 1 else several}"] if named else []
    rest = len(found) - len(sure)
    others = "other " if sure else ""
    if rest:
        parts.append(
            f"no clear difference for {'the' if rest == 1 else rest} {others}{'arm' if rest == 1 else 'arms'}"
        )
    where = f"{VIEWS[view].capitalize()} corpus ({split})"
    return f"{where}, against {arms.reference}, nDCG@10 x 100: {'; '.join(parts)}."


def answer(report: RetrievalReport) -> list[str]:
    """Who gains and who loses on the first test split, clean and mixed, and the best arm beside BM25."""
    arms, views = arms_of(report)[0], views_of(report)
    split = arms.splits[0]
    found = [_summary(arms, split, view) for view in views if len(arms.names) > 1]
    levels = {arm: _average(arms.spread(arm, Measure(NDCG, "", split))) for arm in arms.names}
    known = {arm: level for arm, level in levels.items() if level is not None}
    if known:
        best = max(known, key=lambda arm: known[arm])
        bm25 = report.prepared.bm25.get(split, {}).get(NDCG)
        beside = f"; BM25's own search has {_percent(bm25)}" if bm25 is not None else ""
        found.append(f"The highest nDCG@10 x 100 is that of {best}, {_percent(known[best])}{beside}.")
    return found


def gaps(report: RetrievalReport) -> list[str]:
    """What the study did not measure, a sentence each."""
    found = seed_gaps(report)
    if views_of(report) == [""]:
        found.append("No mixed corpus was searched, so the cost of a writer's style is not known.")
    if not any((run.folder / "diagnosis.json").is_file() for run in report.main.runs):
        found.append("No encoder was diagnosed: neither similarity by source nor source AUC.")
    return found


def facts(report: RetrievalReport) -> dict[str, str]:
    """What stands at the head of the table."""
    notes = report.main.runs[0].record.notes
    return report.facts(
        data=f"{report.prepared.data.name}, {notes['documents']} documents, "
        f"{notes['train_queries']} training queries; tests: {', '.join(arms_of(report)[0].splits)}",
        measured="x 100",
        units="queries",
        family="the arms of a column",
    )


def study_table(report: RetrievalReport) -> str:
    """The whole table.md of a study."""
    main, views = arms_of(report), views_of(report)
    lines = [
        *report.head_lines("Retrieval study", facts(report)),
        "",
        "## What this shows",
        "",
        " ".join(shows(arms, split, views) for arms in main for split in main[0].splits),
    ]
    for title, table in sections(report):
        text = "No arm has mined and generated negatives side by side." if table is None else table.markdown()
        lines.extend(["", f"## {title}", "", text])
    return "\n".join(lines) + "\n"
