"""Numbers to Markdown tables. Pure helpers that know nothing of a method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MISSING = "n/a"


@dataclass(frozen=True)
class Table:
    """A table of formatted cells, to be written as Markdown or on a page.

    Args:
        headers: Column names.
        rows: Cells; every row as long as the headers.
        align: One letter a column, ``l`` or ``r``; by default the first column left, the others right.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    align: str = ""

    @property
    def sides(self) -> str:
        """``align``, or its default."""
        return self.align or "l" + "r" * (len(self.headers) - 1)

    @property
    def grouped(self) -> bool:
        """Whether rows belong to a row above: their first cell is empty, as it would say the same."""
        return any(not row[0] for row in self.rows if row)

    def markdown(self) -> str:
        """The table as Markdown; see :func:`markdown_table`."""
        return markdown_table(self.headers, self.rows, self.align)


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
