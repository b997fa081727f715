"""The plots of a click-through study, as pictures."""

from __future__ import annotations

from matplotlib.figure import Figure

from common.report.plots import bar_plot, line_plot
from lain.study.panels import attention_panels, auc_panels, sweep_panels
from lain.study.table import CTRReport


def auc_by_bucket(report: CTRReport) -> Figure:
    """Above the AUC of each arm, below its difference to base; the arms that every backbone has."""
    above, below = auc_panels(report)
    title = "AUC by true history length, 95 % intervals over users"
    return bar_plot([*above, *below], title=title, columns=len(above))


def length_sweep(report: CTRReport) -> Figure | None:
    """AUC against the maximum length; None where no run was tagged ``sweep``."""
    panels = sweep_panels(report)
    title = "AUC by true history length, ± standard deviation over seeds"
    return line_plot(panels, title=title, log_x=True) if panels else None


def attention(report: CTRReport) -> Figure | None:
    """Gini of the attention and what prompts hold of it; None where no run measured it."""
    panels = attention_panels(report)
    columns = len(panels) // 2  # two measures of each backbone
    return line_plot(panels, title="Attention by true history length", columns=columns) if panels else None
