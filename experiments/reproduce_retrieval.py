"""Run a retrieval study: mine, write and verify every set, train every arm, evaluate, print the table.

``make reproduce-retrieval STUDY=world`` or ``python experiments/reproduce_retrieval.py --study world``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from causalneg.commands import beside, generate_set, mine_set
from causalneg.data import read_dataset, read_examples, write_dataset, write_examples
from causalneg.mining import MiningRules
from causalneg.study.arms import check_arms
from causalneg.study.report import BM25_FILE, Head, bm25_line, retrieval_rows, study_plots, study_table
from causalneg.text.style import mixed_corpus
from causalneg.training.config import TrainConfig
from causalneg.training.run import Library, train_run
from causalneg.world import WorldConfig, make_world
from common import config
from common.cli import exit_on_mistake
from common.errors import BackendError, ConfigError, DataError, suggest
from common.files import atomic_folder, atomic_write
from common.study.engine import RunSpec, Study, Worker, is_done, nested, run, say
from world_lm import CONTEXT, LIMITS, Lesson, teach

ROOT = Path(__file__).resolve().parents[1]
STUDIES = Path(__file__).parent / "retrieval"

TAUGHT = "world-lm"
"""The writer that is a language model taught by the study."""

BEIR_FILES = ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv")


@dataclass
class RetrievalStudy(Study):
    """A study file of retrieval: what the base class holds, and the sets that arms use.

    An arm names its sets by their names here (``sets: [{path: bm25, count: 15}]``). Sets are made once, with
    one seed, and shared by all seeds of all arms.

    Args:
        sets: How each training set is made: ``{mine: bm25 or dense, ...rules}``, ``{take: queries, from: a
            set}`` (drawn at random), ``{write: rules or naive, artifact: 0..1, from: a mined set, voices:
            rewritten mined negatives per query}``, ``{write: world-lm, from: a mined set,
            temperature: 0.7, batch: 64, engine: an environment with vLLM; without one transformers writes}``.
        teach: The language model that ``world-lm`` writes with, taught the world by the rules: ``{from: a
            mined set, minutes: 20, ...}``, whatever :class:`world_lm.Lesson` knows.
        start: Training of the encoder that all arms start from, by dotted key; empty starts from scratch.
        train_split: Split that is mined and trained on.
        truth_split: Split with every true positive of the training queries, where that is known.
        reference: The arm that others are tested against; beside the main matrix, the first arm of a tag
            that lacks it.
        mixed_share: Share of the corpus in the writer's style in the mixed twin; 0 makes none.
    """

    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    teach: dict[str, Any] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)
    train_split: str = "train"
    truth_split: str | None = None
    reference: str = "bm25"
    mixed_share: float = 0.5

    def __post_init__(self) -> None:
        """Check that every set that is used is defined, and before it is used."""
        super().__post_init__()
        mistakes: list[str] = []
        seen: list[str] = []
        for name, options in self.sets.items():
            kinds = [k for k in ("mine", "take", "write") if k in options]
            if len(kinds) != 1:
                mistakes.append(f"sets.{name}: needs one of mine, take and write")
            if "mine" not in options and options.get("from") not in seen:
                word = f"sets.{name}.from: {options.get('from')!r} is not a set before it"
                mistakes.append(word + suggest(str(options.get("from")), seen))
            if options.get("write") == TAUGHT and not self.teach:
                mistakes.append(
                    f"sets.{name}: {TAUGHT} writes with a model that is taught; give the study teach"
                )
            elif options.get("write") == TAUGHT and self.teach.get("from") not in seen:
                mistakes.append(
                    f"sets.{name}: must come after {self.teach.get('from')!r}, which is learnt from"
                )
            seen.append(name)
        if self.teach:
            learned = self.sets.get(str(self.teach.get("from")), {})
            if "mine" not in learned:
                mistakes.append(f"teach.from: {self.teach.get('from')!r} is not a mined set")
            if self.data.get("format") != "world":
                mistakes.append("teach: what the model learns from is only known of a world")
            try:
                self.lesson()
            except ConfigError as error:
                mistakes += [f"teach.{line}" for line in error.messages]
        for arm, settings in self.arms.items():
            own = nested(self.base, settings)
            used = [str(entry.get("path")) for entry in own.get("sets", [])]
            used += [str(own["voices"])] if own.get("voices") else []
            mistakes += [f"arms.{arm}: no set {u!r}{suggest(u, seen)}" for u in used if u not in seen]
        if self.reference not in self.arms:
            mistakes.append(f"reference: no arm {self.reference!r}{suggest(self.reference, self.arms)}")
        ConfigError.raise_if(mistakes)

    def lesson(self) -> Lesson:
        """How the language model is taught.

        Raises:
            ConfigError: A setting is unknown or out of range.
        """
        return config.load(Lesson, None, base={k: v for k, v in self.teach.items() if k != "from"})


def find_study(name: str) -> RetrievalStudy:
    """Load a study by name or path.

    Raises:
        DataError: There is no such study.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else STUDIES / f"{name}.yaml"
    known = sorted(f.stem for f in STUDIES.glob("*.yaml") if f.stem != "train")
    if not path.is_file() or path.stem == "train":
        there = f"there are {', '.join(known)}, or give a YAML file"
        raise DataError(f"no study {name!r}{suggest(name, known)}; {there}")
    return config.load(RetrievalStudy, path)


