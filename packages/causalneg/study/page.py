"""Sections of the page of a retrieval study: a section is one function, and one line of the registry."""

from __future__ import annotations

import json
import math

from causalneg.evaluation.ladder import Ladder
from causalneg.study.examples import cell_anchor
from causalneg.study.panels import (
    OVER_TRAINING,
    histogram_panel,
    ndcg_panels,
    similarity_panels,
    training_panels,
)
from causalneg.study.table import NDCG, VIEWS, Arms, RetrievalReport, arms_of, shows, views_of
from causalneg.study.table import sections as tables_of
from common.files import beside
from common.report.page.charts import bar_chart, dot_chart, dot_domain, line_chart
from common.report.page.render import Section, Titled
from common.report.panels import Panel, Series
from common.report.tables import Table
from common.study.collect import Measure, Run
from common.study.page import THINNED, curves, thinned


def differences(report: RetrievalReport) -> Section:
    """The main tables, and the differences to the reference by arm, clean and mixed."""
    views = views_of(report)
    parts = [(arms, split) for arms in arms_of(report) for split in arms.splits]
    panels = [panel for arms, split in parts if (panel := _forest(arms, split, views)).series]
    domain = dot_domain(panels)
    suffix = {arms.encoder: f", {arms.encoder}" if len(arms_of(report)) > 1 else "" for arms, _ in parts}
    main = {
        f"{split}: arms against {arms.reference}{suffix[arms.encoder]}": (arms, split)
        for arms, split in parts
    }
    chosen = [(title, table) for title, table in tables_of(report) if table and title in main]
    return Section(
        "Differences by arm",
        text=[
            "A point is a difference of nDCG@10 x 100 with its 95 % interval; a filled one has a p below .05 "
            "after Holm's correction over the arms, as has a star."
        ],
        charts=[dot_chart(panel, domain=domain) for panel in panels],
        tables=[Titled(title, table, _links(*main[title], table, views)) for title, table in chosen],
    )


def _links(arms: Arms, split: str, table: Table, views: list[str]) -> dict[tuple[int, int], str]:
    """From the differences of a main table to the queries that changed."""
    columns = [place for place, name in enumerate(table.headers) if name.startswith("- ")]
    return {
        (row, column): cell_anchor(arms, arm, split, view)
        for row, arm in enumerate(arms.names)
        for column, view in zip(columns, views, strict=True)
        if arm != arms.reference
    }


def _forest(arms: Arms, split: str, views: list[str]) -> Panel:
    names = [arm for arm in arms.names if arm != arms.reference]
    series = []
    for colour, view in enumerate(views):
        tested = arms.differences(Measure(NDCG, view, split))
        found = [tested.get(arm) for arm in names]
        y, low, high = (
            [100 * getattr(one.difference, part) if one else math.nan for one in found]
            for part in ("mean", "low", "high")
        )
        filled = [one is not None and one.significant for one in found]
        if tested:
            series.append(Series(VIEWS[view], names, y, low, high, colour=colour, filled=filled))
    title = f"{split}, {arms.encoder}: minus {arms.reference}"
    return Panel(title, series, "arm", "difference, nDCG@10 x 100", zero=True)


def ndcg(report: RetrievalReport) -> Section:
    """nDCG@10 of every arm on the clean and the mixed corpus."""
    return Section(
        "nDCG@10 by arm",
        text=[
            "With 95 % intervals over queries, on the clean corpus and where half of it is in the writer's "
            "style."
        ],
        charts=[dot_chart(panel) for panel in ndcg_panels(report) if panel.series],
    )


def similarity(report: RetrievalReport) -> Section | None:
    """Similarity to the query by source; None where nothing was diagnosed."""
    charts = [line_chart(panel) for panel in similarity_panels(report)]
    words = (
        "Share of held-out texts by their similarity to the query, after training; first seed of each arm."
    )
    return Section("Similarity by source", text=[words], charts=charts) if charts else None


