"""The parts of a page, and the page as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from common.report.page.charts import Chart
from common.report.tables import Table

if TYPE_CHECKING:
    import jinja2

LIMIT = 2_000_000
"""Most bytes of a page."""


@dataclass(frozen=True)
class Titled:
    """A table under a title.

    Args:
        title: The title.
        table: The table.
    """

    title: str
    table: Table


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Args:
        title: Its title.
        text: Paragraphs.
        charts: Charts, side by side where there is room.
        tables: Tables that are seen at once.
        folded: Tables that are seen when they are asked for.
        facts: Names and values.
        links: Words and relative addresses.
    """

    title: str
    text: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Titled] = ()
    folded: Sequence[Titled] = ()
    facts: Sequence[tuple[str, str]] = ()
    links: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Page:
    """A page.

    Args:
        kind: What it is about: ``CTR study``.
        name: The name of that.
        question: What was asked.
        answer: What came out, in sentences.
        missing: What is not there: runs that did not finish, what was not measured.
        sections: Its parts, the most important one first.
        digest: What the page was made from, for who wants to know whether it is still of now.
    """

    kind: str
    name: str
    question: str
    answer: Sequence[str]
    missing: Sequence[str] = ()
    sections: Sequence[Section] = field(default_factory=list)
    digest: str = ""


def _template() -> jinja2.Template:
    import jinja2

    loader = jinja2.PackageLoader("common.report.page")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2")


def render(page: Page, *, limit: int = LIMIT) -> str:
    """The page as one HTML file that asks for nothing from outside.

    A page that is too large loses charts and folded tables, from its last section on, and names them.

    Args:
        page: The page.
        limit: Most bytes.

    Raises:
        ValueError: What cannot be left out is too large.
    """
    sections = list(page.sections)
    left_out: list[str] = []
    template = _template()
    while True:
        missing = list(page.missing)
        if left_out:
            missing.append(f"Left out, as the page would be too large: {', '.join(reversed(left_out))}.")
        text = template.render(page=replace(page, sections=sections, missing=missing))
        if len(text.encode()) <= limit:
            return text
        large = [place for place, one in enumerate(sections) if one.charts or one.folded]
        if not large:
            raise ValueError(f"the page is larger than {limit} bytes without any chart")
        cut = sections[large[-1]]
        left_out.append(f"charts and folded tables of {cut.title}")
        sections[large[-1]] = replace(cut, charts=(), folded=())
