"""A click-through study as Markdown tables, with a paragraph made from the numbers by rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from common.metrics.ctr import DEFAULT_BUCKETS, bucket_name
from common.report.tables import MISSING, Table, format_difference, format_number, format_p
from common.stats.spread import Spread, spread
from common.study.collect import Measure, Run, run_rows
from common.study.compare import Contrast, Tested
from common.study.kind import Report, seed_gaps
from common.study.plan import Study
from lain.study.data import PreparedCTR
from lain.study.resample import WHOLE, UserResampler

CTRReport = Report[Study, PreparedCTR, UserResampler]

BASE = "base"
METHODS = ("lain", "lain-plus")
"""Arms that are the method; the others are controls and ablations."""
CONTROL = "temperature-loglength"
"""The strongest simple control: what the method has to beat."""


def group_title(group: str) -> str:
    """Name of a group for readers."""
    return "all" if group == WHOLE else group


def _spread(value: Spread | None, scale: float = 100, digits: int = 2) -> str:
    if value is None:
        return MISSING
    text = format_number(scale * value.mean, digits)
    return text if math.isnan(value.deviation) else f"{text} ± {scale * value.deviation:.{digits}f}"


def _interval(tested: Tested | None, scale: float = 100, digits: int = 2) -> list[str]:
    """Cells: difference, interval, corrected p."""
    if tested is None:
        return [MISSING] * 3
    found = tested.difference
    ends = f"[{scale * found.low:+.{digits}f}, {scale * found.high:+.{digits}f}]"
    return [
        format_difference(scale * found.mean, digits=digits),
        ends,
        format_p(tested.p).removeprefix("p ").removeprefix("= "),
    ]


def _starred(tested: Tested | None) -> str:
    """``+0.42*``: the star stands for a corrected p below .05."""
    if tested is None:
        return MISSING
    return format_difference(100 * tested.difference.mean) + ("*" if tested.significant else "")


def _names(names: Sequence[str]) -> str:
    names = [name.upper() for name in names]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _verdict(tested: Tested) -> str:
    if not tested.significant:
        return "no clear difference for"
    return "gains for" if tested.difference.mean > 0 else "loses for"


def clause(tested: Mapping[str, Tested]) -> str:
    """In the form ``gains for A (+0.40), no clear difference for B and C (+0.01, -0.02)``."""
    parts = []
    for word in ("gains for", "loses for", "no clear difference for"):
        chosen = {name: one.difference.mean for name, one in tested.items() if _verdict(one) == word}
        if len(chosen) == len(tested) > 1:
            mean = 100 * sum(chosen.values()) / len(chosen)
            parts.append(f"{word} all {len(chosen)} backbones (mean {mean:+.2f})")
        elif chosen:
            values = ", ".join(f"{100 * mean:+.2f}" for mean in chosen.values())
            parts.append(f"{word} {_names(list(chosen))} ({values})")
    return ", ".join(parts)


def shows(report: CTRReport) -> str:
    """One paragraph about who gains and who loses, made from the corrected tests by rule."""
    text = []
    for arm in method_arms(report):
        for against in (BASE, CONTROL):
            family = report.main.family(method_tests(report, arm, against))
            clauses = []
            for group in report.resampler.groups:
                here = {test.backbone: one for test, one in family.items() if test.measure.bucket == group}
                if here:
                    where = "all rows" if group == WHOLE else f"lengths {group}"
                    clauses.append(f"{where}: {clause(here)}")
            if clauses:
                text.append(f"{arm} against {against}, {'; '.join(clauses)}.")
    levels = arm_means(report)
    if levels:
        best = max(levels, key=lambda arm: levels[arm])
        text.append(f"Of the arms that every backbone has, {best} has the best mean AUC ({levels[best]:.2f})")
        ceiling = report.resampler.about.get("best_auc")
        text[-1] += f"; the best possible is {100 * ceiling:.2f}." if ceiling is not None else "."
    text.append('("Gains" and "loses" mean a corrected p below .05; numbers are differences of AUC x 100.)')
    return " ".join(text)


def answer(report: CTRReport) -> list[str]:
    """The first method against base, over all rows and at both ends of the lengths, and the control."""
    methods = method_arms(report)
    if not methods:
        return ["No arm of this study is the method; the tables compare the arms that there are."]
    arm, found = methods[0], []
    family = report.main.family(method_tests(report, arm, BASE))

    def at(group: str, tested: Mapping[Contrast, Tested]) -> dict[str, Tested]:
        return {test.backbone: one for test, one in tested.items() if test.measure.bucket == group}

    if whole := at(WHOLE, family):
        found.append(f"Over all test rows {arm} against {BASE}, AUC x 100: {clause(whole)}.")
    groups = [group for group in report.resampler.groups if group != WHOLE and at(group, family)]
    if groups:
        parts = [f"lengths {group}: {clause(at(group, family))}" for group in (groups[0], groups[-1])]
        found.append(f"By true history length, the shortest and the longest: {'; '.join(parts)}.")
    control = at(WHOLE, report.main.family(method_tests(report, arm, CONTROL)))
    if control:
        found.append(f"Against the control {CONTROL}, over all rows: {clause(control)}.")
    return found or [f"{arm} has no finished runs with a counterpart in {BASE}."]


def gaps(report: CTRReport) -> list[str]:
    """What the study did not measure, a sentence each."""
    found = seed_gaps(report)
    if not any(CONTROL in report.main.arms(backbone) for backbone in report.main.backbones):
        found.append(f"No run of the control {CONTROL}, which the method has to beat.")
    if "best_auc" not in report.resampler.about:
        found.append("No best possible AUC: the true click probabilities of these rows are not known.")
    if not sweep_points(report):
        found.append("No AUC against the maximum length: no finished run is tagged sweep.")
    return found


def method_arms(report: CTRReport) -> list[str]:
    """The arms of the study that are the method."""
    return [arm for arm in METHODS if any(arm in report.main.arms(name) for name in report.main.backbones)]


def arm_means(report: CTRReport) -> dict[str, float]:
    """Mean AUC x 100 over all backbones, of the arms that all of them have."""
    means = {}
    for arm in report.main.arms(report.main.backbones[0]):
        values = [report.main.spread(Measure("auc"), backbone, arm) for backbone in report.main.backbones]
        known = [value.mean for value in values if value is not None]
        if len(known) == len(report.main.backbones):
            means[arm] = 100 * sum(known) / len(known)
    return means


def method_tests(report: CTRReport, arm: str, against: str, metric: str = "auc") -> list[Contrast]:
    """The tests of an arm against another, of every backbone that has both, over all rows and by length."""
    return [
        Contrast(Measure(metric, group), backbone, arm, against)
        for backbone in report.main.backbones
        for group in report.resampler.groups
        if arm in report.main.arms(backbone) and against in report.main.arms(backbone)
    ]


def _best_possible(report: CTRReport) -> Table:
    known = "best_auc" in report.resampler.about
    headers = ["length", "rows", "users", "click rate, %"]
    headers += ["best AUC x 100", "best logloss"] if known else []
    rows = []
    for group in report.resampler.groups:
        suffix = f"/{group}" if group else ""
        about = report.resampler.about
        click = report.resampler.clicks[group]
        row = [group_title(group), f"{about['samples' + suffix]:.0f}", f"{about['users' + suffix]:.0f}"]
        row.append(format_number(None if click is None else 100 * click, 1))
        if known:
            auc = about[f"best_auc{suffix}"]
            row.append(format_number(None if auc is None else 100 * auc))
            row.append(format_number(about[f"best_logloss{suffix}"], 4))
        rows.append(row)
    return Table(headers, rows)


def overview(report: CTRReport, arm: str) -> Table:
    """Differences of an arm to base, a row a backbone, a column a bucket; starred where significant."""
    family = report.main.family(method_tests(report, arm, BASE))
    rows = []
    for backbone in report.main.backbones:
        found = [
            family.get(Contrast(Measure("auc", group), backbone, arm, BASE))
            for group in report.resampler.groups
        ]
        if any(found):
            rows.append([backbone, *map(_starred, found)])
    return Table(["backbone", *map(group_title, report.resampler.groups)], rows)


def detail(report: CTRReport, arm: str) -> Table:
    """An arm and base with difference, interval and corrected p, a row a backbone and bucket."""
    family = report.main.family(method_tests(report, arm, BASE))
    rows = []
    for test in method_tests(report, arm, BASE):
        group, backbone, tested = test.measure.bucket, test.backbone, family.get(test)
        seeds = math.nan if tested is None else 100 * tested.difference.deviation
        base = report.main.spread(Measure("auc", group), backbone, BASE)
        own = report.main.spread(Measure("auc", group), backbone, arm)
        cells = [backbone if group == WHOLE else "", group_title(group), _spread(base), _spread(own)]
        rows.append([*cells, *_interval(tested), format_number(seeds)])
    headers = ["backbone", "length", BASE, arm, "difference", "95 % interval", "p (Holm)", "sd over seeds"]
    return Table(headers, rows, align="llrrrrrr")


def _whole(report: CTRReport, arm: str) -> Table:
    metrics = {"logloss": (1.0, 4), "gauc": (100.0, 2)}
    every = [test for metric in metrics for test in method_tests(report, arm, BASE, metric)]
    tests = [test for test in every if test.measure.bucket == WHOLE]
    family = report.main.family(tests)
    rows = []
    for test in tests:
        metric, backbone = test.measure.metric, test.backbone
        scale, digits = metrics[metric]
        levels = [report.main.spread(test.measure, backbone, which) for which in (BASE, arm)]
        spreads = [_spread(level, scale, digits) for level in levels]
        name = "gAUC x 100" if metric == "gauc" else metric
        rows.append([name, backbone, *spreads, *_interval(family.get(test), scale, digits)])
    headers = ["metric", "backbone", BASE, arm, "difference", "95 % interval", "p (Holm)"]
    return Table(headers, rows, align="llrrrrr")


def control_pairs(report: CTRReport) -> list[tuple[str, str, str]]:
    """Backbone, arm and base, of every arm that is neither the method nor base."""
    return [
        (backbone, arm, BASE)
        for backbone in report.main.backbones
        for arm in report.main.arms(backbone)
        if arm not in (BASE, *METHODS) and BASE in report.main.arms(backbone)
    ]


def pair_tests(report: CTRReport, pairs: Sequence[tuple[str, str, str]]) -> list[Contrast]:
    """The tests of pairs ``(backbone, arm, against)``, over all rows and by length."""
    return [
        Contrast(Measure("auc", group), backbone, arm, against)
        for backbone, arm, against in pairs
        for group in report.resampler.groups
    ]


def _against(report: CTRReport, pairs: Sequence[tuple[str, str, str]]) -> Table:
    """Rows ``(backbone, arm, against)``: the whole with interval and p, each bucket with a star."""
    groups = report.resampler.groups
    family = report.main.family(pair_tests(report, pairs))
    rows = []
    for backbone, arm, against in pairs:
        found = [family.get(Contrast(Measure("auc", group), backbone, arm, against)) for group in groups]
        level = _spread(report.main.spread(Measure("auc"), backbone, arm))
        rows.append([backbone, arm, level, *_interval(found[0]), *map(_starred, found[1:])])
    headers = ["backbone", "arm", "AUC x 100", "difference", "95 % interval", "p (Holm)", *groups[1:]]
    return Table(headers, rows, align="ll" + "r" * (len(headers) - 2))


def _cost(report: CTRReport, arm: str) -> Table:
    rows = []
    for backbone in report.main.backbones:
        if arm not in report.main.arms(backbone):
            continue
        runs = [report.main.of(backbone, which) for which in (BASE, arm)]
        cells = [backbone]
        for digits, values in (
            (0, [_mean([run.record.parameters for run in some]) for some in runs]),
            (3, [_mean([run.record.notes.get("milliseconds_per_sample") for run in some]) for some in runs]),
        ):
            before, after = values
            ratio = after / before if before and after is not None else None
            cells += [*(format_number(value, digits) for value in values), format_number(ratio, 3)]
        rows.append(cells)
    headers = ["backbone", "parameters, base", arm, "ratio", "ms per row, base", arm, "ratio"]
    return Table(headers, rows)


def _mean(values: Sequence[float | int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


Place = tuple[str, str, str, int]
"""Backbone, arm, group and maximum length."""


def sweep_points(report: CTRReport) -> dict[Place, Spread]:
    """AUC of the runs tagged ``sweep``, by backbone, arm, group and maximum length."""
    found: dict[Place, list[float]] = {}
    lengths = {_row(run): _max_length(run) for run in report.runs}
    for row in run_rows(report.frame):
        if row.tag.split(":")[0] != "sweep":
            continue
        for group in (WHOLE, *map(bucket_name, DEFAULT_BUCKETS)):
            value = row.metrics.get(Measure("auc", group))
            if value is not None:
                place = (row.backbone, row.arm, group, lengths[row[:4]])
                found.setdefault(place, []).append(value)
    return {place: spread(values) for place, values in found.items()}


def _row(run: Run) -> tuple[str, str, int, str]:
    return run.spec.backbone, run.spec.arm, run.spec.seed, run.spec.tag


def _max_length(run: Run) -> int:
    return int(run.spec.config["history"]["max_length"])


def _sweep(points: Mapping[Place, Spread]) -> Table:
    groups = list(dict.fromkeys(group for _, _, group, _ in points))
    rows = []
    for backbone, arm, length in sorted({(place[0], place[1], place[3]) for place in points}):
        found = [points.get((backbone, arm, group, length)) for group in groups]
        rows.append([backbone, arm, str(length), *map(_spread, found)])
    headers = ["backbone", "arm", "maximum length", *map(group_title, groups)]
    return Table(headers, rows, align="ll" + "r" * (1 + len(groups)))


def sections(report: CTRReport) -> list[tuple[str, Table]]:
    """Every table of a study under its title, the main ones first."""
    methods = method_arms(report)
    found = [(f"{arm} minus base, AUC x 100", overview(report, arm)) for arm in methods]
    found.append(("Test rows by history length", _best_possible(report)))
    for arm in methods:
        found.append((f"{arm} against base, AUC x 100", detail(report, arm)))
        found.append((f"{arm} against base, logloss and gAUC over all rows", _whole(report, arm)))
    if pairs := control_pairs(report):
        found.append(("Controls and ablations against base, AUC x 100", _against(report, pairs)))
    for arm in methods:
        pairs = [
            (backbone, arm, CONTROL)
            for backbone in report.main.backbones
            if {arm, CONTROL} <= set(report.main.arms(backbone))
        ]
        if pairs:
            found.append((f"{arm} against {CONTROL}, AUC x 100", _against(report, pairs)))
    for arm in methods:
        found.append((f"Parameters and time per row, base and {arm}", _cost(report, arm)))
    if points := sweep_points(report):
        found.append(("AUC x 100 against the maximum length", _sweep(points)))
    return found


def facts(report: CTRReport) -> dict[str, str]:
    """What stands at the head of the table."""
    return report.facts(
        data=report.prepared.words,
        measured="AUC x 100 on the test rows, by TRUE history length",
        units="users",
        family="all tests of its table",
    )


def study_table(report: CTRReport) -> str:
    """The whole table.md of a study."""
    lines = [
        *report.head_lines("CTR study", facts(report)),
        "",
        "## What this shows",
        "",
        shows(report),
        "",
    ]
    for title, table in sections(report):
        lines.extend([f"## {title}", "", table.markdown()])
    return "\n".join(lines)
