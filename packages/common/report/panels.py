"""What a plot shows, whoever draws it: series of numbers in a panel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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
        filled: Points that are drawn filled on a page, others hollow; by default all.
    """

    name: str
    x: Sequence[float] | Sequence[int] | Sequence[str]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False
    colour: int | None = None
    filled: Sequence[bool] | None = None


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
