"""Plots are real PNG files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from matplotlib.image import imread

from common.report.plots import Panel, Series, bar_plot, line_plot, save_figure


@pytest.mark.parametrize("log_x", [True, False])
def test_line_plot(tmp_path: Path, log_x: bool) -> None:
    line = Series("base", [20, 100, 1000], [0.1, math.nan, 0.3], low=[0.0, 0.1, 0.2], high=[0.2, 0.3, 0.4])
    other = Series("lain", [20, 100], [0.2, 0.25], dashed=True)
    panel = Panel("DIN", [line, other], "maximum length", "AUC", zero=True)
    save_figure(line_plot([panel] * 4, title="title", log_x=log_x), tmp_path / "a.png")
    assert imread(tmp_path / "a.png").shape[0] > 300
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_bar_plot(tmp_path: Path) -> None:
    bars = [Series(name, ["0-50", "50+"], [1.0, 2.0], low=[0.9, 1.8], high=[1.1, 2.2]) for name in "ab"]
    save_figure(bar_plot([Panel("TWIN", bars)]), tmp_path / "b.png")
    image = imread(tmp_path / "b.png")
    assert image.min() < 1  # something is drawn
    bar_plot([Panel("", [Series("a", ["0-50"], [1.0], [1.1], [1.2])], zero=True)])
    bar_plot([Panel("TWIN", [Series("a", ["0-50"], [math.nan])])])
    with pytest.raises(ValueError, match="at least one panel"):
        bar_plot([])
