"""What the plots of a retrieval study show, for pictures and for the page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from causalneg.study.table import NDCG, VIEWS, Arms, RetrievalReport, arms_of
from common.report.panels import Panel, Series
from common.study.collect import Measure, mean_history

OVER_TRAINING = {
    "source_auc": "source AUC (score)",
    "style_shift": "style shift",
    "gradient_share": "gradient share, generated over mined",
}
"""What is measured on held-out queries while training, by its name."""


def ndcg_panels(report: RetrievalReport) -> list[Panel]:
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
                    series.append(Series(title, arms.names, y, low, high))
            panels.append(Panel(_titled(split, arms, parts), series, y_label="nDCG@10 x 100"))
    return panels


def similarity_panels(report: RetrievalReport) -> list[Panel]:
    """Similarity to the query by source, the first seed of each arm; none where nothing was diagnosed."""
    parts = arms_of(report)
    return [panel for arms in parts for panel in _histogram_panels(arms, parts)]


def training_panels(report: RetrievalReport, names: Sequence[str]) -> list[Panel]:
    """Figures over training, on held-out queries, mean over seeds; none where they were not measured.

    Args:
        report: The study.
        names: Which, keys of :data:`OVER_TRAINING`.
    """
    parts = arms_of(report)
    return [panel for arms in parts for panel in _over_training(arms, parts, names)]


def _titled(title: str, arms: Arms, parts: Sequence[Arms]) -> str:
    return f"{title}, {arms.encoder}" if len(parts) > 1 else title


def _histogram_panels(arms: Arms, parts: Sequence[Arms]) -> list[Panel]:
    panels = []
    for arm in arms.names:
        path = arms.of(arm)[0].folder / "diagnosis.json"
        if path.is_file():
            panel = histogram_panel(_titled(arm, arms, parts), json.loads(path.read_text()))
            panels += [panel] if panel.series else []
    return panels


def histogram_panel(title: str, diagnosis: Mapping[str, Any]) -> Panel:
    """Share of texts by their similarity to the query, a line a source, from a diagnosis.json."""
    found = diagnosis["trained"]["histogram"]
    edges = np.array(found["edges"])
    middle = ((edges[1:] + edges[:-1]) / 2).tolist()
    series = []
    for colour, source in enumerate(("positive", "mined", "generated")):
        counts = np.array(found["counts"].get(source, []), dtype=np.float64)
        if counts.sum():
            series.append(Series(source, middle, (counts / counts.sum()).tolist(), colour=colour))
    return Panel(title, series, x_label="cosine", y_label="share")


def _over_training(arms: Arms, parts: Sequence[Arms], names: Sequence[str]) -> list[Panel]:
    panels = []
    for name in names:
        series = []
        for place, arm in enumerate(arms.names):
            steps, means = mean_history(arms.of(arm), f"probe/{name}")
            if steps:
                series.append(Series(arm, steps, means, dashed=place >= 10, colour=place))
        if series:
            panels.append(Panel(_titled(OVER_TRAINING[name], arms, parts), series, x_label="step"))
    return panels
