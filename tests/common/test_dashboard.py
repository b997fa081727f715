"""Dashboards from one definition: built and checked without a login."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import causalneg.cli
import causalneg.dashboard
import lain.cli
import lain.dashboard
from common.dashboard import (
    Chart,
    Dashboard,
    Section,
    build_report,
    build_workspace,
    missing_metrics,
)

METHODS = [("lain", lain.dashboard.DASHBOARD), ("causalneg", causalneg.dashboard.DASHBOARD)]
COMMANDS = {"lain": lain.cli.main, "causalneg": causalneg.cli.main}


def spec(built: Any) -> Any:
    """What would be sent."""
    return built._to_model().model_dump(by_alias=True, exclude_none=True)


def without_ids(value: Any) -> Any:
    """The same without the ids that the library draws anew."""
    if isinstance(value, dict):
        return {k: without_ids(v) for k, v in value.items() if k not in ("id", "__id__", "name")}
    return [without_ids(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("method", "dashboard"), METHODS)
def test_workspace_and_report_are_built_without_a_login_and_survive_their_model(
    method: str, dashboard: Dashboard
) -> None:
    workspace = build_workspace(dashboard, entity="somebody", project=method)
    workspaces = importlib.import_module("wandb_workspaces.workspaces")
    reports = importlib.import_module("wandb_workspaces.reports.v2")
    again = workspaces.Workspace._from_model(workspace._to_model())
    assert without_ids(spec(again)) == without_ids(spec(workspace))
    assert [section.name for section in again.sections] == [section.title for section in dashboard.sections]
    shown = [panel for section in again.sections for panel in section.panels]
    assert len(shown) == sum(len(section.charts) for section in dashboard.sections)
    sent = str(spec(workspace))
    for section in dashboard.sections:
        for chart in section.charts:
            assert all(name in sent for name in chart.metrics or [str(chart.pattern)]), chart

    report = build_report(dashboard, entity="somebody", project=method)
    assert (report.entity, report.project, report.title) == ("somebody", method, dashboard.title)
    titles = [block.text for block in report.blocks if isinstance(block, reports.H2)]
    assert titles == [section.title for section in dashboard.sections]
    grids = [block for block in report.blocks if isinstance(block, reports.PanelGrid)]
    panels = [[reports.interface._lookup_panel(panel._to_model()) for panel in grid.panels] for grid in grids]
    assert [len(found) for found in panels] == [len(section.charts) for section in dashboard.sections]
    for section, found in zip(dashboard.sections, panels, strict=True):
        for chart, panel in zip(section.charts, found, strict=True):
            content = str(panel._to_model().model_dump(by_alias=True))
            assert all(name in content for name in chart.metrics or [str(chart.pattern)]), chart


@pytest.mark.parametrize(("method", "dashboard"), METHODS)
def test_a_dry_run_prints_the_definition_and_needs_no_library(
    method: str, dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    done = CliRunner().invoke(COMMANDS[method], ["dashboard", "--dry-run"])
    assert done.exit_code == 0, done.output
    printed = yaml.safe_load(done.stdout)
    assert [section["title"] for section in printed["sections"]] == [s.title for s in dashboard.sections]
    assert printed["sections"][0]["charts"][0]["metrics"] == list(dashboard.sections[0].charts[0].metrics)


def test_what_is_missing_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", "/nowhere")
    asked = ["dashboard", "--entity", "somebody"]
    for arguments, words in ((["dashboard"], "--entity: name"), (asked, "needs a key")):
        done = CliRunner().invoke(COMMANDS["lain"], arguments)
        assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert words in done.stderr
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    for name in ("wandb_workspaces", "wandb_workspaces.workspaces", "wandb_workspaces.reports.v2"):
        monkeypatch.setitem(sys.modules, name, None)
    done = CliRunner().invoke(COMMANDS["lain"], asked)
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "pip install '.[dashboards]'" in done.stderr


def test_a_misspelt_metric_is_found() -> None:
    charts = (
        Chart("loss", ("train/loss",)),
        Chart("AUC", ("test/auk",), kind="bar"),
        Chart("buckets", pattern="^valid/auc/"),
        Chart("nothing", pattern="^probe/"),
    )
    dashboard = Dashboard("m", "t", "d", (Section("Results", "text", charts),))
    assert missing_metrics(dashboard, ["train/loss", "test/auc", "valid/auc/0-50"]) == [
        "Results / AUC: no metric 'test/auk'; did you mean 'test/auc'?",
        "Results / nothing: no metric matches ^probe/",
    ]


@pytest.mark.parametrize(
    "chart",
    [
        {},
        {"metrics": ("a",), "pattern": "a"},
        {"pattern": "a", "kind": "bar"},
        {"metrics": ("a", "b"), "kind": "scalar"},
    ],
)
def test_a_chart_that_shows_nothing_is_refused(chart: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="chart x"):
        Chart("x", **chart)
