"""The plots of a retrieval study, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from matplotlib.figure import Figure

from causalneg.study.panels import ndcg_panels, similarity_panels, training_panels
from causalneg.study.table import RetrievalReport
from common.report.plots import Panel, bar_plot, line_plot


def ndcg(report: RetrievalReport) -> Figure:
    """nDCG@10 by arm with intervals, clean and mixed."""
    panels = _shortened(ndcg_panels(report))
    return bar_plot(panels, title="nDCG@10 by arm, 95 % intervals over queries", columns=1, width=12)


def similarity(report: RetrievalReport) -> Figure | None:
    """Similarity to the query by source, the first seed of each arm; None where nothing was diagnosed."""
    panels = similarity_panels(report)
    return line_plot(panels, title="Similarity to the query by source, held-out queries") if panels else None


def source_auc(report: RetrievalReport) -> Figure | None:
    """Style shift and source AUC over training; None where they were not measured."""
    panels = training_panels(report, ["style_shift", "source_auc"])
    return line_plot(panels, title="Source over training, held-out queries") if panels else None


def _shortened(panels: Sequence[Panel]) -> list[Panel]:
    """Panels whose long names of arms are broken into lines."""
    return [
        replace(panel, series=[replace(one, x=[_lines(str(x)) for x in one.x]) for one in panel.series])
        for panel in panels
    ]


def _lines(name: str) -> str:
    return name.replace("+", "+\n").replace("-", "-\n")
