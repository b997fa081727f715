"""A page as text, for terminals: the same parts, charts as the tables of their numbers with bars."""

from __future__ import annotations

from collections.abc import Iterator

from common.report.page.charts import Chart
from common.report.page.render import Entry, Page, Section, Titled
from common.report.tables import Table

BAR = 30
"""Letters of the longest bar."""


def page_text(page: Page) -> str:
    """What a page says, in Markdown; folded parts are unfolded.

    Args:
        page: The page.
    """
    lines = [f"# {page.kind}: {page.name}", "", *page.answer]
    if page.missing:
        lines += ["", "Not shown:", *(f"- {line}" for line in page.missing)]
    for section in page.sections:
        lines += ["", *_section(section)]
    return "\n".join(lines) + "\n"


def _section(section: Section) -> Iterator[str]:
    yield f"## {section.title}"
    yield ""
    yield from section.text
    yield from (f"- {name}: {value}" for name, value in section.facts)
    for chart in section.charts:
        yield from _titled(chart.title, _with_bars(chart))
    one: Titled
    for one in (*section.tables, *section.folded):
        yield from _titled(one.title, one.table)
    for entry in section.entries:
        yield from _entry(entry)


def _titled(title: str, table: Table) -> Iterator[str]:
    yield from ("", f"### {title}", "", table.markdown().rstrip("\n"))


def _with_bars(chart: Chart) -> Table:
    if not chart.bars:
        return chart.table
    bars = ["█" * round(BAR * share) for share in chart.bars]
    rows = [[*row, bar] for row, bar in zip(chart.table.rows, bars, strict=True)]
    return Table([*chart.table.headers, ""], rows, f"{chart.table.sides}l")


def _entry(entry: Entry) -> Iterator[str]:
    yield from ("", f"### {entry.badge} {entry.title}".replace("  ", " "), "", *entry.text)
    yield from (f"- {name}: {value}" for name, value in entry.facts)
    for one in entry.tables:
        yield from _titled(one.title, one.table)
    for inner in entry.entries:
        yield from _entry(inner)
