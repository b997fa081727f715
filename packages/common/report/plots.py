"""Numbers to plots; apart from tables.py, since what only prints a table need not load matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common.files import atomic_write
from common.report.panels import Panel as Panel
from common.report.panels import Series as Series


def line_plot(panels: Sequence[Panel], *, title: str = "", columns: int = 3, log_x: bool = False) -> Figure:
    """Panels of lines with points and, where given, bands.

    Args:
        panels: The plots, row by row.
        title: Title over all panels.
        columns: Panels in a row, at most.
        log_x: Logarithmic horizontal axis, with a tick at every point.
    """
    figure, axes = _grid(len(panels), columns, title)
    for panel, axis in zip(panels, axes, strict=True):
        for index, series in enumerate(panel.series):
            colour = f"C{(index if series.colour is None else series.colour) % 10}"
            style = "--" if series.dashed else "-"
            axis.plot(series.x, series.y, style, marker="o", markersize=3.5, color=colour, label=series.name)
            if series.low is not None and series.high is not None:
                axis.fill_between(series.x, series.low, series.high, color=colour, alpha=0.15, linewidth=0)
        if log_x:
            ticks = sorted({float(x) for series in panel.series for x in series.x})
            axis.set_xscale("log")
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
        _style(axis, panel)
    _add_legend(figure, axes)
    return figure


def bar_plot(panels: Sequence[Panel], *, title: str = "", columns: int = 3, width: float = 4.6) -> Figure:
    """Panels of grouped bars with, where given, error bars.

    The vertical axis starts near the data unless the panel says ``zero``.

    Args:
        panels: The plots, row by row; the series of a panel share their ``x``.
        title: Title over all panels.
        columns: Panels in a row, at most.
        width: Width of a panel, inches.
    """
    figure, axes = _grid(len(panels), columns, title, width)
    for panel, axis in zip(panels, axes, strict=True):
        bar = 0.8 / max(1, len(panel.series))
        ends: list[float] = []
        for index, series in enumerate(panel.series):
            left = [place - 0.4 + (index + 0.5) * bar for place in range(len(series.x))]
            low, high = series.low or series.y, series.high or series.y
            error = [
                [max(0.0, y - a) for y, a in zip(series.y, low, strict=True)],
                [max(0.0, b - y) for y, b in zip(series.y, high, strict=True)],
            ]
            colour = f"C{(index if series.colour is None else series.colour) % 10}"
            axis.bar(
                left,
                series.y,
                bar,
                color=colour,
                label=series.name,
                yerr=error if series.low is not None else None,
                capsize=2,
                error_kw={"linewidth": 0.8},
            )
            axis.set_xticks(range(len(series.x)), [str(x) for x in series.x])
            ends += [value for value in (*low, *high) if math.isfinite(value)]
        if ends and not panel.zero:
            margin = 0.08 * (max(ends) - min(ends)) or 1.0
            axis.set_ylim(min(ends) - margin, max(ends) + margin)
        _style(axis, panel)
    _add_legend(figure, axes)
    return figure


def _grid(count: int, columns: int, title: str, width: float = 4.6) -> tuple[Figure, list[Axes]]:
    if count < 1:
        raise ValueError("a figure needs at least one panel")
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, 3.4 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(count)]


def _style(axis: Axes, panel: Panel) -> None:
    axis.set_title(panel.title, fontsize=10)
    axis.set_xlabel(panel.x_label, fontsize=9)
    axis.set_ylabel(panel.y_label, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(axis="y", alpha=0.3, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    if panel.zero:
        low, high = axis.get_ylim()
        axis.set_ylim(min(low, 0.0), max(high, 0.0))
        axis.axhline(0, color="0.4", linewidth=0.8)


def _add_legend(figure: Figure, axes: Sequence[Axes]) -> None:
    named: dict[str, Artist] = {}
    for axis in axes:
        handles, names = axis.get_legend_handles_labels()
        named.update(zip(names, handles, strict=True))
    if len(named) > 1:
        place: Literal["outside lower center"] = "outside lower center"
        figure.legend(
            named.values(), named.keys(), loc=place, ncols=6, fontsize=8, frameon=False, handlelength=3
        )


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all.

    Args:
        figure: The figure.
        path: Where to write.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    atomic_write(path, buffer.getvalue())
