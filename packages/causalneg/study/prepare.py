"""What the runs of a retrieval study read: data, start encoder, training sets, each made once."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from causalneg.commands import mine_set
from causalneg.data import read_dataset, read_examples, write_dataset, write_examples
from causalneg.evaluation.evaluate import evaluate_bm25
from causalneg.generation.config import GenerateConfig
from causalneg.generation.sets import generate_set
from causalneg.generation.writers.taught import teach
from causalneg.mining import MiningRules
from causalneg.study.plan import TAUGHT, RetrievalStudy
from causalneg.study.taught import python_of, write_taught
from causalneg.text.style import mixed_corpus
from causalneg.training.config import TrainConfig
from causalneg.training.run import train_run
from causalneg.world import WorldConfig, make_world
from common import config
from common.errors import ConfigError, suggest
from common.files import atomic_write, beside
from common.study.plan import nested
from common.study.prepare import (
    Source,
    check_source,
    files_fingerprint,
    fingerprint,
    is_made,
    make_once,
)

BEIR_FILES = ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv")
BM25_FILE = "bm25.json"


@dataclass(frozen=True)
class Prepared:
    """Everything that the runs of a study read.

    Args:
        data: BEIR folder.
        mixed: Its mixed-style twin; None where the study has none.
        sets: File of each set.
        start: Folder of the encoder that all runs start from; None from scratch.
        prints: Fingerprint of each set, and under ``""`` of the data and the start encoder.
        bm25: Metrics of BM25 by split and view.
    """

    data: Path
    mixed: Path | None
    sets: dict[str, Path]
    start: Path | None
    prints: dict[str, str]
    bm25: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def fingerprint(self, config: TrainConfig) -> str:
        """Fingerprint of what a run reads: a set that it does not use may come, go or change."""
        used = {"", *(str(entry.path) for entry in config.sets), *map(str, config.diagnose.examples)}
        used |= {str(config.voices)} if config.voices is not None else set()
        return fingerprint({name: self.prints[name] for name in used})


def prepare(
    study: RetrievalStudy, source: Path | None, out: Path, *, workers: int = 1, report: Callable[[str], None]
) -> Prepared:
    """Data, start encoder, sets and the BM25 line of a study, each made once.

    Args:
        study: The study.
        source: BEIR folder, where the study is on real data; data/STUDY by default.
        out: Folder of the study.
        workers: Sets that are made at a time.
        report: Called with a line for everything that is made.

    Raises:
        ConfigError: The study asks for what cannot be made.
        DataError: A source file is missing.
    """
    data, mixed, print_ = _prepare_data(study, source, out, report)
    start = None
    if study.start:
        start = out / "start"
        own = {"sets": [], "candidates": 0, "encoder.name": study.backbones[0]}
        settings = nested(study.base, own, study.start)
        made = {"data": print_, "config": settings}
        print_ = _once(start, made, partial(_train_start, settings, data, out), report, resume=True)
    prints = _prepare_sets(study, data, start, print_, out, workers, report)
    files = {name: _set_file(out, name) for name in study.sets}
    prints[""] = fingerprint({"trained from": print_, "mixed": study.mixed_share})
    given = {"data": "prepared", "encoder.name": study.backbones[0]}
    tests = config.load(TrainConfig, None, base=nested(study.base, given)).tests
    bm25 = out / "bm25"
    searched = {"data": prints[""], "tests": tests}
    _once(bm25, searched, lambda: _search_bm25(data, mixed, tests, bm25), report)
    return Prepared(data, mixed, files, start, prints, json.loads((bm25 / BM25_FILE).read_text()))


def _once(
    target: Path,
    options: Mapping[str, Any],
    make: Callable[[], object],
    report: Callable[[str], None],
    *,
    resume: bool = False,
) -> str:
    if not is_made(target, options):
        report(f"making {target}")
    return make_once(target, options, make, resume=resume)


def _prepare_data(
    study: RetrievalStudy, source: Path | None, out: Path, report: Callable[[str], None]
) -> tuple[Path, Path | None, str]:
    """The BEIR folder of a study, its mixed-style twin, and the fingerprint of the former."""
    options = dict(study.data)
    kind = options.pop("format", "beir")
    if kind == "world":
        data = out / "data" / "world"
        world = config.load(WorldConfig, None, base=options)
        print_ = _once(data, {"world": config.to_dict(world)}, lambda: make_world(world, data), report)
        return data, data / "mixed", print_
    if kind != "beir":
        known = ("world", "beir")
        raise ConfigError(f"data.format: {kind!r} is not one of {', '.join(known)}{suggest(kind, known)}")
    data = check_source(
        Source(f"the BEIR folder of {study.name}", BEIR_FILES), source or Path("data") / study.name
    )
    judged = sorted((data / "qrels").glob("*.tsv"))
    print_ = files_fingerprint([data / "corpus.jsonl", data / "queries.jsonl", *judged])
    if not study.mixed_share:
        return data, None, print_
    mixed = out / "data" / f"{data.name}-mixed"
    made = {"from": print_, "share": study.mixed_share}
    _once(mixed, made, lambda: _make_mixed(study, data, mixed), report)
    return data, mixed, print_


def _prepare_sets(
    study: RetrievalStudy,
    data: Path,
    start: Path | None,
    print_: str,
    out: Path,
    workers: int,
    report: Callable[[str], None],
) -> dict[str, str]:
    """Make the sets that are not there yet; the fingerprint of each, and that of what they are made from."""
    prints: dict[str, str] = {"": print_}
    waiting: list[_SetOrder] = []
    by_model: list[_SetOrder] = []
    model, taught = out / TAUGHT, {}
    for name, how in study.sets.items():
        wanted = {"from": prints[how.get("from", "")], **{k: v for k, v in how.items() if k != "from"}}
        if how.get("write") == TAUGHT:
            wanted["model"] = taught = {**study.teach, "from": prints[str(study.teach["from"])]}
        path, source = _set_file(out, name), _set_file(out, how["from"]) if "from" in how else None
        prints[name] = fingerprint(wanted)
        if not is_made(path, wanted):
            orders = waiting
            if how.get("write") == TAUGHT:
                python_of(name, how)  # that it is missing is said before much time is spent
                orders = by_model
            splits = (study.train_split, study.truth_split)
            orders.append(_SetOrder(path, how, source, data, start, *splits, wanted))
    _make_sets(waiting, workers, report)
    if by_model:
        # By themselves and with all threads: each takes longer than all other sets together.
        torch.set_num_threads(workers)
        learned = _set_file(out, str(study.teach["from"]))
        _once(model, taught, lambda: teach(data, learned, model, study.lesson()), report, resume=True)
        for order in by_model:
            _once(order.path, order.wanted, partial(_write_taught, order, model), report, resume=True)
    return prints


def _set_file(out: Path, name: str) -> Path:
    return out / "sets" / f"{name}.jsonl"


def _make_mixed(study: RetrievalStudy, data: Path, out: Path) -> None:
    splits = sorted(path.stem for path in (data / "qrels").glob("*.tsv"))
    dataset = read_dataset(data, splits=splits)
    styled = mixed_corpus(dataset.documents, share=study.mixed_share, seed=0)
    write_dataset(out, styled, list(dataset.queries.values()), dataset.qrels)


def _train_start(settings: Mapping[str, Any], data: Path, out: Path) -> None:
    """Train the encoder that every arm starts from, and keep nothing else of its run."""
    own = {"data": str(data), "tests": [], "cache": str(out / "cache"), "name": "start", "out": str(out)}
    loaded = config.load(
        TrainConfig, None, base=nested(settings, own, {"diagnose": {"holdout": 0.0, "examples": []}})
    )
    train_run(loaded, out / "start", replace=True)
    forget_checkpoints(out / "start")


def forget_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a finished run: the encoder in it holds the weights."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


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
    wanted: Mapping[str, Any]


def _make_sets(orders: list[_SetOrder], workers: int, report: Callable[[str], None]) -> None:
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
                report(f"made {running.pop(done).path}")


def _make_set(order: _SetOrder) -> None:
    """Mine, draw or write one set, in a worker process."""
    make_once(order.path, order.wanted, partial(_write_set, order))


def _write_set(order: _SetOrder) -> None:
    how, path = order.how, order.path
    rest = {k: v for k, v in how.items() if k not in ("mine", "write", "from", "voices")}
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
        writer = {"name": how["write"], "artifact": float(rest.get("artifact", 0.0))}
        generate_set(
            order.data,
            order.source,
            path,
            config.load(GenerateConfig, None, base={"writer": writer}),
            both_voices=voices > 0,
            voices_per_query=voices,
        )


def _write_taught(order: _SetOrder, model: Path) -> None:
    assert order.source is not None
    write_taught(order.path, order.how, order.data, order.source, model)


def _search_bm25(data: Path, mixed: Path | None, splits: Sequence[str], out: Path) -> None:
    """Metrics of BM25 on every split, clean and mixed, into ``out``, with its run files."""
    found: dict[str, dict[str, float]] = {}
    for ending, folder in (("", data), ("/mixed", mixed)):
        if folder is None:
            continue
        for one in evaluate_bm25(read_dataset(folder, splits=splits), splits):
            one.save(out / "eval")
            found[one.split + ending] = dict(one.metrics.mean)
    atomic_write(out / BM25_FILE, json.dumps(found, indent=1) + "\n")


def placed(settings: Mapping[str, Any], prepared: Prepared, cache: Path) -> dict[str, Any]:
    """Settings with the names of sets replaced by their files, and data and start encoder put in."""
    own: dict[str, Any] = {"data": str(prepared.data), "cache": str(cache)}
    own["sets"] = [{**e, "path": str(prepared.sets[str(e["path"])])} for e in settings.get("sets", [])]
    if settings.get("voices"):
        own["voices"] = str(beside(prepared.sets[str(settings["voices"])], ".voices.jsonl"))
    if prepared.mixed is not None:
        own["mixed"] = str(prepared.mixed)
    if prepared.start is not None:
        settings = {key: value for key, value in settings.items() if key != "encoder"}
        own["encoder"] = {"name": "saved", "folder": str(prepared.start / "encoder")}
    probes = settings.get("diagnose", {}).get("examples", [])
    own["diagnose"] = {"examples": [str(prepared.sets[str(name)]) for name in probes]}
    return nested(settings, own)
