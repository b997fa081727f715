"""Tables and numbers as text."""

from __future__ import annotations

import math

import pytest

from common.report.tables import format_difference, format_number, format_p, format_seconds, markdown_table


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
