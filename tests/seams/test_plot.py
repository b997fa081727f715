"""A plot is one file and one line: a new one comes out of the real command."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from matplotlib.image import imread

from common.study.command import find_study
from common.study.execute import execute
from common.study.results import complete, resolve
from fake_train import simulate
from lain.cli import main
from lain.study.kind import CTR, PLOTS

STUDY = """
name: tiny
description: A study of stand-ins.
data: {format: world, users: 60, rows: 400, valid_rows: 100, test_per_bucket: 50}
backbones: [twin]
arms: {base: {length.preset: base}, lain: {length.preset: lain}}
seeds: [0, 1]
"""

PLOT = '''
"""Spread of AUC over seeds."""

from matplotlib.figure import Figure

from common.report.plots import Panel, Series, bar_plot
from common.study.kind import Report


def seed_spread(report: Report) -> Figure:
    wanted = {"metric": "auc", "bucket": "", "split": "test", "arm": "lain"}
    rows = [row for row in report.frame.to_pylist() if wanted.items() <= row.items()]
    bars = [Series(str(row["seed"]), [row["arm"]], [row["value"]]) for row in rows]
    return bar_plot([Panel("AUC of lain by seed", bars)])


def nothing(report: Report) -> None:
    return None
'''


@pytest.fixture
def plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "seed_spread_plot.py").write_text(PLOT)
    monkeypatch.syspath_prepend(str(tmp_path))
    PLOTS.add("seed_spread", "seed_spread_plot:seed_spread")
    PLOTS.add("nothing", "seed_spread_plot:nothing")
    yield
    PLOTS.remove("seed_spread")
    PLOTS.remove("nothing")
    sys.modules.pop("seed_spread_plot", None)


def study(*arguments: object) -> str:
    done = CliRunner().invoke(main, ["study", *map(str, arguments)], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.stdout


@pytest.mark.usefixtures("plots")
def test_a_plot_from_one_file_comes_out_of_the_command(tmp_path: Path) -> None:
    path, out = tmp_path / "tiny.yaml", tmp_path / "runs" / "ctr-tiny"
    path.write_text(STUDY)
    loaded = find_study(CTR, str(path))
    prepared = CTR.prepare(loaded, None, out, workers=1, report=lambda line: None)
    plan = complete(resolve(CTR, loaded.plan()), lambda config: CTR.fingerprint(prepared, config))
    assert execute(plan, simulate, out, report=lambda line: None) == []
    table = study(path, "report", "--out", out)
    assert table.startswith("# CTR study: tiny")
    assert imread(out / "seed_spread.png").min() < 1
    assert not (out / "nothing.png").exists()
    assert {file.stem for file in out.glob("*.png")} == {"auc_by_bucket", "attention", "seed_spread"}
