"""W&B dashboards from one definition: what is shown, as plain data; a workspace and a report made of it.

The library that speaks to W&B (extra ``dashboards``) is needed to build them, not to define or print them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from common.config import to_yaml
from common.errors import BackendError, ConfigError, nearest
from common.training.config import TrackingConfig
from common.training.wandb_mode import tracking_mistakes

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import Report
    from wandb_workspaces.workspaces import Workspace

F = TypeVar("F", bound=Callable[..., Any])

STEP = "trainer/global_step"
"""What curves are drawn over: the optimiser step, from 0."""


@dataclass(frozen=True)
class Chart:
    """One panel.

    Args:
        title: What it shows.
        metrics: Names of metrics; of a table its name.
        pattern: Regular expression of names instead, for curves: of whatever buckets or branches a run has.
        kind: A curve over steps, bars of the last values, one number, or a table.
    """

    title: str
    metrics: tuple[str, ...] = ()
    pattern: str | None = None
    kind: Literal["line", "bar", "scalar", "table"] = "line"

    def __post_init__(self) -> None:
        """Refuse what shows nothing."""
        if bool(self.metrics) == (self.pattern is not None):
            raise ValueError(f"chart {self.title}: needs metrics or a pattern")
        if self.pattern is not None and self.kind != "line":
            raise ValueError(f"chart {self.title}: a pattern is for curves, got {self.kind}")
        if self.kind in ("scalar", "table") and len(self.metrics) != 1:
            raise ValueError(f"chart {self.title}: {self.kind} shows one metric, got {len(self.metrics)}")


@dataclass(frozen=True)
class Section:
    """Panels that belong together.

    Args:
        title: Its title.
        text: What to read in it, a sentence or two, for the report.
        charts: Its panels.
    """

    title: str
    text: str
    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class Dashboard:
    """What is looked at in the runs of one method.

    Args:
        method: Name of the method: its command, and its project where none is named.
        title: Title of workspace and report.
        text: What it is about, a sentence.
        sections: Its sections, in order.
    """

    method: str
    title: str
    text: str
    sections: tuple[Section, ...]


def missing_metrics(dashboard: Dashboard, logged: Iterable[str]) -> list[str]:
    """Panels that would stay empty, a line each; empty where every panel has what it shows.

    Args:
        dashboard: The definition.
        logged: Names of everything that a run has logged.
    """
    known = set(logged)
    found = []
    for section in dashboard.sections:
        for chart in section.charts:
            where = f"{section.title} / {chart.title}"
            if chart.pattern is not None and not any(re.search(chart.pattern, name) for name in known):
                found.append(f"{where}: no metric matches {chart.pattern}")
            for name in chart.metrics:
                if name not in known:
                    close = nearest(name, known)
                    hint = f"; did you mean '{close}'?" if close else ""
                    found.append(f"{where}: no metric '{name}'{hint}")
    return found


def _libraries() -> tuple[Any, Any]:
    try:
        with warnings.catch_warnings():  # the library's own use of pydantic
            warnings.simplefilter("ignore", DeprecationWarning)
            import wandb_workspaces.reports.v2 as reports
            import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise BackendError(
            f"dashboards need the package wandb-workspaces ({error}); "
            "install the extra: pip install '.[dashboards]'"
        ) from None
    return workspaces, reports


def _panel(chart: Chart, reports: Any) -> Any:
    match chart.kind:
        case "line" if chart.pattern is not None:
            return reports.LinePlot(title=chart.title, x=STEP, metric_regex=chart.pattern)
        case "line":
            return reports.LinePlot(title=chart.title, x=STEP, y=list(chart.metrics))
        case "bar":
            return reports.BarPlot(title=chart.title, metrics=list(chart.metrics))
        case "scalar":
            return reports.ScalarChart(title=chart.title, metric=chart.metrics[0])
        case "table":
            return reports.WeavePanelSummaryTable(table_name=chart.metrics[0])


def build_workspace(dashboard: Dashboard, *, entity: str, project: str) -> Workspace:
    """The workspace, checked by the library; nothing is sent.

    Args:
        dashboard: The definition.
        entity: W&B user or team.
        project: W&B project.

    Raises:
        BackendError: The extra is missing.
    """
    workspaces, reports = _libraries()
    built: Workspace = workspaces.Workspace(
        entity=entity,
        project=project,
        name=dashboard.title,
        sections=[
            workspaces.Section(
                name=section.title,
                panels=[_panel(chart, reports) for chart in section.charts],
                is_open=place < 2,
            )
            for place, section in enumerate(dashboard.sections)
        ],
    )
    return built


def build_report(dashboard: Dashboard, *, entity: str, project: str) -> Report:
    """The report, checked by the library; nothing is sent.

    Args:
        dashboard: The definition.
        entity: W&B user or team.
        project: W&B project.

    Raises:
        BackendError: The extra is missing.
    """
    _, reports = _libraries()
    blocks: list[Any] = [reports.TableOfContents(), reports.P(text=dashboard.text)]
    for section in dashboard.sections:
        runs = reports.Runset(entity=entity, project=project, name="runs")
        grid = reports.PanelGrid(runsets=[runs], panels=[_panel(chart, reports) for chart in section.charts])
        blocks += [reports.H2(text=section.title), reports.P(text=section.text), grid]
    built: Report = reports.Report(
        entity=entity,
        project=project,
        title=dashboard.title,
        description=dashboard.text,
        blocks=blocks,
        width="fluid",
    )
    return built


def dashboard_options(command: F) -> F:
    """The options of the verb ``dashboard``, for a function that passes them to :func:`run_dashboard`."""
    options = [
        click.option("--entity", help="W&B user or team."),
        click.option("--project", help="W&B project.  [default: the method's name]"),
        click.option("--dry-run", is_flag=True, help="Print the definition and send nothing."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def run_dashboard(dashboard: Dashboard, *, entity: str | None, project: str | None, dry_run: bool) -> None:
    """Print the definition, or make workspace and report in W&B and print where they are.

    Args:
        dashboard: The definition.
        entity: W&B user or team.
        project: W&B project; the method's name by default.
        dry_run: Print only.

    Raises:
        BackendError: The extra is missing, or W&B refuses.
        ConfigError: No entity is named, or there is no key.
    """
    if dry_run:
        click.echo(to_yaml(dashboard), nl=False)
        return
    if not entity:
        raise ConfigError("--entity: name the W&B user or team, or print the definition with --dry-run")
    ConfigError.raise_if(tracking_mistakes(TrackingConfig(wandb="online")))
    where = {"entity": entity, "project": project or dashboard.method}
    workspace, written = build_workspace(dashboard, **where), build_report(dashboard, **where)
    try:
        click.echo(workspace.save().url)  # type: ignore[no-untyped-call]  # the library has types in part
        click.echo(written.save().url)
    except Exception as error:  # whatever the server or the network says
        raise BackendError(f"W&B: {' '.join(str(error).split())}") from error