@dataclass(frozen=True)
class Prepared:
    """Everything that the runs of a study read.

    Args:
        data: BEIR folder.
        mixed: Its mixed-style twin; None where the study has none.
        sets: File of each set.
        start: Folder of the encoder that all runs start from; None from scratch.
        prints: Hash of each set, and under ``""`` of the data and the start encoder.
    """

    data: Path
    mixed: Path | None
    sets: dict[str, Path]
    start: Path | None
    prints: dict[str, str]

    def fingerprint(self, config: TrainConfig) -> str:
        """Hash of what a run reads: a set that it does not use may come, go or change."""
        used = {"", *(str(entry.path) for entry in config.sets), *map(str, config.diagnose.examples)}
        used |= {str(config.voices)} if config.voices is not None else set()
        return _hash({name: self.prints[name] for name in used})


def _hash(options: Mapping[str, Any]) -> str:
    return hashlib.sha256(_written(options).encode()).hexdigest()[:16]


def _written(options: Mapping[str, Any]) -> str:
    return json.dumps(options, sort_keys=True, default=str)


def _marker(target: Path) -> Path:
    return target.with_name(f".{target.name}.made.json")


def _is_made(target: Path, options: Mapping[str, Any]) -> bool:
    """Whether a target is there and was made with these options."""
    marker = _marker(target)
    return target.exists() and marker.is_file() and marker.read_text() == _written(options)


def _once(target: Path, options: Mapping[str, Any], make: Callable[[], object]) -> str:
    """Make a target unless it was made with the same options; the hash of these either way."""
    if not _is_made(target, options):
        _marker(target).unlink(missing_ok=True)
        say(f"making {target}")
        make()
        atomic_write(_marker(target), _written(options))
    return _hash(options)


def check_source(study: RetrievalStudy, path: Path | None) -> Path:
    """The BEIR folder of a study on real data.

    Raises:
        DataError: A file is missing; says which files to put where.
    """
    folder = path or Path("data") / study.name
    missing = [name for name in BEIR_FILES if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder}: no {', '.join(missing)}; put the BEIR folder of {study.name} there "
            f"({', '.join(BEIR_FILES)} and the qrels of its other splits), or name it with --data "
            "(DATA= of make)"
        )
    return folder