def source(report: RetrievalReport) -> Section | None:
    """Whether the encoder scores by who wrote a text, over training; None where it was not measured."""
    charts = [line_chart(thinned(panel)) for panel in training_panels(report, list(OVER_TRAINING))]
    words = f"Measured on held-out queries while training, mean over seeds. {THINNED}"
    return Section("Source over training", text=[words], charts=charts) if charts else None


def written(report: RetrievalReport) -> Section | None:
    """What writers wrote and what the verifier kept; None where no set was written."""
    cards = {name: beside(path, ".card.json") for name, path in report.prepared.sets.items()}
    found = {name: json.loads(card.read_text()) for name, card in cards.items() if card.is_file()}
    if not found:
        return None
    names = list(found)
    kept = [100 * one["kept"] / max(one["written"], 1) for one in found.values()]
    series = [
        Series("valid as written", names, [100 * one["shares"]["valid"] for one in found.values()], colour=0),
        Series("kept", names, kept, colour=2),
    ]
    reasons = list(dict.fromkeys(row["reason"] for one in found.values() for row in one["reasons"]))
    counts = [
        [
            name,
            *(
                str(sum(row["count"] for row in one["reasons"] if row["reason"] == reason))
                for reason in reasons
            ),
        ]
        for name, one in found.items()
    ]
    rows = [
        [name, str(one["written"]), str(one["kept"]),
         *(f"{100 * one['shares'][kind]:.1f}" for kind in ("valid", "off topic", "answering"))]
        for name, one in found.items()
    ]  # fmt: skip
    known = all(one["truth"] for one in found.values())
    words = "by the exact truth of the world" if known else "by the verifier where no world knows the truth"
    return Section(
        "Written negatives and their verifier",
        text=[
            f"Shares of all that was written: valid {words}, before anything was refused; and kept. What "
            "is refused though valid has another fault: its length, its language, a copy."
        ],
        charts=[bar_chart(Panel("Written negatives", series, "set", "% of the written ones"))],
        tables=[
            Titled(
                "As written",
                Table(["set", "written", "kept", "valid, %", "off topic, %", "answering, %"], rows),
            ),
            Titled("Verdicts", Table(["set", *reasons], counts)),
        ],
    )


def training(report: RetrievalReport) -> Section | None:
    """Loss and validation over training."""
    charts = []
    for arms in arms_of(report):
        runs = {arm: arms.of(arm) for arm in arms.names}
        titles = {"train/loss": "training loss", "valid/ndcg@10": "validation nDCG@10"}
        charts += curves(runs, {name: f"{arms.encoder}: {title}" for name, title in titles.items()})
    return Section("Training", text=[f"Mean over seeds. {THINNED}"], charts=charts) if charts else None


def tables(report: RetrievalReport) -> Section:
    """Everything in words, and every other table."""
    views = views_of(report)
    words = " ".join(shows(arms, split, views) for arms in arms_of(report) for split in arms.splits)
    shown = differences(report).tables
    titles = {one.title for one in shown}
    folded = [Titled(title, table) for title, table in tables_of(report) if table and title not in titles]
    return Section("All comparisons", text=[words], folded=folded)


def run_similarity(run: Run) -> Section | None:
    """Similarity by source of one run; None where it was not diagnosed."""
    path = run.folder / "diagnosis.json"
    if not path.is_file():
        return None
    panel = histogram_panel("Held-out texts by similarity to the query", json.loads(path.read_text()))
    return Section("Similarity by source", charts=[line_chart(panel)]) if panel.series else None


def run_ladder(run: Run) -> Section | None:
    """BM25, the start encoder and the trained one; None where they were not measured side by side."""
    path = run.folder / "ladder.json"
    if not path.is_file():
        return None
    ladder = Ladder.from_json(path.read_text())
    return Section("Beside BM25", text=ladder.words(), tables=[Titled(ladder.title, ladder.table())])
