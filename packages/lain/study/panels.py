"""What the plots of a click-through study show, for pictures and for the page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from common.metrics.ctr import DEFAULT_BUCKETS, bucket_name
from common.report.panels import Panel, Series
from common.stats.bootstrap import Difference
from common.study.collect import Measure, Run
from common.study.compare import Contrast
from lain.study.table import BASE, METHODS, CTRReport, arm_means, group_title, sweep_points


def auc_panels(report: CTRReport) -> tuple[list[Panel], list[Panel]]:
    """The AUC of each arm, and its difference to base; the arms that every backbone has."""
    shared = [arm for arm in report.main.arms(report.main.backbones[0]) if arm in arm_means(report)]
    above, below = [], []
    for backbone in report.main.backbones:
        levels, differences = [], []
        for colour, arm in enumerate(shared):
            found = [
                report.main.level(Measure("auc", group), backbone, arm) for group in report.resampler.groups
            ]
            levels.append(_bars(arm, report.resampler.groups, found, colour))
            if arm != BASE and BASE in shared:
                found = [
                    report.main.difference(Contrast(Measure("auc", group), backbone, arm, BASE))
                    for group in report.resampler.groups
                ]
                differences.append(_bars(arm, report.resampler.groups, found, colour))
        above.append(Panel(backbone.upper(), levels, "true history length", "AUC x 100"))
        if differences:
            title = f"{backbone.upper()}, minus base"
            below.append(Panel(title, differences, "true history length", "difference", zero=True))
    return above, below


def _bars(arm: str, groups: Sequence[str], found: Sequence[Difference | None], colour: int) -> Series:
    return Series(
        arm,
        [group_title(group) for group in groups],
        [100 * one.mean if one else math.nan for one in found],
        [100 * one.low if one else math.nan for one in found],
        [100 * one.high if one else math.nan for one in found],
        colour=colour,
    )


def sweep_panels(report: CTRReport) -> list[Panel]:
    """AUC against the maximum length; none where no run was tagged ``sweep``."""
    points = sweep_points(report)
    backbones = list(dict.fromkeys(place[0] for place in points))
    arms = list(dict.fromkeys(place[1] for place in points))
    colours = {arm: place for place, arm in enumerate(arms)}
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
    return panels


def attention_panels(report: CTRReport) -> list[Panel]:
    """Gini of the attention and what prompts hold of it; none where no run measured it."""
    backbones = [
        name
        for name in report.main.backbones
        if any(_attention(report, name, arm) for arm in (BASE, *METHODS))
    ]
    panels = []
    for key, title, arms in (
        ("gini", "Gini of the attention", (BASE, *METHODS)),
        ("prompt_mass", "attention on the prompts", METHODS),
    ):
        for backbone in backbones:
            series = []
            for arm in arms:
                for place, (branch, buckets) in enumerate(_attention(report, backbone, arm).items()):
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
    return panels


Attention = dict[str, dict[str, dict[str, float | None]]]


def _attention(report: CTRReport, backbone: str, arm: str) -> Attention:
    return mean_attention(report.main.of(backbone, arm))


def mean_attention(runs: Sequence[Run]) -> Attention:
    """Mean over runs of the attention measures: branch, bucket (rising, not overlapping), measure."""
    order = [name for name in map(bucket_name, DEFAULT_BUCKETS) if name != "0-100"]
    files = [run.folder / "attention.json" for run in runs]
    measured: list[dict[str, Any]] = [json.loads(file.read_text()) for file in files if file.is_file()]
    measured = [one for one in measured if one]
    out: Attention = {}
    if not measured:
        return out
    for branch, buckets in measured[0].items():
        for bucket in (name for name in order if name in buckets):
            for measure in buckets[bucket]:
                found = [_dig(one, branch, bucket, measure) for one in measured]
                known = [value for value in found if value is not None]
                mean = sum(known) / len(known) if known else None
                out.setdefault(branch, {}).setdefault(bucket, {})[measure] = mean
    return out


def _dig(tree: Mapping[str, Any], *keys: str) -> float | None:
    value: Any = tree
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return None if value is None else float(value)
