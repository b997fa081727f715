"""Charts by hand arithmetic, and the page: whole, escaped, within its size."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.report.page.charts import Chart, Scale, dot_chart, line_chart, nice_ticks, short, thin
from common.report.page.render import Page, Section, Titled, render
from common.report.panels import Panel, Series
from common.report.tables import Table

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Strict(HTMLParser):
    """Fails where elements are not closed in the order they were opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parse(text: str) -> Strict:
    parser = Strict()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


def drawing(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(str(chart.svg))


def dots(chart: Chart) -> list[tuple[float, float, str]]:
    found = drawing(chart).iter("circle")
    return [(float(one.get("cx", "")), float(one.get("cy", "")), one[0].text or "") for one in found]


def test_a_scale_by_hand() -> None:
    assert Scale(0.0, 10.0, 100.0, 200.0)(2.5) == 125
    assert Scale(0.0, 10.0, 200.0, 100.0)(2.5) == 175  # upwards
    assert Scale(1.0, 100.0, 0.0, 10.0, log=True)(10.0) == pytest.approx(5)
    assert Scale(3.0, 3.0, 0.0, 10.0)(3.0) == 5


def test_ticks_by_hand() -> None:
    assert nice_ticks(0.0, 10.0) == [0, 2, 4, 6, 8, 10]
    assert nice_ticks(-0.03, 0.11, 4) == [0, 0.05, 0.1]
    assert nice_ticks(7.0, 7.0) == [7]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 9))
def test_ticks_lie_inside_and_are_few(low: float, width: float, count: int) -> None:
    found = nice_ticks(low, low + width, count)
    slack = width * 1e-6
    assert len(found) <= count + 1
    assert all(low - slack <= tick <= low + width + slack for tick in found)


def test_a_thinned_curve_is_the_mean_of_its_blocks() -> None:
    x, y = thin([0, 1, 2, 3, 4], [1.0, 3.0, 5.0, 7.0, 10.0], most=3)
    assert (x, y) == ([0.5, 2.5, 4], [2, 6, 10])
    assert thin([1, 2], [3.0, 4.0], most=3) == ([1, 2], [3, 4])
    assert thin([], []) == ([], [])


def test_numbers_keep_four_digits() -> None:
    assert [short(62.3149), short(0.00012344), short(math.nan)] == ["62.31", "0.0001234", "n/a"]


def test_a_line_chart_by_hand() -> None:
    panel = Panel("loss", [Series("a", [0, 10, 20], [1.0, math.nan, 3.0])], "step")
    chart = line_chart(panel)
    (left, high_y, first), (right, low_y, second) = dots(chart)
    assert (left, right) == (54, 342)  # from margin 46 + 8 to 360 - 10 - 8
    # The axis is [1, 3] with 5 % of 2 on both sides, over 10 .. 182: 1 lies 0.1 / 2.2 above the lower end.
    assert high_y == pytest.approx(182 - 172 * 0.1 / 2.2, abs=0.05)
    assert low_y == pytest.approx(182 - 172 * 2.1 / 2.2, abs=0.05)
    assert (first, second) == ("a, step 0: 1", "a, step 20: 3")
    assert chart.table.rows == [["0", "1"], ["10", "n/a"], ["20", "3"]]
    assert chart.legend == []


def test_words_and_ratios_as_positions() -> None:
    words = line_chart(Panel("t", [Series("a", ["x", "y", "z"], [1.0, 2.0, 3.0])]))
    assert [x for x, _, _ in dots(words)] == [54, 198, 342]
    ratios = line_chart(Panel("t", [Series("a", [1, 10, 100], [1.0, 2.0, 3.0])]), log_x=True)
    assert [x for x, _, _ in dots(ratios)] == [54, 198, 342]


def test_a_forest_plot_by_hand() -> None:
    series = Series(
        "lain", ["all", "0-50"], [1.0, -1.0], [0.5, -3.0], [1.5, 1.0], colour=1, filled=[True, False]
    )
    chart = dot_chart(Panel("DIN", [series], "length", "difference", zero=True), domain=(-4.0, 4.0))
    svg = drawing(chart)
    left = 12 + 6.3 * 4 + 6  # of the longest name, "0-50"
    zero = next(float(line.get("x1", "")) for line in svg.iter("line") if line.get("class") == "zero")
    assert zero == pytest.approx(left + (350 - left) / 2, abs=0.05)
    whiskers = [line for line in svg.iter("line") if "line" in (line.get("class") or "").split()]
    unit = (350 - left) / 8
    ends = [(float(line.get("x1", "")), float(line.get("x2", ""))) for line in whiskers]
    expected = [(zero + 0.5 * unit, zero + 1.5 * unit), (zero - 3 * unit, zero + unit)]
    assert [end for pair in ends for end in pair] == pytest.approx([e for p in expected for e in p], abs=0.11)
    assert [one.get("class") for one in svg.iter("circle")] == ["c1 dot", "c1 hollow"]
    assert chart.table.rows == [["all", "+1.00* [+0.50, +1.50]"], ["0-50", "-1.00 [-3.00, +1.00]"]]


def test_nothing_to_draw_is_drawn_as_nothing() -> None:
    assert dots(line_chart(Panel("t", []))) == []
    assert dots(dot_chart(Panel("t", [Series("a", ["x"], [math.nan])]))) == []


NASTY = "<script>alert('1')</script>&\""


def test_every_text_is_escaped() -> None:
    series = [Series(NASTY, [NASTY, "b"], [1.0, 2.0]), Series("other", [NASTY, "b"], [1.0, 2.0])]
    panel = Panel(NASTY, series, NASTY, NASTY)
    table = Titled(NASTY, Table([NASTY, "b"], [[NASTY, "1"]]))
    section = Section(
        NASTY, [NASTY], [line_chart(panel), dot_chart(panel)], [table], [table], [(NASTY, NASTY)],
        [(NASTY, NASTY)],
    )  # fmt: skip
    text = render(Page(NASTY, NASTY, NASTY, [NASTY], [NASTY], [section], NASTY))
    assert "script" not in parse(text).tags
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 20


def test_a_page_asks_for_nothing_from_outside() -> None:
    page = Page(
        "Study", "s", "why?", ["so"], sections=[Section("one", links=[("a file", "a b/record.json")])]
    )
    addresses = parse(render(page)).addresses
    assert addresses == ["data:,", "#s1", "a%20b/record.json"]
    assert not re.search(r"@import|url\(|http", render(page))


def test_a_page_that_is_too_large_says_what_it_leaves_out() -> None:
    panel = Panel("p", [Series("a", list(range(40)), [float(x) for x in range(40)])])
    sections = [Section(f"part {i}", ["kept"], [line_chart(panel)] * 5) for i in range(4)]
    page = Page("Study", "s", "why?", ["so"], sections=sections)
    whole = len(render(page).encode())
    cut = render(page, limit=whole - 1)
    assert len(cut.encode()) < whole
    assert "Left out, as the page would be too large: charts and folded tables of part 3." in cut
    assert cut.count("<p>kept</p>") == 4
    with pytest.raises(ValueError, match="larger than 100 bytes without any chart"):
        render(page, limit=100)
