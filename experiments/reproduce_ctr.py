"""Run a click-through study and print its table.

    python experiments/reproduce_ctr.py --study world|kuairand|movielens|PATH.yaml [--data PATH] [--seeds 3]

Prepares the data once, trains what is not trained yet (it may be stopped and started again at any time),
and writes results.json, table.md and PNG plots. A second call only prints the table.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from common import config
from common.cli import exit_on_mistake
from common.errors import DataError, suggest
from common.files import atomic_write
from common.report.tables import format_number, markdown_table
from common.stats.paired import spread
from common.study.engine import RunSpec, Study, Worker, collect, is_done, nested, run, say
from common.training.fit import forget_optimizer
from lain.formats import prepare
from lain.study.comparison import Comparison, read_runs
from lain.study.report import Head, study_plots, study_table
from lain.training.config import TrainConfig
from lain.training.run import train_run
from lain.world import WorldConfig, make_world

STUDIES = Path(__file__).resolve().parent / "ctr"

BACKBONE_KEY, SEED_KEY, DATA_KEY = "model.name", "seed", "data"
"""Where the training config keeps what the matrix varies."""


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Args:
        title: Its name for readers.
        files: What must lie in its folder.
        where: Where to get it.
    """

    title: str
    files: tuple[str, ...]
    where: str


SOURCES = {
    "kuairand": Source(
        "KuaiRand-Pure",
        (
            "val.parquet",
            "test.parquet",
            "user_sequences.parquet",
            "item_features.parquet",
            "user_features.parquet",
        ),
        "https://kuairand.com",
    ),
    "movielens": Source(
        "MovieLens (ml-latest-small)",
        ("ratings.csv", "movies.csv"),
        "https://grouplens.org/datasets/movielens/latest/",
    ),
    "reczoo": Source(
        "a data set in the reczoo x2 layout",
        ("train.parquet", "valid.parquet", "test.parquet", "user_info.parquet", "item_info.parquet"),
        "https://huggingface.co/reczoo",
    ),
}


def find_study(name: str) -> Study:
    """Load a study by name or path.

    Raises:
        DataError: There is no such study.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else STUDIES / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in STUDIES.glob("*.yaml"))
        there = f"there are {', '.join(known)}, or give a YAML file"
        raise DataError(f"no study {name!r}{suggest(name, known)}; {there}")
    return Study.load(path)


def check_source(kind: str, path: Path | None) -> Path:
    """The folder with the source files of a data set.

    Raises:
        DataError: A file is missing; says which files to put where.
    """
    source = SOURCES[kind]
    folder = path or Path("data") / kind
    missing = [name for name in source.files if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder}: no {', '.join(missing)}; get {source.title} ({source.where}), put "
            f"{', '.join(source.files)} there, or name their folder with --data (DATA= of make)"
        )
    return folder


def prepare_data(options: Mapping[str, Any], source: Path | None, folder: Path) -> Path:
    """Prepare the data of a study into ``folder/FORMAT``, unless that was done with the same options.

    Args:
        options: ``format`` and the options of that format.
        source: Folder of the source files, where the format needs one.
        folder: Where prepared data sets lie.

    Returns:
        The prepared data set.
    """
    rest = dict(options)
    kind = str(rest.pop("format", ""))
    known = ["world", *SOURCES]
    if kind not in known:
        raise DataError(f"data.format: {kind!r} is not one of {', '.join(known)}{suggest(kind, known)}")
    path, marker = folder / kind, folder / f"{kind}.json"
    wanted: dict[str, Any] = {"options": dict(options)}
    if kind != "world":
        source = check_source(kind, source)
        wanted["source"] = {name: (source / name).stat().st_size for name in SOURCES[kind].files}
    if path.is_dir() and marker.is_file() and json.loads(marker.read_text()) == wanted:
        return path
    marker.unlink(missing_ok=True)
    say(f"preparing {kind} into {path}")
    if kind == "world":
        make_world(config.load(WorldConfig, None, base=rest), path)
    elif source is not None:
        prepare(kind, source, path, **rest)
    atomic_write(marker, json.dumps(wanted, indent=1))
    return path


def train(spec: RunSpec, folder: Path, *, data: Path) -> None:
    """Train and test one run, in a worker process."""
    settings = {key: value for key, value in spec.config.items() if key != "data_fingerprint"}
    train_run(config.load(TrainConfig, None, base={**settings, DATA_KEY: str(data)}), folder)


def resolve(plan: list[RunSpec], fingerprint: str) -> list[RunSpec]:
    """Complete every run's settings with the defaults of the training config, so that mistakes show at once.

    The settings then hold all that decides the result: a run is done again when a default changes.
    """
    resolved: dict[str, dict[str, Any]] = {}
    for spec in plan:
        if spec.key not in resolved:
            own = {BACKBONE_KEY: spec.backbone, SEED_KEY: spec.seed, DATA_KEY: "prepared"}
            loaded = config.load(TrainConfig, None, base=nested(spec.config, own))
            resolved[spec.key] = {**config.to_dict(loaded), "data_fingerprint": fingerprint}
    return [dataclasses.replace(spec, config=resolved[spec.key]) for spec in plan]


def describe(path: Path) -> tuple[str, str]:
    """A prepared data set in words, and its fingerprint."""
    about = json.loads((path / "dataset.json").read_text())
    rows = ", ".join(f"{count} {split}" for split, count in about["splits"].items())
    words = f"{about['name']}, {about['num_users']} users, {about['num_items']} items, rows: {rows}"
    return f"{words}; fingerprint {about['fingerprint']}", str(about["fingerprint"])


def write_results(study: Study, plan: list[RunSpec], out: Path, head: Head, *, again: bool = False) -> str:
    """Write results.json, table.md and the plots, unless they hold these runs already.

    Returns:
        The table.
    """
    content = json.dumps({"study": study.name, "rows": collect(plan, out)}, indent=1) + "\n"
    results, table = out / "results.json", out / "table.md"
    if not again and table.is_file() and results.is_file() and results.read_text() == content:
        return table.read_text()
    say("comparing the arms")
    runs = read_runs(plan, out)
    comparison = Comparison(runs)
    text = study_table(head, comparison, runs)
    study_plots(comparison, runs, out)
    atomic_write(table, text)
    atomic_write(results, content)
    return text


def reproduce(
    study: Study,
    *,
    out: Path,
    worker: Worker,
    plan: list[RunSpec],
    head: Head,
    workers: int = 2,
    threads: int = 1,
    again: bool = False,
    echo: Callable[[str], None] = click.echo,
) -> int:
    """Do the runs of a plan and print the table.

    Returns:
        Exit code: 1 when a run failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    failures = run(plan, worker, out, workers=workers, threads=threads, tidy=forget_optimizer)
    if any(is_done(spec, out) and not spec.tag for spec in plan):
        echo(write_results(study, plan, out, head, again=again))
    for failure in failures:
        say(f"error: {failure.spec.key}: {failure.message} (see {out / failure.spec.key / 'error.txt'})")
    return int(bool(failures))


