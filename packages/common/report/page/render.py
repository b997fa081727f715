"""The parts of a page, and the page as one HTML file."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
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
        links: Anchors that cells lead to, by row and column.
        prose: Whether its last column holds sentences, which are broken into lines.
        hits: Rows that are set apart.
    """

    title: str
    table: Table
    links: Mapping[tuple[int, int], str] = field(default_factory=dict)
    prose: bool = False
    hits: Collection[int] = ()


@dataclass(frozen=True)
class Entry:
    """Something that is looked at when it is asked for: a query, a user, a training example.

    Args:
        anchor: Its name in addresses, unique on the page; see :func:`anchor`.
        title: Its line while it is folded.
        badge: A change that stands before its title, with its sign.
        text: Paragraphs.
        facts: Names and values.
        tables: Tables.
        links: Words and the anchors of other entries.
        entries: Entries inside it.
    """

    anchor: str
    title: str
    badge: str = ""
    text: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    tables: Sequence[Titled] = ()
    links: Sequence[tuple[str, str]] = ()
    entries: Sequence[Entry] = ()

    @property
    def anchors(self) -> set[str]:
        """Its anchor and those inside it."""
        return {self.anchor}.union(*(entry.anchors for entry in self.entries))


def anchor(*parts: str) -> str:
    """A name for addresses, from any words: ``anchor("din", "0-50")`` is ``din.0-50``.

    Letters, digits and hyphens stay, all else is written as its code: different words, different names.

    Args:
        *parts: The words.
    """
    return ".".join(re.sub(r"[^A-Za-z0-9-]", lambda found: f"_{ord(found[0]):x}_", part) for part in parts)


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
        entries: What tables lead to.
    """

    title: str
    text: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Titled] = ()
    folded: Sequence[Titled] = ()
    facts: Sequence[tuple[str, str]] = ()
    links: Sequence[tuple[str, str]] = ()
    entries: Sequence[Entry] = ()

    @property
    def anchors(self) -> set[str]:
        """Every anchor of its entries."""
        return set[str]().union(*(entry.anchors for entry in self.entries))


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
        facts: What stands below the question, a few words each.
    """

    kind: str
    name: str
    question: str
    answer: Sequence[str]
    missing: Sequence[str] = ()
    sections: Sequence[Section] = field(default_factory=list)
    digest: str = ""
    facts: Sequence[str] = ()


def _template() -> jinja2.Template:
    import jinja2

    loader = jinja2.PackageLoader("common.report.page")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2")


def render(page: Page, *, limit: int = LIMIT) -> str:
    """The page as one HTML file that asks for nothing from outside.

    A page that is too large loses every other entry, then all, then charts and folded tables, from its last
    section on, and names what it lost. Nothing leads to an entry that is lost.

    Args:
        page: The page.
        limit: Most bytes.

    Raises:
        ValueError: What cannot be left out is too large, or two entries have one anchor.
    """
    sections = list(page.sections)
    names = [name for section in sections for entry in section.entries for name in _listed(entry)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two entries of the page have the anchor {twice!r}")
    left_out: list[str] = []
    template = _template()
    while True:
        missing = list(page.missing)
        if left_out:
            missing.append(f"Left out, as the page would be too large: {', '.join(reversed(left_out))}.")
        anchors = set[str]().union(*(section.anchors for section in sections))
        shown = replace(page, sections=sections, missing=missing)
        text = template.render(page=shown, anchors=anchors)
        if len(text.encode()) <= limit:
            return text
        with_entries = [place for place, one in enumerate(sections) if one.entries]
        large = [place for place, one in enumerate(sections) if one.charts or one.folded]
        if not with_entries and not large:
            raise ValueError(f"the page is larger than {limit} bytes without any chart")
        if with_entries:
            place = with_entries[-1]
            cut = sections[place]
            less = replace(cut, entries=[_every_other(entry) for entry in cut.entries])
            if less.anchors == cut.anchors:
                less = replace(cut, entries=())
            some = f"some examples of {cut.title}"
            left_out = [words for words in left_out if words != some]
            left_out.append(some if less.entries else f"all examples of {cut.title}")
            sections[place] = less
        else:
            place = large[-1]
            left_out.append(f"charts and folded tables of {sections[place].title}")
            sections[place] = replace(sections[place], charts=(), folded=())


def _every_other(entry: Entry) -> Entry:
    """An entry with half of the innermost ones inside it."""
    if not any(inner.entries for inner in entry.entries):
        return replace(entry, entries=entry.entries[::2])
    return replace(entry, entries=[_every_other(inner) for inner in entry.entries])


def _listed(entry: Entry) -> list[str]:
    return [entry.anchor, *(name for inner in entry.entries for name in _listed(inner))]