def prepare(study: RetrievalStudy, source: Path | None, out: Path, *, workers: int = 1) -> Prepared:
    """Data, start encoder and sets of a study, each made once.

    Args:
        study: The study.
        source: BEIR folder, where the study is on real data.
        out: Folder of the study.
        workers: Sets that are made at a time.
    """
    options = dict(study.data)
    kind = options.pop("format", "beir")
    mixed: Path | None
    if kind == "world":
        data = out / "data" / "world"
        world = config.load(WorldConfig, None, base=options)
        print_ = _once(data, {"world": config.to_dict(world)}, lambda: make_world(world, data))
        mixed = data / "mixed"
    elif kind == "beir":
        data = check_source(study, source)
        judged = sorted((data / "qrels").glob("*.tsv"))
        print_ = _files_hash([data / "corpus.jsonl", data / "queries.jsonl", *judged])
        mixed = out / "data" / f"{data.name}-mixed" if study.mixed_share else None
        if mixed is not None:
            twin = mixed
            _once(twin, {"from": print_, "share": study.mixed_share}, lambda: _make_mixed(study, data, twin))
    else:
        raise DataError(f"data.format: {kind!r} is not one of world, beir{suggest(kind, ('world', 'beir'))}")
    start = None
    if study.start:
        start = out / "start"
        own = {"sets": [], "candidates": 0, "encoder.kind": study.backbones[0]}
        settings = nested(study.base, own, study.start)
        print_ = _once(
            start, {"data": print_, "config": settings}, partial(_train_start, settings, data, out)
        )
    files = {name: out / "sets" / f"{name}.jsonl" for name in study.sets}
    prints: dict[str, str] = {"": print_}
    waiting: list[_SetOrder] = []
    spoken: list[_SetOrder] = []
    model, taught = out / TAUGHT, {}
    for name, how in study.sets.items():
        wanted = {"from": prints[how.get("from", "")], **{k: v for k, v in how.items() if k != "from"}}
        if how.get("write") == TAUGHT:
            wanted["model"] = taught = {**study.teach, "from": prints[str(study.teach["from"])]}
        source_set = files.get(how.get("from", ""))
        order = _SetOrder(files[name], how, source_set, data, start, study.train_split, study.truth_split)
        prints[name] = _hash(wanted)
        if not _is_made(files[name], wanted):
            orders = waiting
            if how.get("write") == TAUGHT:
                _python_of(name, how)  # that it is missing is said before much time is spent
                orders = spoken
            orders.append(dataclasses.replace(order, wanted=wanted))
    _make_sets(waiting, workers)
    if spoken:
        # By themselves and with all threads: each takes longer than all other sets together.
        torch.set_num_threads(workers)
        learned = files[str(study.teach["from"])]
        _once(model, taught, lambda: teach(data, learned, model, study.lesson()))
        for order in spoken:
            say(f"making {order.path}")
            _write_taught(order, model)
    prints[""] = _hash({"trained from": prints[""], "mixed": study.mixed_share})
    return Prepared(data, mixed, files, start, prints)


