"""The plots of a retrieval study."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from causalneg.study.table import NDCG, VIEWS, Arms, RetrievalReport, arms_of
from common.report.plots import Panel, Series, bar_plot, line_plot
from common.study.collect import Measure


def ndcg(report: RetrievalReport) -> Figure:
    """nDCG@10 by arm with intervals, clean and mixed."""
    parts = arms_of(report)
    panels = []
    for arms in parts:
        for split in arms.splits:
            series = []
            for view, title in VIEWS.items():
                levels = [arms.level(arm, Measure(NDCG, view, split)) for arm in arms.names]
                if any(level is not None for level in levels):
                    y, low, high = (
                        [100 * getattr(level, part) if level else math.nan for level in levels]
                        for part in ("mean", "low", "high")
                    )
                    series.append(Series(title, _short(arms.names), y, low, high))
            panels.append(Panel(_titled(split, arms, parts), series, y_label="nDCG@10 x 100"))
    return bar_plot(panels, title="nDCG@10 by arm, 95 % intervals over queries", columns=1, width=12)


def similarity(report: RetrievalReport) -> Figure | None:
    """Similarity to the query by source, the first seed of each arm; None where nothing was diagnosed."""
    parts = arms_of(report)
    panels = [panel for arms in parts for panel in _histogram_panels(arms, parts)]
    title = "Similarity to the query by source, held-out queries"
    return line_plot(panels, title=title) if panels else None


def source_auc(report: RetrievalReport) -> Figure | None:
    """Style shift and source AUC over training; None where they were not measured."""
    parts = arms_of(report)
    panels = [panel for arms in parts for panel in _over_training(arms, parts)]
    return line_plot(panels, title="Source over training, held-out queries") if panels else None


def _titled(title: str, arms: Arms, parts: Sequence[Arms]) -> str:
    return f"{title}, {arms.encoder}" if len(parts) > 1 else title


def _short(names: Sequence[str]) -> list[str]:
    return [name.replace("+", "+\n").replace("-", "-\n") for name in names]


def _histogram_panels(arms: Arms, parts: Sequence[Arms]) -> list[Panel]:
    panels = []
    for arm in arms.names:
        path = arms.of(arm)[0].folder / "diagnosis.json"
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
            panels.append(Panel(_titled(arm, arms, parts), series, x_label="cosine", y_label="share"))
    return panels


def _over_training(arms: Arms, parts: Sequence[Arms]) -> list[Panel]:
    panels = []
    for name, title in (("style_shift", "style shift"), ("source_auc", "source AUC (score)")):
        series = []
        for place, arm in enumerate(arms.names):
            found = [run.history(f"probe/{name}") for run in arms.of(arm)]
            if found and all(values for _, values in found):
                length = min(len(values) for _, values in found)
                mean = np.mean([values[:length] for _, values in found], axis=0).tolist()
                series.append(Series(arm, found[0][0][:length], mean, dashed=place >= 10))
        if series:
            panels.append(Panel(_titled(title, arms, parts), series, x_label="step"))
    return panels
