"""Runs a study and writes what came out: results.json, table.md, frame.parquet, page.html, the plots."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from common import config
from common.errors import DataError
from common.files import atomic_path, atomic_write
from common.report.tables import format_number, markdown_table
from common.stats.spread import spread
from common.study.collect import finished_runs, tidy_frame
from common.study.execute import FailedRun, Worker, execute
from common.study.kind import Head, P, R, Report, S, StudyKind
from common.study.page import PAGE, digest, study_page, write_page
from common.study.plan import RunSpec, nested


class Resolved(NamedTuple):
    """A run with its settings as they will be used.

    Args:
        spec: The run.
        config: Its settings, defaults filled in.
    """

    spec: RunSpec
    config: Any


def resolve(kind: StudyKind[S, P, R], plan: Sequence[RunSpec]) -> list[Resolved]:
    """Load the config of every run, so that mistakes show before anything is prepared.

    Args:
        kind: The method.
        plan: The runs.

    Raises:
        ConfigError: A setting is wrong, or arms that are compared cannot be.
    """
    resolved = []
    compared: dict[tuple[str, str], dict[str, Any]] = {}
    for spec in plan:
        own = {kind.backbone_key: spec.backbone, "seed": spec.seed, "data": "prepared"}
        loaded = config.load(kind.config_class, None, base=nested(spec.config, own), renamed=kind.renamed)
        compared.setdefault((spec.backbone, spec.tag), {})[spec.arm] = loaded
        resolved.append(Resolved(spec, loaded))
    for arms in compared.values():
        kind.check_arms(arms)
    return resolved


def complete(resolved: Sequence[Resolved], fingerprint: Callable[[Any], str]) -> list[RunSpec]:
    """Runs whose settings hold all that decides their result, so that they are done again when it changes.

    Paths are left out, as where things lie decides nothing.

    Args:
        resolved: The runs.
        fingerprint: Hash of what a run of a config reads.
    """
    return [
        dataclasses.replace(spec, config={**config.to_dict(loaded), "data_fingerprint": fingerprint(loaded)})
        for spec, loaded in resolved
    ]


def settings_of(spec: RunSpec) -> dict[str, Any]:
    """The settings of a completed run, for a worker to load its config from.

    Where it is tracked its group is the study, and its tags say which run of the study it is.
    """
    own = {key: value for key, value in spec.config.items() if key != "data_fingerprint"}
    tracking = own.get("tracking") or {}
    named = [spec.study, spec.backbone, spec.arm, *([spec.tag] if spec.tag else [])]
    tags = dict.fromkeys([*tracking.get("tags", []), *(name for name in named if name)])
    return own | {
        "tracking": {**tracking, "group": tracking.get("group") or spec.study or None, "tags": list(tags)}
    }


def write_results(
    kind: StudyKind[S, P, R],
    study: S,
    prepared: P,
    plan: Sequence[RunSpec],
    out: Path,
    head: Head,
    *,
    report: Callable[[str], None],
    again: bool = False,
) -> str:
    """Write results.json, table.md, frame.parquet, page.html and the plots, unless they hold these runs.

    Args:
        kind: The method.
        study: The study.
        prepared: What was prepared for it.
        plan: Its runs, completed.
        out: Its folder.
        head: What was run.
        report: Called with a line for what takes long.
        again: Write them in any case.

    Returns:
        The table.

    Raises:
        DataError: No run of the main matrix is finished.
    """
    found = summarise(kind, study, prepared, plan, out, head)
    if found is None:
        raise DataError(f"{out}: no run of the main matrix is finished, so there is nothing to compare")
    content = json.dumps({"study": study.name, "rows": kind.rows(found)}, indent=1) + "\n"
    results, table, page = out / "results.json", out / "table.md", out / PAGE
    mark = digest(content, plan, out)
    if (
        not again
        and all(file.is_file() for file in (table, results, page))
        and results.read_text() == content
        and mark in page.read_text()
    ):
        return table.read_text()
    report("comparing the arms")
    text = kind.table(found)
    draw(kind, found, out)
    with atomic_path(out / "frame.parquet") as path:
        pq.write_table(found.frame, path)
    atomic_write(table, text)
    atomic_write(page, study_page(kind, found, plan, out, head, mark=mark))
    atomic_write(results, content)
    return text


def summarise(
    kind: StudyKind[S, P, R], study: S, prepared: P, plan: Sequence[RunSpec], out: Path, head: Head
) -> Report[S, P, R] | None:
    """What the finished runs of a plan say; None where none of the main matrix is finished."""
    runs = finished_runs(plan, out)
    main = [run for run in runs if not run.spec.tag]
    if not main:
        return None
    frame = tidy_frame(study.name, runs, kind.measure)
    return Report(head, study, prepared, runs, frame, kind.resampler(main))


def draw(kind: StudyKind[S, P, R], report: Report[S, P, R], out: Path) -> list[Path]:
    """Draw every plot that the runs have data for; returns the files."""
    from common.report.plots import save_figure

    written = []
    for name in kind.plots:
        figure = kind.plots[name](report=report)
        if figure is not None:
            written.append(out / f"{name}.png")
            save_figure(figure, written[-1])
    return written


def reproduce(
    kind: StudyKind[S, P, R],
    study: S,
    prepared: P,
    plan: Sequence[RunSpec],
    out: Path,
    head: Head,
    *,
    worker: Worker,
    workers: int = 2,
    threads: int = 1,
    report: Callable[[str], None],
) -> tuple[str | None, list[FailedRun]]:
    """Do the runs of a plan that are not done yet, and write what came out.

    Args:
        kind: The method.
        study: The study.
        prepared: What was prepared for it.
        plan: Its runs, completed.
        out: Its folder.
        head: What was run.
        worker: Does one run.
        workers: Runs at a time.
        threads: Torch threads of each.
        report: Called with lines of progress.

    Returns:
        The table, None where no run of the main matrix is finished; and the runs that failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    failures = execute(plan, worker, out, workers=workers, threads=threads, tidy=kind.tidy, report=report)
    if not any(not run.spec.tag for run in finished_runs(plan, out)):
        write_page(study_page(kind, None, plan, out, head), out / PAGE)
        return None, failures
    return write_results(kind, study, prepared, plan, out, head, report=report), failures


def tuning_table(kind: StudyKind[S, P, R], plan: Sequence[RunSpec], out: Path, command: str) -> str:
    """The settings of a grid, the best on the validation rows first; test rows are not looked at.

    Args:
        kind: The method.
        plan: The runs of the grid.
        out: Their folder; tuning.md is written into it.
        command: The command that makes it again.
    """
    groups: dict[tuple[str, ...], list[float]] = {}
    metric = ""
    for run in finished_runs(plan, out):
        metric, value = kind.validated(run)
        if value is not None:
            key = (run.spec.backbone, run.spec.arm, run.spec.tag.partition(":")[2])
            groups.setdefault(key, []).append(value)
    found = sorted(((spread(values), key) for key, values in groups.items()), key=lambda x: -x[0].mean)
    rows = [
        [*key, f"{100 * s.mean:.3f}", format_number(100 * s.deviation, 3), str(s.seeds)] for s, key in found
    ]
    table = markdown_table(["backbone", "arm", "settings", f"valid {metric} x 100", "±", "seeds"], rows)
    text = f"# Settings by {metric} on the validation rows\n\n- command: `{command}`\n\n{table}\n"
    atomic_write(out / "tuning.md", text)
    return text
