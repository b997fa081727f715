"""A study's comparison as Markdown tables, a paragraph made from the numbers by rule, and PNG plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.metrics.ctr import DEFAULT_BUCKETS, bucket_name
from common.report.plots import Panel, Series, bar_plot, line_plot
from common.report.tables import (
    MISSING,
    format_difference,
    format_number,
    format_p,
    format_seconds,
    markdown_table,
)
from common.stats.paired import Difference, Spread, spread
from lain.study.comparison import WHOLE, Comparison, Run, Test, Tested

BASE = "base"
METHODS = ("lain", "lain-plus")
"""Arms that are the method; the others are controls and ablations."""
CONTROL = "temperature-loglength"
"""The strongest simple control: what the method has to beat."""


@dataclass(frozen=True)
class Head:
    """What the head of a table says.

    Args:
        study: Name of the study.
        description: What it is, in a sentence.
        command: The command that makes it again.
        data: The data set: name, fingerprint, rows.
        planned: Number of runs in the plan.
        workers: Number of runs at a time.
    """

    study: str
    description: str
    command: str
    data: str
    planned: int
    workers: int


def _arms(comparison: Comparison, backbone: str, *, without: Sequence[str]) -> list[str]:
    return [arm for arm in comparison.arms(backbone) if arm not in without]


def _group(group: str) -> str:
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


def _clause(tested: Mapping[str, Tested]) -> str:
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


def shows(comparison: Comparison) -> str:
    """One paragraph about who gains and who loses, made from the corrected tests by rule."""
    text = []
    for arm in _methods(comparison):
        for against in (BASE, CONTROL):
            family = comparison.family(_method_tests(comparison, arm, against))
            clauses = []
            for group in comparison.groups:
                here = {test[2]: one for test, one in family.items() if test[1] == group}
                if here:
                    where = "all rows" if group == WHOLE else f"lengths {group}"
                    clauses.append(f"{where}: {_clause(here)}")
            if clauses:
                text.append(f"{arm} against {against}, {'; '.join(clauses)}.")
    levels = _arm_means(comparison)
    if levels:
        best = max(levels, key=lambda arm: levels[arm])
        text.append(f"Of the arms that every backbone has, {best} has the best mean AUC ({levels[best]:.2f})")
        ceiling = comparison.about.get("best_auc")
        text[-1] += f"; the best possible is {100 * ceiling:.2f}." if ceiling is not None else "."
    text.append('("Gains" and "loses" mean a corrected p below .05; numbers are differences of AUC x 100.)')
    return " ".join(text)


def _methods(comparison: Comparison) -> list[str]:
    """The arms of the study that are the method."""
    return [arm for arm in METHODS if any(arm in comparison.arms(name) for name in comparison.backbones)]


def _arm_means(comparison: Comparison) -> dict[str, float]:
    """Mean AUC x 100 over all backbones, of the arms that all of them have."""
    means = {}
    for arm in comparison.arms(comparison.backbones[0]):
        values = [comparison.spread("auc", WHOLE, backbone, arm) for backbone in comparison.backbones]
        known = [value.mean for value in values if value is not None]
        if len(known) == len(comparison.backbones):
            means[arm] = 100 * sum(known) / len(known)
    return means


def _method_tests(comparison: Comparison, arm: str, against: str, metric: str = "auc") -> list[Test]:
    return [
        (metric, group, backbone, arm, against)
        for backbone in comparison.backbones
        for group in comparison.groups
        if arm in comparison.arms(backbone) and against in comparison.arms(backbone)
    ]


def _best_possible(comparison: Comparison) -> str:
    known = "best_auc" in comparison.about
    headers = ["length", "rows", "users", "click rate, %"]
    headers += ["best AUC x 100", "best logloss"] if known else []
    rows = []
    for group in comparison.groups:
        suffix = f"/{group}" if group else ""
        about = comparison.about
        click = comparison.clicks[group]
        row = [_group(group), f"{about['samples' + suffix]:.0f}", f"{about['users' + suffix]:.0f}"]
        row.append(format_number(None if click is None else 100 * click, 1))
        if known:
            auc = about[f"best_auc{suffix}"]
            row.append(format_number(None if auc is None else 100 * auc))
            row.append(format_number(about[f"best_logloss{suffix}"], 4))
        rows.append(row)
    return markdown_table(headers, rows)


def _overview(comparison: Comparison, arm: str) -> str:
    family = comparison.family(_method_tests(comparison, arm, BASE))
    rows = []
    for backbone in comparison.backbones:
        found = [family.get(("auc", group, backbone, arm, BASE)) for group in comparison.groups]
        if any(found):
            rows.append([backbone, *map(_starred, found)])
    return markdown_table(["backbone", *map(_group, comparison.groups)], rows)


def _detail(comparison: Comparison, arm: str) -> str:
    family = comparison.family(_method_tests(comparison, arm, BASE))
    rows = []
    for _, group, backbone, _, _ in _method_tests(comparison, arm, BASE):
        tested = family.get(("auc", group, backbone, arm, BASE))
        seeds = math.nan if tested is None else 100 * tested.difference.deviation
        base = comparison.spread("auc", group, backbone, BASE)
        ours = comparison.spread("auc", group, backbone, arm)
        cells = [backbone if group == WHOLE else "", _group(group), _spread(base), _spread(ours)]
        rows.append([*cells, *_interval(tested), format_number(seeds)])
    headers = ["backbone", "length", BASE, arm, "difference", "95 % interval", "p (Holm)", "sd over seeds"]
    return markdown_table(headers, rows, align="llrrrrrr")


def _whole(comparison: Comparison, arm: str) -> str:
    metrics = {"logloss": (1.0, 4), "gauc": (100.0, 2)}
    every = [test for metric in metrics for test in _method_tests(comparison, arm, BASE, metric)]
    tests = [test for test in every if test[1] == WHOLE]
    family = comparison.family(tests)
    rows = []
    for test in tests:
        metric, group, backbone, _, _ = test
        scale, digits = metrics[metric]
        levels = [comparison.spread(metric, group, backbone, which) for which in (BASE, arm)]
        spreads = [_spread(level, scale, digits) for level in levels]
        name = "gAUC x 100" if metric == "gauc" else metric
        rows.append([name, backbone, *spreads, *_interval(family.get(test), scale, digits)])
    headers = ["metric", "backbone", BASE, arm, "difference", "95 % interval", "p (Holm)"]
    return markdown_table(headers, rows, align="llrrrrr")


def _against(comparison: Comparison, pairs: Sequence[tuple[str, str, str]]) -> str:
    """Rows ``(backbone, arm, against)``: the whole with interval and p, each bucket with a star."""
    groups = comparison.groups
    family = comparison.family(
        [("auc", group, backbone, arm, against) for backbone, arm, against in pairs for group in groups]
    )
    rows = []
    for backbone, arm, against in pairs:
        found = [family.get(("auc", group, backbone, arm, against)) for group in groups]
        level = _spread(comparison.spread("auc", WHOLE, backbone, arm))
        rows.append([backbone, arm, level, *_interval(found[0]), *map(_starred, found[1:])])
    headers = ["backbone", "arm", "AUC x 100", "difference", "95 % interval", "p (Holm)", *groups[1:]]
    return markdown_table(headers, rows, align="ll" + "r" * (len(headers) - 2))


def _cost(comparison: Comparison, arm: str) -> str:
    rows = []
    for backbone in comparison.backbones:
        if arm not in comparison.arms(backbone):
            continue
        cells = [backbone]
        for name, digits in (("parameters", 0), ("milliseconds", 3)):
            pair = [_average(comparison.of(backbone, which), name) for which in (BASE, arm)]
            ratio = pair[1] / pair[0] if pair[0] and pair[1] is not None else None
            cells += [*(format_number(value, digits) for value in pair), format_number(ratio, 3)]
        rows.append(cells)
    headers = ["backbone", "parameters, base", arm, "ratio", "ms per row, base", arm, "ratio"]
    return markdown_table(headers, rows)


def _average(runs: Sequence[Run], name: str) -> float | None:
    values = [value for run in runs if (value := getattr(run, name)) is not None]
    return sum(values) / len(values) if values else None


def _max_length(run: Run) -> int:
    return int(run.spec.config["history"]["max_length"])


def sweep_points(runs: Sequence[Run]) -> dict[tuple[str, str, str, int], Spread]:
    """AUC of the runs tagged ``sweep``, by backbone, arm, group and maximum length."""
    found: dict[tuple[str, str, str, int], list[float]] = {}
    for run in runs:
        if run.spec.tag.split(":")[0] != "sweep":
            continue
        for group in (WHOLE, *map(bucket_name, DEFAULT_BUCKETS)):
            value = run.metrics.get(f"auc/{group}" if group else "auc")
            if value is not None:
                place = (run.spec.backbone, run.spec.arm, group, _max_length(run))
                found.setdefault(place, []).append(value)
    return {place: spread(values) for place, values in found.items()}


def _sweep(points: Mapping[tuple[str, str, str, int], Spread]) -> str:
    groups = list(dict.fromkeys(group for _, _, group, _ in points))
    rows = []
    for backbone, arm, length in sorted({(place[0], place[1], place[3]) for place in points}):
        found = [points.get((backbone, arm, group, length)) for group in groups]
        rows.append([backbone, arm, str(length), *map(_spread, found)])
    headers = ["backbone", "arm", "maximum length", *map(_group, groups)]
    return markdown_table(headers, rows, align="ll" + "r" * (1 + len(groups)))


def _machine(hardware: Mapping[str, Any]) -> str:
    gpus = list(hardware.get("gpu") or [])
    parts = [
        f"{hardware.get('cpu', 'processor not recorded')}",
        f"{hardware.get('cores', '?')} cores",
        f"{hardware.get('threads', '?')} torch threads a run",
        *gpus,
    ]
    if memory := hardware.get("memory"):
        parts.append(f"{memory / 2**30:.0f} GiB")
    return ", ".join(parts)


def study_table(head: Head, comparison: Comparison, runs: Sequence[Run]) -> str:
    """The whole table.md of a study.

    Args:
        head: What was run.
        comparison: The arms against each other.
        runs: All finished runs, sweeps too.
    """
    seeds = sorted({run.spec.seed for run in comparison.runs})
    trained = {run.folder: run.seconds for run in runs}
    done = len({run.spec.key for run in runs})
    methods = _methods(comparison)
    lines = [
        f"# CTR study: {head.study}",
        "",
        head.description,
        "",
        f"- command: `{head.command}`",
        f"- data: {head.data}",
        f"- runs: {done} of {head.planned}, seeds {', '.join(map(str, seeds))}; "
        f"{format_seconds(sum(trained.values()))} of training and testing in all, {head.workers} at a time",
        f"- hardware: {_machine(runs[0].hardware)}",
        "- AUC x 100 on the test rows, by TRUE history length; ± is the standard deviation over seeds; "
        f"intervals: {comparison.resamples} resamples of users, seeds pooled; p: two-sided, corrected after "
        "Holm over all tests of its table; * is a corrected p below .05",
        "",
        "## What this shows",
        "",
        shows(comparison),
        "",
    ]

    def section(title: str, table: str) -> None:
        lines.extend([f"## {title}", "", table])

    for arm in methods:
        section(f"{arm} minus base, AUC x 100", _overview(comparison, arm))
    section("Test rows by history length", _best_possible(comparison))
    for arm in methods:
        section(f"{arm} against base, AUC x 100", _detail(comparison, arm))
        section(f"{arm} against base, logloss and gAUC over all rows", _whole(comparison, arm))
    pairs = [
        (backbone, arm, BASE)
        for backbone in comparison.backbones
        for arm in _arms(comparison, backbone, without=(BASE, *METHODS))
        if BASE in comparison.arms(backbone)
    ]
    if pairs:
        section("Controls and ablations against base, AUC x 100", _against(comparison, pairs))
    for arm in methods:
        pairs = [
            (backbone, arm, CONTROL)
            for backbone in comparison.backbones
            if {arm, CONTROL} <= set(comparison.arms(backbone))
        ]
        if pairs:
            section(f"{arm} against {CONTROL}, AUC x 100", _against(comparison, pairs))
    for arm in methods:
        section(f"Parameters and time per row, base and {arm}", _cost(comparison, arm))
    if points := sweep_points(runs):
        section("AUC x 100 against the maximum length", _sweep(points))
    return "\n".join(lines)


def study_plots(comparison: Comparison, runs: Sequence[Run], out: Path) -> list[Path]:
    """Draw what the runs have data for.

    Args:
        comparison: The arms against each other.
        runs: All finished runs, sweeps too.
        out: Folder of the plots.

    Returns:
        ``auc_by_bucket.png``, ``length_sweep.png``, ``attention.png``: those that were written.
    """
    written = [_plot_buckets(comparison, out / "auc_by_bucket.png")]
    if points := sweep_points(runs):
        written.append(_plot_sweep(points, out / "length_sweep.png"))
    if any(run.attention for run in comparison.runs):
        written.append(_plot_attention(comparison, out / "attention.png"))
    return written


def _palette(arms: Sequence[str]) -> dict[str, int]:
    return {arm: place for place, arm in enumerate(arms)}


def _plot_buckets(comparison: Comparison, path: Path) -> Path:
    """Above the AUC of each arm, below its difference to base; the arms that every backbone has."""
    shared = [arm for arm in comparison.arms(comparison.backbones[0]) if arm in _arm_means(comparison)]
    above, below = [], []
    for backbone in comparison.backbones:
        levels, differences = [], []
        for colour, arm in enumerate(shared):
            found = [comparison.level("auc", group, backbone, arm) for group in comparison.groups]
            levels.append(_bars(arm, comparison.groups, found, colour))
            if arm != BASE and BASE in shared:
                found = [
                    comparison.difference("auc", group, backbone, arm, BASE) for group in comparison.groups
                ]
                differences.append(_bars(arm, comparison.groups, found, colour))
        above.append(Panel(backbone.upper(), levels, "true history length", "AUC x 100"))
        if differences:
            title = f"{backbone.upper()}, minus base"
            below.append(Panel(title, differences, "true history length", "difference", zero=True))
    title = "AUC by true history length, 95 % intervals over users"
    bar_plot(path, [*above, *below], title=title, columns=len(above))
    return path


def _bars(arm: str, groups: Sequence[str], found: Sequence[Difference | None], colour: int) -> Series:
    return Series(
        arm,
        [_group(group) for group in groups],
        [100 * one.mean if one else math.nan for one in found],
        [100 * one.low if one else math.nan for one in found],
        [100 * one.high if one else math.nan for one in found],
        colour=colour,
    )


def _plot_sweep(points: Mapping[tuple[str, str, str, int], Spread], path: Path) -> Path:
    backbones = list(dict.fromkeys(place[0] for place in points))
    arms = list(dict.fromkeys(place[1] for place in points))
    colours = _palette(arms)
    panels = []
    for backbone in backbones:
        for group in dict.fromkeys(place[2] for place in points):
            series = []
            for arm in arms:
                lengths = sorted(place[3] for place in points if place[:3] == (backbone, arm, group))
                found = [points[(backbone, arm, group, length)] for length in lengths]
                error = [0.0 if math.isnan(one.deviation) else one.deviation for one in found]
                series.append(
                    Series(
                        arm,
                        lengths,
                        [100 * one.mean for one in found],
                        [100 * (one.mean - e) for one, e in zip(found, error, strict=True)],
                        [100 * (one.mean + e) for one, e in zip(found, error, strict=True)],
                        colour=colours[arm],
                    )
                )
            title = f"{backbone.upper()}, lengths {group}" if group else f"{backbone.upper()}, all rows"
            panels.append(Panel(title, series, "maximum length", "AUC x 100"))
    line_plot(path, panels, title="AUC by true history length, ± standard deviation over seeds", log_x=True)
    return path


def _plot_attention(comparison: Comparison, path: Path) -> Path:
    backbones = [
        name
        for name in comparison.backbones
        if any(_attention(comparison, name, arm) for arm in (BASE, *METHODS))
    ]
    panels = []
    for key, title, arms in (
        ("gini", "Gini of the attention", (BASE, *METHODS)),
        ("prompt_mass", "attention on the prompts", METHODS),
    ):
        for backbone in backbones:
            series = []
            for arm in arms:
                for place, (branch, buckets) in enumerate(_attention(comparison, backbone, arm).items()):
                    values = {name: one[key] for name, one in buckets.items() if key in one}
                    colour = (BASE, *METHODS).index(arm)
                    series.append(
                        Series(
                            f"{arm}, {branch}",
                            list(values),
                            [math.nan if value is None else value for value in values.values()],
                            dashed=place > 0,
                            colour=colour,
                        )
                    )
            panels.append(Panel(f"{backbone.upper()}: {title}", series, "true history length", zero=True))
    line_plot(path, panels, title="Attention by true history length", columns=max(1, len(backbones)))
    return path


Attention = dict[str, dict[str, dict[str, float | None]]]


def _attention(comparison: Comparison, backbone: str, arm: str) -> Attention:
    """Mean over seeds of the attention measures: branch, bucket (rising, not overlapping), measure."""
    order = [name for name in map(bucket_name, DEFAULT_BUCKETS) if name != "0-100"]
    runs = [run for run in comparison.of(backbone, arm) if run.attention]
    out: Attention = {}
    if not runs:
        return out
    for branch, buckets in runs[0].attention.items():
        for bucket in (name for name in order if name in buckets):
            for measure in buckets[bucket]:
                found = [_dig(run.attention, branch, bucket, measure) for run in runs]
                known = [value for value in found if value is not None]
                mean = sum(known) / len(known) if known else None
                out.setdefault(branch, {}).setdefault(bucket, {})[measure] = mean
    return out


def _dig(tree: Mapping[str, Any], *keys: str) -> float | None:
    value: Any = tree
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return None if value is None else float(value)
