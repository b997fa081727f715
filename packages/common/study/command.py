"""The verbs ``study`` and ``report`` of a method's command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from common.cli import report
from common.errors import DataError, suggest

if TYPE_CHECKING:
    from common.study.execute import FailedRun
    from common.study.kind import P, R, S, StudyKind

Action = Literal["run", "report", "tune"]
F = TypeVar("F", bound=Callable[..., Any])

SINGLE_RUN = "train"
"""The YAML file among the studies that describes a single run."""

STUDY_FILE, ASKED_FILE = "study.yaml", "asked.json"
"""Copy of the study's file in its folder, and how it was run."""


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


def report_options(command: F) -> F:
    """The argument and option of the verb ``report``, for a function that calls :func:`run_report`."""
    options = [
        click.argument("target", metavar="RUN_OR_STUDY"),
        click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="File to write."),
        click.option("--force", is_flag=True, help="Replace it, whatever it is."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def study_file(kind: StudyKind[S, P, R], file: str) -> Path:
    """The YAML file of a study, by its name or path.

    Args:
        kind: The method.
        file: A YAML file, or the name of one in experiments/.

    Raises:
        DataError: There is no such study.
    """
    folder = Path("experiments") / kind.area
    path = Path(file) if file.endswith((".yaml", ".yml")) else folder / f"{file}.yaml"
    if not path.is_file() or path == folder / f"{SINGLE_RUN}.yaml":
        known = sorted(found.stem for found in folder.glob("*.yaml") if found.stem != SINGLE_RUN)
        there = f"{folder} has {', '.join(known)}" if known else f"there is no {folder} here"
        raise DataError(f"no study {file!r}{suggest(file, known)}; {there}, or give a YAML file")
    return path


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

    return load(kind.study_class, study_file(kind, file))


@dataclass(frozen=True)
class Asked:
    """With what a study was run last, beside its file.

    Args:
        data: Folder of the data set's files, where one was named.
        seeds: Number of seeds, where it was named.
        workers: Runs at a time.
        command: The command that makes it again.
    """

    data: str | None
    seeds: int | None
    workers: int
    command: str


def _remember(file: Path, asked: Asked, out: Path) -> None:
    """Leave the study and how it was run in its folder, for whoever reports on the folder."""
    from common.files import atomic_write

    out.mkdir(parents=True, exist_ok=True)
    for name, text in (
        (STUDY_FILE, file.read_text()),
        (ASKED_FILE, json.dumps(vars(asked), indent=1) + "\n"),
    ):
        if not (out / name).is_file() or (out / name).read_text() != text:
            atomic_write(out / name, text)


def _asked(folder: Path) -> Asked:
    try:
        return Asked(**json.loads((folder / ASKED_FILE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder / ASKED_FILE}: cannot be read ({error}); run the study again") from error


def report_folder(kind: StudyKind[S, P, R], target: str) -> Path:
    """The folder of a run or of a study that has been run.

    Args:
        kind: The method.
        target: The folder, or the name or file of a study whose folder is in runs/.

    Raises:
        DataError: There is none.
    """
    from common.study.page import is_run

    folder = Path(target)
    if not folder.is_dir():
        study = find_study(kind, target)
        folder = Path("runs") / f"{kind.area}-{study.name}"
    if is_run(folder) or (folder / STUDY_FILE).is_file():
        return folder
    hint = f"`{kind.command} train` makes a run and `{kind.command} study` a study"
    raise DataError(f"{folder}: holds neither a run (record.json) nor a study ({STUDY_FILE}); {hint}")


def run_report(kind: StudyKind[S, P, R], *, target: str, out: Path | None, force: bool = False) -> int:
    """Write the page of a run or study, and print where it lies.

    Args:
        kind: The method.
        target: Folder of a run or study, or the name or file of a study whose folder is in runs/.
        out: The file; page.html in the folder by default.
        force: Whether a file that is there and no page is replaced.

    Returns:
        Exit code.

    Raises:
        UserError: There is no such run or study, or what its runs read has changed.
    """
    from common.config import load
    from common.files import check_output
    from common.study.kind import Head
    from common.study.page import PAGE, is_page, is_run, run_page, study_page, write_page
    from common.study.results import complete, resolve, summarise

    folder = report_folder(kind, target)
    path = out or folder / PAGE
    check_output(path, made=is_page, force=force)
    if is_run(folder):
        write_page(run_page(kind, folder, target=path), path)
        click.echo(path)
        return 0
    study, asked = load(kind.study_class, folder / STUDY_FILE), _asked(folder)
    plan = study.plan(asked.seeds)
    resolved = resolve(kind, plan)
    found = None
    if any(folder.glob("*/record.json")):
        source = Path(asked.data) if asked.data is not None else None
        prepared = kind.prepare(study, source, folder, workers=asked.workers, report=report)
        plan = complete(resolved, lambda config: kind.fingerprint(prepared, config))
    head = Head(study.name, study.description, asked.command, len({spec.key for spec in plan}), asked.workers)
    if any(folder.glob("*/record.json")):
        found = summarise(kind, study, prepared, plan, folder, head)
    write_page(study_page(kind, found, plan, folder, head, target=path), path)
    click.echo(path)
    return 0


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
        action: ``run`` does the runs that are not done and prints the table; ``report`` makes table, plots
            and page again from the runs that are; ``tune`` runs the study's grid, ranked on validation rows.
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
    if action == "run" or (action == "report" and not (out / STUDY_FILE).is_file()):
        asked = Asked(str(data) if data is not None else None, seeds, workers, command)
        _remember(study_file(kind, file), asked, out)
    head = Head(study.name, study.description, command, len({spec.key for spec in plan}), workers)
    worker = kind.worker(prepared, out)
    failures: list[FailedRun] = []
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
