"""Sections of the page of a click-through study: a section is one function, and one line of the registry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.calibration import calibration_curve

from common.report.page.charts import dot_chart, dot_domain, line_chart
from common.report.page.render import Section, Titled
from common.report.panels import Panel, Series
from common.report.tables import Table
from common.study.collect import Measure, Run
from common.study.compare import Contrast, Tested
from common.study.page import THINNED, curves
from lain.study.examples import cell_anchor
from lain.study.panels import Attention, attention_panels, auc_panels, mean_attention, sweep_panels
from lain.study.resample import read_predictions
from lain.study.table import (
    BASE,
    CONTROL,
    METHODS,
    CTRReport,
    control_pairs,
    detail,
    group_title,
    method_arms,
    method_tests,
    overview,
    pair_tests,
    shows,
)
from lain.study.table import sections as tables_of

CROWDED_ARMS = 4
"""Arms of a backbone beyond which those that not every backbone has get a plot of their own."""

BINS = 10
"""Points of a calibration curve."""


def differences(report: CTRReport) -> Section | None:
    """The main table, and the differences to base by backbone, arm and bucket."""
    arms = method_arms(report)
    tested = {test: one for arm in arms for test, one in _against_base(report, arm).items()}
    tested |= report.main.family(pair_tests(report, control_pairs(report)))
    own = [set(report.main.arms(name)) for name in report.main.backbones]
    shared = set.intersection(*own) if len(own) > 1 else {CONTROL}
    panels, others = [], []
    for backbone in report.main.backbones:
        here = [arm for arm in report.main.arms(backbone) if arm != BASE]
        rest = [arm for arm in here if arm not in (*shared, *METHODS)]
        chosen = here if len(here) <= CROWDED_ARMS else [arm for arm in here if arm not in rest]
        series = [_forest(report, backbone, arm, tested, colour) for colour, arm in enumerate(chosen, 1)]
        series = [one for one in series if any(map(math.isfinite, one.y))]
        if series:
            title = f"{backbone.upper()}, minus {BASE}"
            panels.append(Panel(title, series, "true history length", "difference, AUC x 100", zero=True))
        if len(chosen) < len(here):
            others.append(_by_arm(report, backbone, rest, tested))
    panels += others
    if not panels:
        return None
    domain = dot_domain(panels)
    main = [
        Titled(f"{arm} against {BASE}, AUC x 100", detail(report, arm), _detail_links(report, arm))
        for arm in arms
    ]
    overviews = [
        Titled(f"{arm} minus {BASE}, AUC x 100", table, _overview_links(report, arm, table))
        for arm in arms
        for table in [overview(report, arm)]
    ]
    return Section(
        "Differences by history length",
        text=[
            "A point is a difference of AUC x 100 with its 95 % interval; a filled one has a p below .05 "
            "after Holm's correction over all tests of its table, as has a star."
        ],
        charts=[dot_chart(panel, domain=domain) for panel in panels],
        tables=[*overviews, *main],
    )


def _overview_links(report: CTRReport, arm: str, table: Table) -> dict[tuple[int, int], str]:
    """From every difference to the users behind it."""
    return {
        (row, column): cell_anchor(cells[0], arm, group)
        for row, cells in enumerate(table.rows)
        for column, group in enumerate(report.resampler.groups, 1)
    }


def _detail_links(report: CTRReport, arm: str) -> dict[tuple[int, int], str]:
    """From every difference to the users behind it."""
    tests = method_tests(report, arm, BASE)
    column = detail(report, arm).headers.index("difference")
    return {
        (row, column): cell_anchor(test.backbone, arm, test.measure.bucket) for row, test in enumerate(tests)
    }


def _against_base(report: CTRReport, arm: str) -> dict[Contrast, Tested]:
    return report.main.family(method_tests(report, arm, BASE))


def _forest(
    report: CTRReport, backbone: str, arm: str, family: Mapping[Contrast, Tested], colour: int
) -> Series:
    groups = report.resampler.groups
    found = [family.get(Contrast(Measure("auc", group), backbone, arm, BASE)) for group in groups]

    def column(name: str) -> list[float]:
        return [100 * getattr(one.difference, name) if one else math.nan for one in found]

    return Series(
        arm,
        [group_title(group) for group in groups],
        column("mean"),
        column("low"),
        column("high"),
        colour=colour,
        filled=[one is not None and one.significant for one in found],
    )


def _by_arm(
    report: CTRReport, backbone: str, arms: Sequence[str], family: Mapping[Contrast, Tested]
) -> Panel:
    """Many arms of one backbone: a row an arm, over all rows and at both ends of the lengths."""
    groups = report.resampler.groups
    series = []
    for colour, group in enumerate(dict.fromkeys((groups[0], groups[1], groups[-1]))):
        found = [family.get(Contrast(Measure("auc", group), backbone, arm, BASE)) for arm in arms]
        y, low, high = (
            [100 * getattr(one.difference, part) if one else math.nan for one in found]
            for part in ("mean", "low", "high")
        )
        filled = [one is not None and one.significant for one in found]
        series.append(Series(group_title(group), arms, y, low, high, colour=colour, filled=filled))
    title = f"{backbone.upper()}, the other arms, minus {BASE}"
    return Panel(title, series, "arm", "difference, AUC x 100", zero=True)


def buckets(report: CTRReport) -> Section:
    """AUC of every arm by length bucket."""
    levels, _ = auc_panels(report)
    return Section(
        "AUC by history length",
        text=["AUC x 100 of each arm on the test rows of each bucket, with 95 % intervals over users."],
        charts=[dot_chart(panel) for panel in levels],
    )


def sweep(report: CTRReport) -> Section | None:
    """AUC of each bucket against the maximum length; None where no run was tagged ``sweep``."""
    panels = sweep_panels(report)
    if not panels:
        return None
    return Section(
        "AUC against the maximum length",
        text=["Each bucket of true history length, when the model sees at most so many behaviours."],
        charts=[line_chart(panel, log_x=True) for panel in panels],
    )


def attention(report: CTRReport) -> Section | None:
    """Shape of the attention by history length; None where it was not measured."""
    panels = [panel for panel in attention_panels(report) if panel.series]
    if not panels:
        return None
    return Section(
        "Attention by history length",
        text=["Gini: 0 is attention spread evenly, 1 is attention on one behaviour. Mean over seeds."],
        charts=[line_chart(panel) for panel in panels],
    )


def calibration_panel(title: str, arms: Mapping[str, Sequence[Run]]) -> Panel:
    """Share of clicks against the predicted probability, in tenths of the rows, seeds pooled.

    Args:
        title: Title.
        arms: Runs of each line, by its name.
    """
    series = []
    for colour, (arm, runs) in enumerate(arms.items()):
        tables = [read_predictions(run) for run in runs]
        score = np.concatenate([np.asarray(table["score"], dtype=np.float64) for table in tables])
        label = np.concatenate([np.asarray(table["label"]) for table in tables])
        if len(score) and np.isfinite(score).all():
            clicked, predicted = calibration_curve(label, score, n_bins=BINS, strategy="quantile")
            series.append(Series(arm, predicted.tolist(), clicked.tolist(), colour=colour))
    ends = [value for one in series for value in (*map(float, one.x), *one.y)]
    if ends:
        line = [min(ends), max(ends)]
        series.append(Series("perfect", line, line, dashed=True, colour=6))
    return Panel(title, series, "predicted", "clicked")


def calibration(report: CTRReport) -> Section:
    """Calibration of every arm that all backbones have."""
    panels = []
    for backbone in report.main.backbones:
        arms = {arm: report.main.of(backbone, arm) for arm in report.main.arms(backbone)}
        panels.append(calibration_panel(backbone.upper(), arms))
    return Section(
        "Calibration",
        text=[
            "Share of clicks against the predicted probability, test rows in tenths by prediction; seeds "
            "pooled."
        ],
        charts=[line_chart(panel) for panel in panels if panel.series],
    )


def training(report: CTRReport) -> Section | None:
    """Loss and validation over training."""
    charts = []
    for backbone in report.main.backbones:
        arms = {arm: report.main.of(backbone, arm) for arm in report.main.arms(backbone)}
        titles = {
            "train/loss": "training loss",
            "valid/auc": "validation AUC",
            "valid/logloss": "validation logloss",
        }
        charts += curves(arms, {name: f"{backbone.upper()}: {title}" for name, title in titles.items()})
    return Section("Training", text=[f"Mean over seeds. {THINNED}"], charts=charts) if charts else None


def tables(report: CTRReport) -> Section:
    """Everything in words, and every other table."""
    shown = {
        f"{arm} {word} {BASE}, AUC x 100" for arm in method_arms(report) for word in ("against", "minus")
    }
    folded = [Titled(title, table) for title, table in tables_of(report) if title not in shown]
    return Section("All comparisons", text=[shows(report)], folded=folded)


def run_attention(run: Run) -> Section | None:
    """Attention of one run by history length; None where it was not measured."""
    found: Attention = mean_attention([run])
    names = dict.fromkeys(name for branch in found.values() for row in branch.values() for name in row)
    panels = []
    for name in (name for name in names if name != "samples"):
        series = []
        for branch, rows in found.items():
            values = [math.nan if (value := row.get(name)) is None else value for row in rows.values()]
            series.append(Series(branch, list(rows), values))
        panels.append(Panel(name.replace("_", " "), series, "true history length", zero=True))
    return Section("Attention by history length", charts=[line_chart(p) for p in panels]) if panels else None


def run_calibration(run: Run) -> Section | None:
    """Calibration of one run; None where it has no predictions."""
    if not (run.folder / "predictions" / "test.parquet").is_file():
        return None
    return Section("Calibration", charts=[line_chart(calibration_panel("test rows", {"clicked": [run]}))])
