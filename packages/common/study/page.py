"""The page of a study and of a run: what both methods' pages share."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.machine import describe_hardware
from common.report.page.charts import Chart, line_chart, thin
from common.report.page.render import Page, Section, Titled, render
from common.report.panels import Panel, Series
from common.report.tables import MISSING, Table, format_seconds
from common.study.collect import Measure, Run, mean_history
from common.study.execute import is_done
from common.study.kind import Head, P, R, Report, S, StudyKind
from common.study.plan import RunSpec
from common.training.record import Record

PAGE = "page.html"
"""Name of the page in the folder of a study or run."""


def unfinished(plan: Sequence[RunSpec], out: Path) -> list[str]:
    """A line for every planned run that is not finished: failed and why, stopped, or not begun.

    Args:
        plan: The runs.
        out: The folder of the study.
    """
    found = []
    for spec in {spec.key: spec for spec in plan}.values():
        folder = out / spec.key
        if is_done(spec, out):
            continue
        if (folder / "error.txt").is_file():
            lines = (folder / "error.txt").read_text().strip().splitlines()
            state = f"failed: {lines[-1] if lines else 'no message'}"
        elif (folder / "record.json").is_file():
            state = "stopped, or of other settings or data than the study's"
        else:
            state = "not begun" if not folder.is_dir() else "begun, no record yet"
        found.append(f"{spec.key}: {state}")
    return found


def _missing(lines: Sequence[str], planned: int, most: int = 12) -> list[str]:
    if not lines:
        return []
    shown = [f"Unfinished: {len(lines)} of {planned} runs.", *(f"Run {line}." for line in lines[:most])]
    if len(lines) > most:
        shown.append(f"... and {len(lines) - most} more runs, all in the table of runs.")
    return shown


def digest(results: str, plan: Sequence[RunSpec], out: Path) -> str:
    """What the page of a study depends on: results, and the state of every planned run."""
    content = json.dumps([results, [spec.hash for spec in plan], unfinished(plan, out)])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def study_page(
    kind: StudyKind[S, P, R],
    report: Report[S, P, R] | None,
    plan: Sequence[RunSpec],
    out: Path,
    head: Head,
    *,
    target: Path | None = None,
    mark: str = "",
) -> str:
    """The page of a study, as HTML.

    Args:
        kind: The method.
        report: What its finished runs say; None where no run of the main matrix is finished.
        plan: Its runs, completed.
        out: Its folder.
        head: What was run.
        target: The file that the page is for, which links are relative to; page.html in ``out`` by default.
        mark: Its digest.
    """
    target = target or out / PAGE
    chips: list[str] = []
    lines = unfinished(plan, out)
    missing = _missing(lines, head.planned)
    states = []
    if lines:
        rows = [line.split(": ", 1) for line in lines]
        states.append(Titled("Runs that are not finished", Table(["run", "state"], rows, "ll")))
    if report is None:
        answer = ["Nothing can be said yet: no run of the main matrix is finished."]
        sections = [Section("What was asked for", facts=[("command", head.command)], folded=states)]
    else:
        answer = kind.answer(report)
        missing += kind.gaps(report)
        found = (kind.page_sections[name](report=report) for name in kind.page_sections)
        sections = [section for section in found if section is not None]
        facts = kind.facts(report)
        done, seeds = {run.folder for run in report.runs}, {run.spec.seed for run in report.runs}
        chips = [f"{len(done)} of {head.planned} runs", f"{len(seeds)} seeds", facts["hardware"]]
        origin = _origin(report.runs, target)
        made = [
            (name, _relative(out / name, target)) for name in ("table.md", "results.json", "frame.parquet")
        ]
        sections.append(
            Section(
                "How it was made",
                text=[f"How to read the numbers: {facts.pop('reading')}."],
                facts=[*facts.items(), *origin],
                folded=[*states, Titled("Every finished run", _run_table(report.runs))],
                links=[*made, *_records(report.runs, target)],
            )
        )
    return render(Page(kind.title, head.study, head.description, answer, missing, sections, mark, chips))


def _relative(path: Path, target: Path) -> str:
    return Path(os.path.relpath(path, target.parent)).as_posix()


def _records(runs: Sequence[Run], target: Path) -> list[tuple[str, str]]:
    folders = {run.folder: run for run in runs}
    return [(f"record of {folder.name}", _relative(folder / "record.json", target)) for folder in folders]


def _origin(runs: Sequence[Run], target: Path) -> list[tuple[str, str]]:
    """Where runs come from: commit, versions, fingerprints, time; each value that occurs, once."""
    records = [run.record for run in runs]

    def every(values: Iterable[str]) -> str:
        return "; ".join(dict.fromkeys(values))

    commits = every(
        f"{record.commit or 'not a checkout'}{' with changes' if record.dirty else ''}" for record in records
    )
    versions = every(", ".join(f"{k} {v}" for k, v in record.versions.items()) for record in records)
    prints = every(f"{name} {value}" for record in records for name, value in record.inputs.items())
    prints = prints or every(str(run.spec.config.get("data_fingerprint", "not recorded")) for run in runs)
    times = sorted([record.started for record in records] + [record.finished or "" for record in records])
    return [
        ("seeds", every(str(run.spec.seed) for run in runs)),
        ("commit", commits),
        ("versions", versions),
        ("machines", every(describe_hardware(record.hardware) for record in records)),
        ("data fingerprints", prints),
        ("time", f"{next((time for time in times if time), MISSING)} to {times[-1] or MISSING}"),
    ]


def _run_table(runs: Sequence[Run]) -> Table:
    rows = []
    for run in {run.folder: run for run in runs}.values():
        record = run.record
        memory = f"{record.peak_memory_bytes / 2**30:.2f}" if record.peak_memory_bytes else MISSING
        seconds = format_seconds(record.wall_seconds) if record.wall_seconds is not None else MISSING
        rows.append([run.folder.name, str(record.seed), str(record.parameters), seconds, memory,
                     record.finished or MISSING, record.identity])  # fmt: skip
    return Table(["run", "seed", "parameters", "time", "GiB", "finished", "identity"], rows, "lrrrrll")


def curves(arms: Mapping[str, Sequence[Run]], columns: Mapping[str, str]) -> list[Chart]:
    """Figures over training, mean over the seeds of each arm, a chart a figure.

    Args:
        arms: Runs of each line, by its name.
        columns: Titles of the charts by the column of metrics.csv.

    Returns:
        The charts of what was logged at least twice and changed.
    """
    charts = []
    for column, title in columns.items():
        series = []
        for place, (name, runs) in enumerate(arms.items()):
            steps, means = mean_history(runs, column)
            if len(steps) > 1:
                series.append(Series(name, *thin(steps, means), colour=place))
        if any(len(set(one.y)) > 1 for one in series):
            charts.append(line_chart(Panel(title, series, "step")))
    return charts


def thinned(panel: Panel) -> Panel:
    """A panel whose curves have no more points than are drawn."""
    series = []
    for one in panel.series:
        numbers = [float(x) for x in one.x]
        x, y = thin(numbers, one.y)
        series.append(Series(one.name, x, y, dashed=one.dashed, colour=one.colour))
    return Panel(panel.title, series, panel.x_label, panel.y_label, panel.zero)


THINNED = "Where more was logged than is drawn, a point is the mean of equally many that follow each other."


def load_single(folder: Path) -> Run:
    """A run, finished or not, from its folder.

    Raises:
        DataError: The folder is no run.
    """
    record = Record.load(folder / "record.json")
    name = str(record.config.get("name") or folder.name)
    return Run(RunSpec(folder.name, name, name, record.seed or 0, "", dict(record.config)), folder, record)


def run_page(kind: StudyKind[S, P, R], folder: Path, *, target: Path | None = None) -> str:
    """The page of one run, as HTML.

    Args:
        kind: The method.
        folder: The run folder.
        target: The file that the page is for; page.html in the folder by default.

    Raises:
        DataError: The folder is no run.
    """
    target = target or folder / PAGE
    run = load_single(folder)
    record = run.record
    missing = [f"{name} has no value: {reason}." for name, reason in record.reasons.items()]
    if record.complete:
        answer = _headline(kind, record)
        answer.append(f"Finished on {record.finished} after {format_seconds(record.wall_seconds or 0.0)}.")
    else:
        answer = ["This run is not finished."]
        missing = ["No metrics: they are measured at the end of the run.", *missing]
    logged = [name for name in _columns(folder) if name.count("/") == 1]
    charts = curves({run.spec.key: [run]}, {name: name for name in logged})
    found = (kind.run_sections[name](run=run) for name in kind.run_sections)
    sections = [
        *_metric_sections(kind, record),
        *([Section("Over training", text=[THINNED], charts=charts)] if charts else []),
        *(section for section in found if section is not None),
        Section("Settings", folded=[Titled("Every setting", _settings(record.config))]),
        Section(
            "How it was made",
            facts=[("command", record.command), *_origin([run], target)],
            links=[(name, _relative(folder / name, target)) for name in _files(folder)],
        ),
    ]
    question = f"One run of {kind.command}: {record.command}"
    return render(Page(f"{kind.command} run", folder.name, question, answer, missing, sections))


def _headline(kind: StudyKind[S, P, R], record: Record) -> list[str]:
    main = [key for key in record.metrics if not kind.measure(key).bucket and key.startswith("test/")]
    shown = ", ".join(f"{key.removeprefix('test/')} {_value(record.metrics[key])}" for key in main[:4])
    return [f"On the test split: {shown}."] if shown else []


def _value(value: float | None) -> str:
    return MISSING if value is None else f"{value:.5g}"


def _columns(folder: Path) -> list[str]:
    path = folder / "metrics.csv"
    if not path.is_file():
        return []
    with path.open() as file:
        return file.readline().strip().split(",")


def _metric_sections(kind: StudyKind[S, P, R], record: Record) -> list[Section]:
    """A table for every split: a row a bucket, a column a metric."""
    splits: dict[str, dict[str, dict[str, str]]] = {}
    for key, value in record.metrics.items():
        found: Measure = kind.measure(key)
        splits.setdefault(found.split, {}).setdefault(found.bucket, {})[found.metric] = _value(value)
    tables = []
    for split, buckets in splits.items():
        names = list(dict.fromkeys(name for row in buckets.values() for name in row))
        rows = [[bucket or "all", *(row.get(name, "") for name in names)] for bucket, row in buckets.items()]
        tables.append(Titled(split, Table([split, *names], rows)))
    return [Section("Metrics", tables=tables)] if tables else []


def _settings(config: Mapping[str, Any], prefix: str = "") -> Table:
    rows: list[list[str]] = []

    def walk(values: Mapping[str, Any], at: str) -> None:
        for name, value in values.items():
            if isinstance(value, Mapping) and value:
                walk(value, f"{at}{name}.")
            else:
                rows.append([f"{at}{name}", json.dumps(value, ensure_ascii=False, default=str)])

    walk(config, prefix)
    return Table(["setting", "value"], rows, "ll")


def _files(folder: Path) -> list[str]:
    names = ("record.json", "config.yaml", "metrics.csv", "attention.json", "diagnosis.json", "log.txt")
    return [name for name in names if (folder / name).is_file()]


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return (folder / "record.json").is_file() and (folder / "config.yaml").is_file()


def is_page(path: Path) -> bool:
    """Whether a file is a page like those that are written here.

    Args:
        path: The file.
    """
    with path.open("rb") as file:
        return b'<meta name="digest"' in file.read(1_000)


def write_page(text: str, path: Path) -> Path:
    """Write a page whole or not at all.

    Raises:
        DataError: The folder is not there.
    """
    from common.files import atomic_write

    if not path.parent.is_dir():
        raise DataError(f"{path.parent}: there is no such folder to write {path.name} into")
    atomic_write(path, text)
    return path
