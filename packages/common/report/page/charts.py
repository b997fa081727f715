"""Panels of numbers to inline SVG, each with the table of its numbers.

Pure functions. Colours, fonts and the two colour schemes are the style sheet's: a chart names classes only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from common.report.panels import Panel, Series
from common.report.tables import MISSING, Table

WIDTH, LEFT, RIGHT = 360.0, 46.0, 10.0
"""Width of a chart and its margins, in its own units: about pixels on a phone."""

COLOURS = 7
"""Colours of the palette (Okabe and Ito without yellow, which is lost on white)."""

OUTLIERS = 0.2
"""Share of the rows of forest plots that may lie beyond the axis, where the others are far closer."""

CLOSER = 3.0
"""How many times narrower the axis has to get for that."""

CROWDED = 25
"""Points of a line beyond which they are seen under the pointer only."""

POINTS = 40
"""Most points of a line that are drawn."""


class Key(NamedTuple):
    """An entry of a legend.

    Args:
        name: Name of the series.
        colour: Index into the palette.
        dashed: Whether its line is dashed.
    """

    name: str
    colour: int
    dashed: bool


@dataclass(frozen=True)
class Chart:
    """A chart, its legend and the numbers behind it.

    Args:
        title: Title.
        svg: The drawing.
        legend: Its series, where there is more than one.
        table: Its numbers.
        bars: Length of the bar of each row of the table, from 0 to 1, where there is one.
    """

    title: str
    svg: Markup
    legend: Sequence[Key]
    table: Table
    bars: Sequence[float] = ()


@dataclass(frozen=True)
class Scale:
    """Values to coordinates, linear or logarithmic.

    Args:
        low: Lower end of the values.
        high: Upper end of the values.
        start: Coordinate of ``low``.
        end: Coordinate of ``high``.
        log: Whether equal ratios are equal distances.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The coordinate of a value; a scale of no width gives the middle."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        at = math.log(value) if self.log else value
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values inside ``[low, high]``, 1, 2 or 5 times a power of ten apart.

    Args:
        low: Lower end.
        high: Upper end.
        count: About how many, at most.
    """
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def thin(
    x: Sequence[float] | Sequence[int], y: Sequence[float], most: int = POINTS
) -> tuple[list[float], list[float]]:
    """At most so many points of a curve: each the mean of equally many that follow each other.

    Args:
        x: Positions, rising.
        y: Values.
        most: Most points that are left.
    """
    size = -(-len(x) // most) if len(x) else 1
    blocks = [slice(at, at + size) for at in range(0, len(x), size)]
    return [_mean(x[block]) for block in blocks], [_mean(y[block]) for block in blocks]


def _mean(values: Sequence[float] | Sequence[int]) -> float:
    return sum(values) / len(values)


def short(value: float, *, signed: bool = False) -> str:
    """A number of a chart, 4 significant digits, or all before the point; ``n/a`` where there is none."""
    if not math.isfinite(value):
        return MISSING
    if abs(value) >= 10_000:
        return f"{value:+.0f}" if signed else f"{value:.0f}"
    return f"{value:+.4g}" if signed else f"{value:.4g}"


def _colour(series: Series, place: int) -> int:
    return (place if series.colour is None else series.colour) % COLOURS


def _dashed(series: Series, place: int) -> bool:
    return series.dashed or (place if series.colour is None else series.colour) >= COLOURS


def _legend(panel: Panel) -> list[Key]:
    if len(panel.series) < 2:
        return []
    return [Key(one.name, _colour(one, i), _dashed(one, i)) for i, one in enumerate(panel.series)]


def _domain(values: Sequence[float], *, zero: bool) -> tuple[float, float]:
    known = [value for value in values if math.isfinite(value)] + ([0.0] if zero else [])
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    margin = 0.05 * (high - low) or abs(high) * 0.05 or 1.0
    return low - margin, high + margin


def _places(series: Series) -> list[float | int | str]:
    return [*series.x]


def _ends(series: Series) -> list[tuple[float, float, float]]:
    """Value, lower and upper end of each point."""
    low, high = series.low or series.y, series.high or series.y
    return list(zip(series.y, low, high, strict=True))


def _svg(height: float, label: str, parts: Sequence[Markup]) -> Markup:
    head = Markup('<svg class="chart" viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">').format(
        WIDTH, height, label
    )
    return head + Markup("").join(parts) + Markup("</svg>")


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    text = '<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>'
    return Markup(text).format(x1, y1, x2, y2, css)


def _text(x: float, y: float, words: str, anchor: str = "middle", css: str = "") -> Markup:
    text = '<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>'
    return Markup(text).format(x, y, anchor, css, words)


def _circle(x: float, y: float, radius: float, css: str, words: str) -> Markup:
    text = '<circle cx="{:.1f}" cy="{:.1f}" r="{:.1f}" class="{}"><title>{}</title></circle>'
    return Markup(text).format(x, y, radius, css, words)


def _rect(x: float, y: float, width: float, height: float, css: str, words: str) -> Markup:
    text = '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="{}"><title>{}</title></rect>'
    return Markup(text).format(x, y, width, height, css, words)


def line_chart(panel: Panel, *, log_x: bool = False) -> Chart:
    """Lines with points and, where given, bands.

    Args:
        panel: The numbers; positions are numbers, or words that all series take in the same order.
        log_x: Logarithmic horizontal axis with a tick at every position.
    """
    height, top, bottom = 218.0, 10.0, 36.0
    words = [x for one in panel.series for x in _places(one) if isinstance(x, str)]
    labels = list(dict.fromkeys(words))

    def position(x: float | int | str) -> float:
        return float(labels.index(x)) if isinstance(x, str) else float(x)

    every_x = sorted({position(x) for one in panel.series for x in _places(one)})
    ends = [value for one in panel.series for point in _ends(one) for value in point]
    low, high = _domain(ends, zero=panel.zero)
    first, last = (every_x[0], every_x[-1]) if every_x else (0.0, 1.0)
    across = Scale(first, last, LEFT + 8, WIDTH - RIGHT - 8, log_x)
    up = Scale(low, high, height - bottom, top)
    parts = []
    for tick in nice_ticks(low, high, 6):
        parts += [_line(LEFT, up(tick), WIDTH - RIGHT, up(tick), "zero" if tick == 0 else "grid")]
        parts += [_text(LEFT - 5, up(tick) + 4, f"{tick:g}", "end")]
    x_ticks = every_x if labels or log_x else nice_ticks(across.low, across.high, 4)
    for tick in x_ticks:
        parts.append(_text(across(tick), height - bottom + 16, labels[int(tick)] if labels else f"{tick:g}"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 3, panel.x_label))
    for place, one in enumerate(panel.series):
        css = f"c{_colour(one, place)}"
        points = [
            (across(position(x)), y, low, high)
            for x, (y, low, high) in zip(_places(one), _ends(one), strict=True)
        ]
        points = [point for point in points if all(map(math.isfinite, point))]
        if one.low is not None and len(points) > 1:
            edge = [(x, up(high)) for x, _, _, high in points] + [
                (x, up(low)) for x, _, low, _ in points[::-1]
            ]
            parts.append(Markup('<polygon points="{}" class="{} band"/>').format(_path(edge), css))
        line = f"{css} line{' dashed' if _dashed(one, place) else ''}"
        parts.append(Markup('<polyline points="{}" class="{}"/>').format(
            _path([(x, up(y)) for x, y, _, _ in points]), line))  # fmt: skip
        known = [(x, y) for x, y in zip(_places(one), one.y, strict=True) if math.isfinite(y)]
        for x, y in known:
            at = x if isinstance(x, str) else f"{x:g}"
            tip = f"{one.name}, {panel.x_label} {at}: {short(y)}"
            dot = "dot faint" if len(known) > CROWDED else "dot"
            parts.append(_circle(across(position(x)), up(y), 2.6, f"{css} {dot}", tip))
    return Chart(panel.title, _svg(height, panel.title, parts), _legend(panel), _line_table(panel))


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _line_table(panel: Panel) -> Table:
    every: dict[float | int | str, dict[int, float]] = {}
    for place, one in enumerate(panel.series):
        for x, y in zip(_places(one), one.y, strict=True):
            every.setdefault(x, {})[place] = y
    order = list(every) if any(isinstance(x, str) for x in every) else sorted(every, key=float)
    rows = []
    for at in order:
        name = at if isinstance(at, str) else f"{at:g}"
        cells = (every[at].get(place) for place in range(len(panel.series)))
        rows.append([name, *("" if value is None else short(value) for value in cells)])
    return Table([panel.x_label or "x", *(one.name for one in panel.series)], rows)


def bar_chart(panel: Panel) -> Chart:
    """Horizontal bars from zero, a line a category, in it one for each series.

    Args:
        panel: The numbers, none below zero; its series share their categories.
    """
    categories = [str(x) for x in panel.series[0].x] if panel.series else []
    step = 15.0
    group = step * len(panel.series) + 5
    left = _label_width(categories)
    top, height = 4.0, 4.0 + group * len(categories) + (20 if panel.y_label else 4)
    known = [value for one in panel.series for value in one.y if math.isfinite(value)]
    largest = max(known, default=0.0) or 1.0
    across = Scale(0.0, largest, left + 6, WIDTH - RIGHT - 46)
    parts = []
    for row, name in enumerate(categories):
        start = top + group * row
        parts.append(_text(left, start + group / 2 + 4, name, "end"))
        for place, one in enumerate(panel.series):
            if not math.isfinite(one.y[row]):
                continue
            at = start + 2.5 + step * place
            tip = f"{name}, {one.name}: {short(one.y[row])}"
            wide = max(across(one.y[row]) - left - 6, 0.5)
            css = f"c{_colour(one, place)} bar"
            parts.append(_rect(left + 6, at, wide, step - 3, css, tip))
            parts.append(_text(left + 10 + wide, at + step - 5, short(one.y[row]), "start"))
    if panel.y_label:
        parts.append(_text((left + WIDTH) / 2, height - 4, panel.y_label))
    rows = [[name, *(short(one.y[row]) for one in panel.series)] for row, name in enumerate(categories)]
    table = Table([panel.x_label, *(one.name for one in panel.series)], rows)
    bars = [value / largest for value in panel.series[0].y] if len(panel.series) == 1 else []
    return Chart(panel.title, _svg(height, panel.title, parts), _legend(panel), table, bars)


def _label_width(categories: Sequence[str]) -> float:
    """Where the labels of categories end."""
    return min(12 + 6.3 * max((len(name) for name in categories), default=0), 170.0)


def dot_chart(panel: Panel, *, domain: tuple[float, float] | None = None) -> Chart:
    """A forest plot: a line a category, in it a point with its interval for each series.

    Args:
        panel: The numbers; its series share their categories. ``zero`` draws the line of no difference.
        domain: Ends of the axis, so that panels can share them; by default those of the numbers.
    """
    categories = [str(x) for x in panel.series[0].x] if panel.series else []
    step = 13.0
    group = step * len(panel.series) + 9
    left = _label_width(categories)
    top, height = 6.0, 6.0 + group * len(categories) + 40
    low, high = domain or dot_domain([panel])
    across = Scale(low, high, left + 6, WIDTH - RIGHT)
    bottom = height - 34
    parts = []
    for tick in nice_ticks(low, high, 5):
        parts += [
            _line(across(tick), top, across(tick), bottom, "zero" if panel.zero and tick == 0 else "grid")
        ]
        parts += [_text(across(tick), bottom + 14, f"{tick:+g}" if panel.zero and tick else f"{tick:g}")]
    values = [value for one in panel.series for value in one.y if math.isfinite(value)]
    beyond = any(not low <= value <= high for value in values)
    words = f"{panel.y_label} (arrows: beyond the axis)" if beyond else panel.y_label
    parts.append(_text(min((left + WIDTH) / 2, WIDTH - 2.9 * len(words)), height - 4, words))
    for row, name in enumerate(categories):
        start = top + group * row
        if row:
            parts.append(_line(0.0, start, WIDTH, start, "rule"))
        parts.append(_text(left, start + group / 2 + 4, name, "end"))
        for place, one in enumerate(panel.series):
            value, lower, upper = _ends(one)[row]
            if not math.isfinite(value):
                continue
            at, css = start + 4.5 + step * (place + 0.5), f"c{_colour(one, place)}"
            tip = f"{name}, {one.name}: {_cell(panel, one, row)}"
            if not low <= value <= high:
                parts += _beyond(
                    across(low if value < low else high), at, value < low, css, tip, short(value)
                )
                continue
            if math.isfinite(lower) and math.isfinite(upper):
                whisker = f"{css} line{' dashed' if _dashed(one, place) else ''}"
                parts.append(_line(across(max(lower, low)), at, across(min(upper, high)), at, whisker))
            hollow = one.filled is not None and not one.filled[row]
            parts.append(_circle(across(value), at, 4.0, f"{css} {'hollow' if hollow else 'dot'}", tip))
    rows = [[name, *(_cell(panel, one, row) for one in panel.series)] for row, name in enumerate(categories)]
    table = Table([panel.x_label, *(one.name for one in panel.series)], rows)
    return Chart(panel.title, _svg(height, panel.title, parts), _legend(panel), table)


def _beyond(x: float, y: float, left: bool, css: str, words: str, value: str) -> list[Markup]:
    """An arrow at the end of the axis, and the value that lies beyond it."""
    tip, back = (x, x + 9) if left else (x, x - 9)
    text = '<polygon points="{}" class="{} clipped"><title>{}</title></polygon>'
    arrow = Markup(text).format(_path([(tip, y), (back, y - 4.5), (back, y + 4.5)]), css, words)
    return [arrow, _text(back + (4 if left else -4), y + 4, value, "start" if left else "end")]


def dot_domain(panels: Sequence[Panel]) -> tuple[float, float]:
    """Ends of an axis for the intervals of some panels.

    It holds all of them, unless a few rows lie so far off that the others could not be told apart.
    """
    zero = any(panel.zero for panel in panels)
    rows: list[list[float]] = []
    for panel in panels:
        for row in range(len(panel.series[0].x) if panel.series else 0):
            known = [v for one in panel.series for v in _ends(one)[row] if math.isfinite(v)]
            rows += [known] if known else []
    every = _domain([value for row in rows for value in row], zero=zero)
    rows.sort(key=lambda row: max(map(abs, row)))
    kept = rows[: len(rows) - int(OUTLIERS * len(rows))]
    narrow = _domain([value for row in kept for value in row], zero=zero)
    far = zero and CLOSER * (narrow[1] - narrow[0]) <= every[1] - every[0]
    return narrow if far else every


def _cell(panel: Panel, series: Series, row: int) -> str:
    value, low, high = _ends(series)[row]
    if not math.isfinite(value):
        return MISSING
    written = f"{value:+.2f}" if panel.zero else f"{value:.2f}"
    if series.low is None:
        return written
    sign = "+" if panel.zero else ""
    star = "*" if series.filled is not None and series.filled[row] else ""
    return f"{written}{star} [{low:{sign}.2f}, {high:{sign}.2f}]"