def _files_hash(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _make_mixed(study: RetrievalStudy, data: Path, out: Path) -> None:
    splits = sorted(path.stem for path in (data / "qrels").glob("*.tsv"))
    dataset = read_dataset(data, splits=splits)
    styled = mixed_corpus(dataset.documents, share=study.mixed_share, seed=0)
    if out.exists():
        with atomic_folder(out, replace=True):
            pass
    write_dataset(out, styled, list(dataset.queries.values()), dataset.qrels)


def _train_start(settings: Mapping[str, Any], data: Path, out: Path) -> None:
    """Train the encoder that every arm starts from, and keep nothing else of its run."""
    own = {"data": str(data), "tests": [], "cache": str(out / "cache"), "name": "start", "out": str(out)}
    loaded = config.load(
        TrainConfig, None, base=nested(settings, own, {"diagnose": {"holdout": 0.0, "examples": []}})
    )
    train_run(loaded, out / "start")
    tidy(out / "start")


@dataclass(frozen=True)
class _SetOrder:
    """A set to make: its file, how, the mined set it is written from, and what else is needed."""

    path: Path
    how: Mapping[str, Any]
    source: Path | None
    data: Path
    start: Path | None
    train_split: str
    truth_split: str | None
    wanted: Mapping[str, Any] = field(default_factory=dict)


def _make_sets(orders: list[_SetOrder], workers: int) -> None:
    """Make sets, several at a time; each as soon as the set it is written from is there."""
    spawn = multiprocessing.get_context("spawn")
    waiting = list(orders)
    running: dict[Future[None], _SetOrder] = {}
    with ProcessPoolExecutor(
        workers, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        while waiting or running:
            absent = {order.path for order in (*waiting, *running.values())}
            for order in [o for o in waiting if o.source not in absent]:
                waiting.remove(order)
                running[pool.submit(_make_set, order)] = order
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                done.result()
                say(f"made {running.pop(done).path}")


def _make_set(order: _SetOrder) -> None:
    """Mine or write one set, unless that was done."""
    how, path = order.how, order.path
    rest = {k: v for k, v in how.items() if k not in ("mine", "write", "from", "voices")}
    _marker(path).unlink(missing_ok=True)
    if "mine" in how:
        rules = config.load(MiningRules, None, base=rest)
        encoder = order.start / "encoder" if how["mine"] == "dense" and order.start is not None else None
        if how["mine"] == "dense" and encoder is None:
            raise ConfigError(f"sets.{path.stem}: dense mining needs a start encoder; give the study one")
        mine_set(
            order.data, path, split=order.train_split, rules=rules, encoder=encoder, truth=order.truth_split
        )
    elif "take" in how and order.source is not None:
        examples = read_examples(order.source)
        drawn = random.Random(0).sample(range(len(examples)), min(int(how["take"]), len(examples)))
        write_examples(path, [examples[number] for number in sorted(drawn)])
    elif order.source is not None:
        voices = int(how.get("voices", 0))
        beside(path, ".journal").unlink(missing_ok=True)
        generate_set(
            order.data, order.source, path, backend=how["write"], artifact=float(rest.get("artifact", 0.0)),
            both_voices=voices > 0, voices_per_query=voices,
        )  # fmt: skip
    atomic_write(_marker(path), _written(order.wanted))


def _python_of(name: str, how: Mapping[str, Any]) -> Path:
    """The Python that the taught model writes in.

    Raises:
        BackendError: There is no such environment.
    """
    python = ROOT / str(how["engine"]) / "bin" / "python" if "engine" in how else Path(sys.executable)
    if not python.is_file():
        raise BackendError(
            f"sets.{name}.engine: there is no {python}; `make test-vllm` makes it, "
            "or leave engine out and transformers writes, which takes several times as long"
        )
    return python


def _write_taught(order: _SetOrder, model: Path) -> None:
    """Let the taught model write a set, as the command does it; killed and called again, it goes on.

    Raises:
        BackendError: The command failed; it has said why.
    """
    engine = "engine" in order.how
    python = _python_of(order.path.stem, order.how)
    chosen: dict[str, Any] = {f"limits.{name}": value for name, value in vars(LIMITS).items()}
    chosen["temperature"] = order.how.get("temperature", 0.7)
    texts = int(order.how.get("batch", 64))
    if engine:
        chosen |= {"vllm.sequences": texts, "vllm.context": CONTEXT, "vllm.attempts": 2}
        # It has learnt JSON with a space after colon and comma, and is not held to another layout.
        spaces = "{backend: xgrammar, disable_any_whitespace: false}"
        chosen["vllm.engine"] = (
            f"{{dtype: float32, enforce_eager: true, structured_outputs_config: {spaces}}}"
        )
    else:
        chosen |= {"local.batch": texts, "local.attempts": 2}
    command = [str(python), "-m", "causalneg.cli", "generate", str(order.data), str(order.source)]
    command += [str(order.path), "--backend", "vllm" if engine else "transformers", "--model", str(model)]
    command += [f"{name}={value}" for name, value in chosen.items()]
    paths = f"{ROOT / 'packages'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    environment = {**quiet, **os.environ, "PYTHONPATH": paths}
    # What it prints goes where progress goes: the table alone is the study's output.
    if subprocess.run(command, env=environment, stdout=2, check=False).returncode:
        raise BackendError(f"{order.path}: the model could not write it, see above; what it has is kept")
    atomic_write(_marker(order.path), _written(order.wanted))


def train(spec: RunSpec, folder: Path, *, prepared: Prepared, cache: Path, library: Library) -> None:
    """Train and evaluate one run, in a worker process; its runs share what the library has read."""
    settings = {k: v for k, v in spec.config.items() if k != "data_fingerprint"}
    loaded = config.load(TrainConfig, None, base=placed(settings, prepared, cache))
    train_run(loaded, folder, library=library)


def tidy(folder: Path) -> None:
    """Remove the checkpoints of a finished run: the encoder in it holds the weights."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def placed(settings: Mapping[str, Any], prepared: Prepared, cache: Path) -> dict[str, Any]:
    """Settings with the names of sets replaced by their files, and data and start encoder put in."""
    own: dict[str, Any] = {"data": str(prepared.data), "cache": str(cache)}
    own["sets"] = [{**e, "path": str(prepared.sets[str(e["path"])])} for e in settings.get("sets", [])]
    if settings.get("voices"):
        own["voices"] = str(beside(prepared.sets[str(settings["voices"])], ".voices.jsonl"))
    if prepared.mixed is not None:
        own["mixed"] = str(prepared.mixed)
    if prepared.start is not None:
        own["encoder"] = {"start": str(prepared.start / "encoder")}
    probes = settings.get("diagnose", {}).get("examples", [])
    own["diagnose"] = {"examples": [str(prepared.sets[str(name)]) for name in probes]}
    return nested(settings, own)


def resolve(study: RetrievalStudy, plan: list[RunSpec], prepared: Prepared | None = None) -> list[RunSpec]:
    """Complete every run's settings with the defaults of the training config, so that mistakes show at once.

    Paths of sets stay names: where things lie does not decide a result, the fingerprint of what is prepared
    does.

    Raises:
        ConfigError: A setting is wrong, or arms that are compared differ in more than negatives and
            regulariser.
    """
    out = []
    compared: dict[tuple[str, str], dict[str, TrainConfig]] = {}
    for spec in plan:
        own = {"encoder.kind": spec.backbone, "seed": spec.seed, "data": "prepared"}
        loaded = config.load(TrainConfig, None, base=nested(spec.config, own))
        compared.setdefault((spec.backbone, spec.tag), {})[spec.arm] = loaded
        fingerprint = prepared.fingerprint(loaded) if prepared is not None else "not prepared"
        settings = {**config.to_dict(loaded), "data_fingerprint": fingerprint}
        out.append(dataclasses.replace(spec, config=settings))
    for arms in compared.values():
        check_arms(arms)
    return out


def write_results(study: RetrievalStudy, plan: list[RunSpec], out: Path, head: Head, *, again: bool) -> str:
    """Write results.json, table.md and the plots, unless they hold these runs already.

    Returns:
        The table.
    """
    rows = retrieval_rows(plan, out)
    content = json.dumps({"study": study.name, "rows": rows}, indent=1) + "\n"
    results, table = out / "results.json", out / "table.md"
    if not again and table.is_file() and results.is_file() and results.read_text() == content:
        return table.read_text()
    say("comparing the arms")
    text = study_table(head, plan, out)
    study_plots(plan, out, head.reference)
    atomic_write(table, text)
    atomic_write(results, content)
    return text


def reproduce(
    study: RetrievalStudy,
    plan: list[RunSpec],
    worker: Worker,
    out: Path,
    head: Head,
    *,
    workers: int,
    threads: int,
    again: bool,
) -> int:
    """Do the runs of a plan and print the table.

    Returns:
        Exit code: 1 when a run failed.
    """
    failures = run(plan, worker, out, workers=workers, threads=threads, tidy=tidy)
    if any(is_done(spec, out) and not spec.tag for spec in plan):
        click.echo(write_results(study, plan, out, head, again=again))
    for failure in failures:
        say(f"error: {failure.spec.key}: {failure.message} (see {out / failure.spec.key / 'error.txt'})")
    return int(bool(failures))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--study", "name", default="world", show_default=True, help="Name of a study, or a YAML file.")
@click.option("--data", type=click.Path(path_type=Path), help="BEIR folder of a study on real data.")
@click.option("--seeds", type=click.IntRange(1), help="Use seeds 0 .. N-1 instead of those of the study.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Runs at a time.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Torch threads each.")
@click.option("--out", type=click.Path(path_type=Path), help="[default: runs/retrieval-STUDY]")
@click.option("--report", is_flag=True, help="Make table and plots again, though no run is new.")
@click.option("--dry-run", is_flag=True, help="Print the runs with their settings and stop.")
def command(
    name: str,
    data: Path | None,
    seeds: int | None,
    workers: int,
    threads: int,
    out: Path | None,
    report: bool,
    dry_run: bool,
) -> None:
    """Train the arms of a retrieval study and print what generated negatives do to the encoder.

    Data, sets and the start encoder are made once; every run has a folder of its own in the output folder.
    Stop it at any time: the same command resumes. The second call only prints the table.
    """
    study = find_study(name)
    plan = study.plan(seeds)
    resolved = resolve(study, plan)  # mistakes in the settings show before anything is made
    if dry_run:
        for spec in resolved:
            click.echo(f"# {spec.key}\n{config.to_yaml(spec.config)}")
        return
    out = out or Path("runs") / f"retrieval-{study.name}"
    out.mkdir(parents=True, exist_ok=True)
    prepared = prepare(study, data, out, workers=workers)
    plan = resolve(study, plan, prepared)
    again = f"python experiments/reproduce_retrieval.py --study {Path(name).name}"
    again += (" --data PATH" if data is not None else "") + (f" --seeds {seeds}" if seeds else "")
    tests = config.load(TrainConfig, None, base=nested(study.base, {"data": "prepared"})).tests
    bm25 = out / "bm25"
    searched = {"data": prepared.prints[""], "tests": tests}
    _once(bm25, searched, lambda: bm25_line(prepared.data, prepared.mixed, tests, bm25))
    head = Head(
        name=study.name,
        description=study.description,
        command=again,
        sets=prepared.sets,
        bm25=json.loads((bm25 / BM25_FILE).read_text()),
        data=prepared.data,
        reference=study.reference,
        workers=workers,
    )
    worker = partial(train, prepared=prepared, cache=out / "cache", library=Library())
    code = reproduce(study, plan, worker, out, head, workers=workers, threads=threads, again=report)
    raise SystemExit(code)


def main() -> None:
    """Run the command; a user's mistake is one line and exit code 2."""
    with exit_on_mistake():
        command.main(standalone_mode=False)


if __name__ == "__main__":
    main()