def tuned(plan: list[RunSpec], worker: Worker, out: Path, again: str, workers: int, threads: int) -> int:
    """Run a grid and print its settings, the best on the validation rows first; test rows are not looked at.

    Returns:
        Exit code: 1 when a run failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    failures = run(plan, worker, out, workers=workers, threads=threads, tidy=forget_optimizer)
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in collect(plan, out, prefix="valid/"):
        if row["metrics"].get("auc") is not None:
            key = (row["backbone"], row["arm"], row["tag"].partition(":")[2])
            groups.setdefault(key, []).append(float(row["metrics"]["auc"]))
    found = sorted(((spread(values), key) for key, values in groups.items()), key=lambda x: -x[0].mean)
    rows = [
        [*key, f"{100 * s.mean:.3f}", format_number(100 * s.deviation, 3), str(s.seeds)] for s, key in found
    ]
    table = markdown_table(["backbone", "arm", "settings", "valid AUC x 100", "±", "seeds"], rows)
    text = f"# Settings by AUC on the validation rows\n\n- command: `{again}`\n\n{table}\n"
    atomic_write(out / "tuning.md", text)
    click.echo(text)
    for failure in failures:
        say(f"error: {failure.spec.key}: {failure.message} (see {out / failure.spec.key / 'error.txt'})")
    return int(bool(failures))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--study", "name", default="world", show_default=True, help="Name of a study, or a YAML file.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder with the source files of the data set.")
@click.option("--seeds", type=click.IntRange(1), help="Use seeds 0 .. N-1 instead of those of the study.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Runs at a time.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Torch threads each.")
@click.option("--out", type=click.Path(path_type=Path), help="Output folder.  [default: runs/ctr-STUDY]")
@click.option("--report", is_flag=True, help="Make table and plots again, though no run is new.")
@click.option("--tune", is_flag=True, help="Run the study's grid instead; ranked on validation rows.")
@click.option("--dry-run", is_flag=True, help="Print the runs with their settings and stop.")
def command(
    name: str,
    data: Path | None,
    seeds: int | None,
    workers: int,
    threads: int,
    out: Path | None,
    report: bool,
    tune: bool,
    dry_run: bool,
) -> None:
    """Train the arms of a click-through study and print how they differ by history length.

    Prepared data goes to data/ beside the output folder; every run has a folder of its own in the output
    folder. Stop it at any time: the same command resumes. The second call only prints the table.
    """
    study = find_study(name)
    plan = study.tuning() if tune else study.plan(seeds)
    if dry_run:
        for spec in resolve(plan, "not prepared"):
            click.echo(f"# {spec.key}\n{config.to_yaml(spec.config)}")
        return
    out = out or Path("runs") / f"ctr-{study.name}"
    resolve(plan, "")  # mistakes in the settings show before anything is prepared
    prepared = prepare_data(study.data, data, out.parent / "data")
    words, fingerprint = describe(prepared)
    plan = resolve(plan, fingerprint)
    again = f"python experiments/reproduce_ctr.py --study {Path(name).name}"
    again += (" --data PATH" if data is not None else "") + (f" --seeds {seeds}" if seeds else "")
    head = Head(study.name, study.description, again, words, len({spec.key for spec in plan}), workers)
    worker = partial(train, data=prepared.resolve())
    if tune:
        raise SystemExit(tuned(plan, worker, out / "tuning", again + " --tune", workers, threads))
    code = reproduce(
        study, out=out, worker=worker, plan=plan, head=head, workers=workers, threads=threads, again=report
    )
    raise SystemExit(code)


def main() -> None:
    """Run the command; a user's mistake is one line and exit code 2."""
    with exit_on_mistake():
        command.main(standalone_mode=False)


if __name__ == "__main__":
    main()
