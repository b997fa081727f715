"""Charts by hand arithmetic, and the page: whole, escaped, within its size."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.report.page.charts import (
    Chart,
    Scale,
    bar_chart,
    dot_chart,
    dot_domain,
    line_chart,
    nice_ticks,
    short,
    thin,
)
from common.report.page.render import Entry, Page, Section, Titled, anchor, render
from common.report.page.text import page_text
from common.report.panels import Panel, Series
from common.report.tables import Table
from common.study.extremes import extremes, mean_by_unit

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
    assert [short(17951.0), short(17951.0, signed=True)] == ["17951", "+17951"]


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
    entry = Entry("x", NASTY, NASTY, [NASTY], [(NASTY, NASTY)], [table], [(NASTY, "x")], [Entry("y", NASTY)])
    other = render(Page("a", "b", "c", [], sections=[Section("d", entries=[entry])], facts=[NASTY]))
    assert "script" not in [*parse(text).tags, *parse(other).tags]
    text += other
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


def test_a_bar_chart_by_hand() -> None:
    chart = bar_chart(Panel("t", [Series("n", ["a", "bb"], [1.0, 4.0])], "kind", "texts"))
    bars = [(float(one.get("x", "")), float(one.get("width", ""))) for one in drawing(chart).iter("rect")]
    left = 12 + 6.3 * 2 + 6
    assert bars[1] == pytest.approx((left, 360 - 10 - 46 - left), abs=0.1)
    assert bars[0] == pytest.approx((left, (360 - 10 - 46 - left) / 4), abs=0.1)
    assert chart.table.rows == [["a", "1"], ["bb", "4"]]
    assert chart.bars == [0.25, 1]


def far_panel(value: float) -> Panel:
    names = [f"arm {i}" for i in range(10)]
    y = [0.1, -0.1, 0.2, -0.2, 0.1, -0.1, 0.2, -0.2, 0.1, value]
    return Panel(
        "t", [Series("a", names, y, [v - 0.1 for v in y], [v + 0.1 for v in y])], "arm", "d", zero=True
    )


def test_a_row_that_is_far_off_becomes_an_arrow_with_its_value() -> None:
    assert dot_domain([far_panel(0.5)]) == pytest.approx((-0.345, 0.645))  # 5 % of .9 around [-.3, .6]
    low, high = dot_domain([far_panel(-5.0)])
    assert (low, high) == pytest.approx((-0.33, 0.33))
    chart = dot_chart(far_panel(-5.0), domain=(low, high))
    arrows = [one for one in drawing(chart).iter("polygon") if "clipped" in (one.get("class") or "")]
    assert [arrow[0].text for arrow in arrows] == ["arm 9, a: -5.00 [-5.10, -4.90]"]
    assert "-5" in [one.text for one in drawing(chart).iter("text")]
    assert any("arrows: beyond the axis" in (one.text or "") for one in drawing(chart).iter("text"))
    assert chart.table.rows[-1] == ["arm 9", "-5.00 [-5.10, -4.90]"]
    inside = dot_chart(far_panel(0.5), domain=dot_domain([far_panel(0.5)]))
    assert not list(drawing(inside).iter("polygon"))


@given(st.lists(st.text(), min_size=1), st.lists(st.text(), min_size=1))
def test_different_words_have_different_anchors(one: list[str], other: list[str]) -> None:
    assert (anchor(*one) == anchor(*other)) == (one == other)
    assert re.fullmatch(r"[A-Za-z0-9._-]*", anchor(*one))


def drilled(entries: int = 1) -> Page:
    table = Table(["arm", "difference"], [["a", "+1.00*"], ["b", "-2.00"]])
    links = {(0, 1): anchor("a"), (1, 1): anchor("b")}
    prose = Titled(
        "texts", Table(["rank", "text"], [["1", "word " * 100], ["2", "no"]]), prose=True, hits=[1]
    )
    inner = [
        Entry(f"a.{i}", f"query {i}", "-0.500", tables=[prose], links=[("up", "a")]) for i in range(entries)
    ]
    first = Section("one", tables=[Titled("main", table, links)])
    return Page("S", "s", "?", ["so"], sections=[first, Section("two", ["kept"], entries=[
        Entry("a", "arm a", text=["one query"], entries=inner)
    ])])  # fmt: skip


def test_cells_lead_to_entries_that_are_there() -> None:
    text = render(drilled())
    page = parse(text)
    assert [address for address in page.addresses if address.startswith("#") and address[1] != "s"] == [
        "#a",
        "#a",
    ]
    # What an address leads to lies inside what is folded, so that browsers unfold it.
    assert re.search(r'<details class="entry"><summary>arm a</summary><div class="inside" id="a">', text)
    assert '<span class="badge down">-0.500</span>' in text
    assert '<td class="r mark up"><a href="#a">+1.00*</a></td>' in text
    assert '<td class="r">-2.00</td>' in text  # nothing is behind it
    assert '<tr class="hit"><td class="l" data-h="rank">2</td>' in text


def test_examples_are_left_out_first_and_nothing_leads_to_them() -> None:
    page = drilled(50)
    size = len(render(page).encode())
    half = render(page, limit=size - 1)
    assert "Left out, as the page would be too large: some examples of two." in half
    assert [f'id="a.{i}"' in half for i in range(4)] == [True, False, True, False]
    assert len(half.encode()) < 0.7 * size
    cut = render(page, limit=len(render(drilled(1)).encode()) - 1)
    assert "Left out, as the page would be too large: all examples of two." in cut
    assert 'href="#a"' not in cut
    assert "<p>kept</p>" in cut
    assert "+1.00*" in cut


def test_two_entries_of_one_name_are_refused() -> None:
    page = Page("S", "s", "?", ["so"], sections=[Section("x", entries=[Entry("a", "1"), Entry("a", "2")])])
    with pytest.raises(ValueError, match="two entries of the page have the anchor 'a'"):
        render(page)


def test_a_page_as_text_has_all_of_it() -> None:
    bars = bar_chart(Panel("t", [Series("n", ["a", "bb"], [1.0, 2.0])], "kind"))
    page = drilled()
    text = page_text(Page("S", "s", "?", ["so"], ["gap"], [Section("c", charts=[bars]), *page.sections]))
    assert text.startswith("# S: s\n\nso\n\nNot shown:\n- gap\n")
    assert f"| bb   |   2 | {'█' * 30} |" in text
    assert f"| a    |   1 | {'█' * 15} " in text
    assert "### -0.500 query 0" in text
    assert "| b   |      -2.00 |" in text


def test_who_changed_most_by_hand() -> None:
    found = extremes(["a", "b", "c", "d"], np.array([0.5, -1.0, 0.0, 0.5]), 1)
    assert (found.gained, found.lost) == ({"a": 0.5}, {"b": -1.0})
    assert found.counts("queries") == "Of 4 queries 2 gain, 1 lose and 1 stay the same."
    assert extremes([], np.array([]), 3).change == {}
    assert mean_by_unit([{"a": 1.0, "b": 2.0}, {"b": 4.0}]) == {"b": 3}


@given(st.lists(st.integers(-5, 5), max_size=30), st.integers(1, 5))
def test_who_changed_most_against_a_full_sort(values: list[int], count: int) -> None:
    names = [f"{place:02}" for place in range(len(values))]
    found = extremes(names, np.array(values, dtype=float), count)
    order = sorted(zip(values, names, strict=True), key=lambda one: (-one[0], one[1]))
    assert list(found.gained) == [name for value, name in order if value > 0][:count]
    order.sort(key=lambda one: (one[0], one[1]))
    assert list(found.lost) == [name for value, name in order if value < 0][:count]
    assert found.up + found.down + found.same == len(values)
