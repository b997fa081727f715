"""The verb ``study`` of a method's command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from common.cli import report
from common.errors import DataError, suggest

if TYPE_CHECKING:
    from common.study.execute import Failure
    from common.study.kind import P, R, S, StudyKind

Action = Literal["run", "report", "tune"]
F = TypeVar("F", bound=Callable[..., Any])

SINGLE_RUN = "train"
"""The YAML file among the studies that describes a single run."""


def study_options(command: F) -> F:
    """The arguments and options of the verb, for a function that passes them to :func:`run_study`."""
    options = [
        click.argument("file", metavar="FILE"),
        click.argument("action", default="run", type=click.Choice(["run", "report", "tune"])),
        click.option("--data", type=click.Path(path_type=Path), help="Folder of the data set's files."),
        click.option("--seeds", type=click.IntRange(1), help="Seeds 0 .. N-1 instead of the study's own."),
        click.option(
            "--workers", type=click.IntRange(1), default=2, show_default=True, help="Runs at a time."
        ),
        click.option(
            "--threads", type=click.IntRange(1), default=1, show_default=True, help="Torch threads each."
        ),
        click.option("--out", type=click.Path(path_type=Path), help="Output folder, by default in runs/."),
        click.option("--dry-run", is_flag=True, help="Print the runs with their settings and stop."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def find_study(kind: StudyKind[S, P, R], file: str) -> S:
    """Load a study by name or path.

    Args:
        kind: The method.
        file: A YAML file, or the name of one in experiments/.

    Raises:
        DataError: There is no such study.
        ConfigError: All mistakes in it together.
    """
    from common.config import load

    folder = Path("experiments") / kind.area
    path = Path(file) if file.endswith((".yaml", ".yml")) else folder / f"{file}.yaml"
    if not path.is_file() or path == folder / f"{SINGLE_RUN}.yaml":
        known = sorted(found.stem for found in folder.glob("*.yaml") if found.stem != SINGLE_RUN)
        there = f"{folder} has {', '.join(known)}" if known else f"there is no {folder} here"
        raise DataError(f"no study {file!r}{suggest(file, known)}; {there}, or give a YAML file")
    return load(kind.study_class, path)


def run_study(
    kind: StudyKind[S, P, R],
    *,
    file: str,
    action: Action,
    data: Path | None,
    seeds: int | None,
    workers: int,
    threads: int,
    out: Path | None,
    dry_run: bool,
) -> int:
    """Run, report or tune a study, and print the table.

    Args:
        kind: The method.
        file: A YAML file, or the name of one in experiments/.
        action: ``run`` does the runs that are not done and prints the table; ``report`` makes table and plots
            again from the runs that are; ``tune`` runs the study's grid and ranks it on validation rows.
        data: Folder of the data set's files, where the study needs one.
        seeds: Seeds 0 .. ``seeds - 1`` instead of those of the study.
        workers: Runs at a time.
        threads: Torch threads of each.
        out: The folder of the study.
        dry_run: Print the runs with their settings and do nothing.

    Returns:
        Exit code: 1 when a run failed.

    Raises:
        UserError: What the user has to repair, before anything is trained.
    """
    from common.config import to_yaml
    from common.study.execute import execute
    from common.study.kind import Head
    from common.study.results import complete, reproduce, resolve, tuning_table, write_results

    study = find_study(kind, file)
    plan = study.tuning() if action == "tune" else study.plan(seeds)
    resolved = resolve(kind, plan)  # mistakes in the settings show before anything is prepared
    if dry_run:
        runs = complete(resolved, lambda config: "not prepared")
        for spec in {run.key: run for run in runs}.values():
            click.echo(f"# {spec.key}\n{to_yaml(spec.config)}")
        return 0
    command = f"{kind.command} study {Path(file).name}" + (" tune" if action == "tune" else "")
    command += (" --data PATH" if data is not None else "") + (f" --seeds {seeds}" if seeds else "")
    out = out or Path("runs") / f"{kind.area}-{study.name}"
    if action == "report" and not any(out.glob("*/record.json")):
        raise DataError(f"{out}: no run of this study is there; `{command}` does them")
    prepared = kind.prepare(study, data, out, workers=workers, report=report)
    plan = complete(resolved, lambda config: kind.fingerprint(prepared, config))
    head = Head(study.name, study.description, command, len({spec.key for spec in plan}), workers)
    worker = kind.worker(prepared, out)
    failures: list[Failure] = []
    table: str | None
    if action == "report":
        table = write_results(kind, study, prepared, plan, out, head, report=report, again=True)
    elif action == "tune":
        out = out / "tuning"
        out.mkdir(parents=True, exist_ok=True)
        failures = execute(plan, worker, out, workers=workers, threads=threads, tidy=kind.tidy, report=report)
        table = tuning_table(kind, plan, out, command)
    else:
        table, failures = reproduce(
            kind, study, prepared, plan, out, head,
            worker=worker, workers=workers, threads=threads, report=report,
        )  # fmt: skip
    if table is not None:
        click.echo(table)
    for failure in failures:
        report(f"error: {failure.spec.key}: {failure.message} (see {out / failure.spec.key / 'error.txt'})")
    return int(bool(failures))
