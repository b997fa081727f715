"""Tables as text, and plots that are real PNG files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from matplotlib.image import imread

from common.plots import Panel, Series, bar_plot, line_plot
from common.report import format_difference, format_number, format_p, format_seconds, markdown_table


def test_markdown_table() -> None:
    assert markdown_table(["arm", "AUC"], [["base", "70.1"], ["a|b", "7"]]) == (
        "| arm  |  AUC |\n"  #
        "| ---- | ---: |\n"
        "| base | 70.1 |\n"
        "| a\\|b |    7 |\n"
    )


def test_a_table_of_unequal_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="2 columns got a row of 1"):
        markdown_table(["a", "b"], [["1"]])
    with pytest.raises(ValueError, match="alignment 'l'"):
        markdown_table(["a", "b"], [], align="l")


def test_numbers() -> None:
    assert format_number(1.005, 1) == "1.0"
    assert format_number(None) == format_number(math.nan) == "n/a"
    assert format_difference(0.421, 0.31, 0.53, 0.0001) == "+0.42 [+0.31, +0.53] p < .001"
    assert format_difference(-0.1, p=0.25) == "-0.10 p = .250"
    assert format_difference(None) == "n/a"
    assert format_p(1.0) == "p = 1.000"
    assert format_p(math.nan) == "n/a"
    assert [format_seconds(s) for s in (42.4, 720.0, 11_100.0)] == ["42 s", "12 min", "3 h 05 min"]


@pytest.mark.parametrize("log_x", [True, False])
def test_line_plot(tmp_path: Path, log_x: bool) -> None:
    line = Series("base", [20, 100, 1000], [0.1, math.nan, 0.3], low=[0.0, 0.1, 0.2], high=[0.2, 0.3, 0.4])
    other = Series("lain", [20, 100], [0.2, 0.25], dashed=True)
    panel = Panel("DIN", [line, other], "maximum length", "AUC", zero=True)
    line_plot(tmp_path / "a.png", [panel] * 4, title="title", log_x=log_x)
    assert imread(tmp_path / "a.png").shape[0] > 300
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_bar_plot(tmp_path: Path) -> None:
    bars = [Series(name, ["0-50", "50+"], [1.0, 2.0], low=[0.9, 1.8], high=[1.1, 2.2]) for name in "ab"]
    bar_plot(tmp_path / "b.png", [Panel("TWIN", bars)])
    image = imread(tmp_path / "b.png")
    assert image.min() < 1  # something is drawn
    bar_plot(tmp_path / "skewed.png", [Panel("", [Series("a", ["0-50"], [1.0], [1.1], [1.2])], zero=True)])
    bar_plot(tmp_path / "c.png", [Panel("TWIN", [Series("a", ["0-50"], [math.nan])])])
    with pytest.raises(ValueError, match="at least one panel"):
        bar_plot(tmp_path / "d.png", [])
    assert not (tmp_path / "d.png").exists()
