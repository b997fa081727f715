"""Numbers to Markdown tables and PNG plots. Pure helpers that know nothing of a method."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common.files import atomic_write

MISSING = "n/a"


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]], align: str = "") -> str:
    """A pipe table, cells padded so that it reads well as plain text too.

    Args:
        headers: Column names.
        rows: Cells; every row as long as the headers.
        align: One letter a column, ``l`` or ``r``; by default the first column left, the others right.

    Raises:
        ValueError: A row or ``align`` is not as long as the headers.
    """
    align = align or "l" + "r" * (len(headers) - 1)
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (headers, *rows)]
    for row in cells:
        if len(row) != len(headers):
            raise ValueError(f"a table with {len(headers)} columns got a row of {len(row)}: {row}")
    if len(align) != len(headers):
        raise ValueError(f"a table with {len(headers)} columns got alignment {align!r}")
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(headers))]
    lines = [
        " | ".join(
            cell.ljust(width) if side == "l" else cell.rjust(width)
            for cell, width, side in zip(row, widths, align, strict=True)
        )
        for row in cells
    ]
    rule = " | ".join(
        "-" * width if side == "l" else "-" * (width - 1) + ":"
        for width, side in zip(widths, align, strict=True)
    )
    return "\n".join(f"| {line} |" for line in (lines[0], rule, *lines[1:])) + "\n"


def format_number(value: float | None, digits: int = 2) -> str:
    """A number with fixed digits, or ``n/a`` where there is none."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def format_p(p: float | None) -> str:
    """``p = .012``, ``p < .001``; ``n/a`` where there is none."""
    if p is None or not math.isfinite(p):
        return MISSING
    return "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".", 1)


def format_difference(
    mean: float | None,
    low: float | None = None,
    high: float | None = None,
    p: float | None = None,
    digits: int = 2,
) -> str:
    """``+0.42 [+0.31, +0.53] p < .001``: always signed; interval and p where they are given."""
    if mean is None or not math.isfinite(mean):
        return MISSING
    parts = [f"{mean:+.{digits}f}"]
    if low is not None and high is not None:
        parts.append(f"[{low:+.{digits}f}, {high:+.{digits}f}]")
    if p is not None:
        parts.append(format_p(p))
    return " ".join(parts)


def format_seconds(seconds: float) -> str:
    """``42 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


@dataclass(frozen=True)
class Series:
    """One line or one colour of bars.

    Args:
        name: Name in the legend.
        x: Positions of the points, or their labels.
        y: Heights; NaN leaves a gap.
        low: Lower ends of the intervals.
        high: Upper ends of the intervals.
        dashed: Draw the line dashed.
        colour: Index into the palette, so that two series can share a colour; by default their order.
    """

    name: str
    x: Sequence[float] | Sequence[int] | Sequence[str]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False
    colour: int | None = None


@dataclass(frozen=True)
class Panel:
    """One plot of a figure.

    Args:
        title: Title of the plot.
        series: Its lines or bars.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
        zero: Whether the vertical axis holds zero, with a line there.
    """

    title: str
    series: Sequence[Series]
    x_label: str = ""
    y_label: str = ""
    zero: bool = False


def line_plot(
    path: Path, panels: Sequence[Panel], *, title: str = "", columns: int = 3, log_x: bool = False
) -> None:
    """Panels of lines with points and, where given, bands; written as PNG, atomically.

    Args:
        path: Where to write.
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
        _dress(axis, panel)
    _save(figure, axes, path)


def bar_plot(
    path: Path, panels: Sequence[Panel], *, title: str = "", columns: int = 3, width: float = 4.6
) -> None:
    """Panels of grouped bars with, where given, error bars; written as PNG, atomically.

    The vertical axis starts near the data unless the panel says ``zero``.

    Args:
        path: Where to write.
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
        _dress(axis, panel)
    _save(figure, axes, path)


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


def _dress(axis: Axes, panel: Panel) -> None:
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


def _save(figure: Figure, axes: Sequence[Axes], path: Path) -> None:
    named: dict[str, Artist] = {}
    for axis in axes:
        handles, names = axis.get_legend_handles_labels()
        named.update(zip(names, handles, strict=True))
    if len(named) > 1:
        place: Literal["outside lower center"] = "outside lower center"
        figure.legend(
            named.values(), named.keys(), loc=place, ncols=6, fontsize=8, frameon=False, handlelength=3
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    atomic_write(path, buffer.getvalue())
