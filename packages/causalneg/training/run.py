"""One training run from its config to its record: data, training, evaluation, diagnosis."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from causalneg.data import Dataset, passage_key, read_dataset, read_examples
from causalneg.data import Report as Tell
from causalneg.data.dataset import PassageKey as Key
from causalneg.data.schema import Example, Passage
from causalneg.encoders import Encoder, load_encoder
from causalneg.encoders.cache import tokenize
from causalneg.evaluation.diagnostics import SourceReport
from causalneg.evaluation.evaluate import Evaluation, evaluate_encoder, evaluate_views
from causalneg.evaluation.probe import Probe
from causalneg.training.build import make_encoder, make_module
from causalneg.training.config import TrainConfig, load_train_config, run_hash
from causalneg.training.data import (
    RetrievalData,
    TrainingSet,
    ValidatedData,
    combine,
    held_out,
)
from common.config import save as save_config
from common.errors import ConfigError, DataError
from common.files import atomic_write
from common.ragged import Ragged
from common.training.fit import fit
from common.training.record import Record
from common.training.tracking import close, loggers


@dataclass(frozen=True)
class Material:
    """What a run is made of.

    Args:
        dataset: Corpus, queries and judgements.
        examples: Queries that are trained on, with their negatives.
        probes: Held-out queries with mined and generated negatives.
        voices: Rewritten passages by the key of the passage that they were made of.
        encoder: The encoder, as it starts.
    """

    dataset: Dataset
    examples: list[Example]
    probes: list[Example]
    voices: dict[Key, Passage]
    encoder: Encoder


def open_material(config: TrainConfig, *, skip_bad: bool = False, tell: Tell | None = None) -> Material:
    """Read everything that a config names.

    Args:
        config: The config.
        skip_bad: Whether malformed lines are left out.
        tell: Told how many were.

    Raises:
        ConfigError: Parts of the config do not fit together.
        DataError: A file cannot be read, or a query has too few negatives.
    """
    splits = list(dict.fromkeys([config.train_split, *([config.valid_split] if config.valid_split else [])]))
    names = (*splits, *(t for t in config.tests if t not in splits))
    dataset = _dataset(config.data, names, skip_bad, tell)
    sets = [(_examples(entry.path, skip_bad, tell), entry.count) for entry in config.sets]
    if sets:
        combined = combine(sets, candidates=config.candidates, exact=config.exact)
    else:
        known = dataset.positives(config.train_split)
        combined = [
            Example(query=query, positives=[Passage(document_id=d) for d in known[query.id]])
            for query in dataset.split_queries(config.train_split)
        ]
    share = config.diagnose.holdout
    kept = [e for e in combined if not held_out(e.query.id, share)]
    if not kept:
        raise ConfigError(f"diagnose.holdout: {share} leaves no query to train on")
    if config.diagnose.examples:
        everything = combine([(_examples(path, skip_bad, tell), 10**6) for path in config.diagnose.examples])
        probes = [e for e in everything if held_out(e.query.id, share)]
    else:
        probes = [e for e in combined if held_out(e.query.id, share)]
    voices = _voices(config.voices, skip_bad, tell) if config.voices else {}
    return Material(
        dataset, kept, probes, voices, make_encoder(config, [d.content for d in dataset.documents])
    )


def _examples(path: Path, skip_bad: bool = False, tell: Tell | None = None) -> list[Example]:
    """A training set; kept in memory for the next run of this process, unless the file changes."""
    if not path.is_file():
        return read_examples(path)
    return _read_examples(path, path.stat().st_mtime_ns, skip_bad, tell)


@lru_cache(maxsize=8)
def _read_examples(path: Path, changed: int, skip_bad: bool, tell: Tell | None) -> list[Example]:
    return read_examples(path, skip_bad=skip_bad, report=tell)


def _dataset(
    path: Path, splits: tuple[str, ...], skip_bad: bool = False, tell: Tell | None = None
) -> Dataset:
    """A data set; kept in memory for the next run of this process, unless its corpus changes."""
    corpus = path / "corpus.jsonl"
    if not corpus.is_file():
        return read_dataset(path, splits=splits)
    return _read_dataset(path, splits, corpus.stat().st_mtime_ns, skip_bad, tell)


@lru_cache(maxsize=2)
def _read_dataset(
    path: Path, splits: tuple[str, ...], changed: int, skip_bad: bool, tell: Tell | None
) -> Dataset:
    return read_dataset(path, splits=splits, skip_bad=skip_bad, report=tell)


def _voices(path: Path, skip_bad: bool, tell: Tell | None) -> dict[Key, Passage]:
    """Rewritten passages by the document that they were made of."""
    found: dict[Key, Passage] = {}
    for example in _examples(path, skip_bad, tell):
        for passage in (*example.positives, *example.negatives):
            if passage.voice is not None and passage.document_id is not None:
                found.setdefault(passage_key(Passage(document_id=passage.document_id)), passage)
    if not found:
        raise DataError(f"{path}: holds no rewritten passage; write it with generate --both-voices")
    return found


def train_run(
    config: TrainConfig, run_dir: Path, *, skip_bad: bool = False, tell: Tell | None = None
) -> Record:
    """Train, evaluate on every test split, diagnose the source shortcut; resumes what a killed call left.

    The folder then holds config.yaml, record.json, metrics.csv, checkpoints/, encoder/, eval/ and
    diagnosis.json.

    Args:
        config: Everything that decides the run.
        run_dir: The run folder.
        skip_bad: Whether malformed lines are left out.
        tell: Told how many were, and what else a user should know.

    Returns:
        The finished record, metrics under ``SPLIT/`` and ``diagnosis/``.

    Raises:
        ConfigError: The parts of the config do not fit together or the data.
        DataError: A data file cannot be read.
    """
    material = open_material(config, skip_bad=skip_bad, tell=tell)
    dataset, encoder = material.dataset, material.encoder
    training = TrainingSet(
        material.examples,
        encoder,
        dataset,
        known=dataset.positives(config.train_split),
        voices=material.voices,
        voice_share=config.voice_share,
        corpus=_known_tokens(config, dataset, encoder),
        seed=config.seed,
    )
    record = Record.start(
        config=config,
        seed=config.seed,
        data_fingerprint=dataset.fingerprint,
        parameters=sum(p.numel() for p in encoder.parameters() if p.requires_grad),
        hash=run_hash(config),
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    save_config(config, run_dir / "config.yaml")
    batches = ValidatedData if config.valid_split else RetrievalData
    data = batches(training, batch_size=config.train.batch_size, seed=config.seed)
    probe = make_probe(config, material)
    untrained = _untrained(probe, encoder, run_dir, config.cache)
    known = untrained.figures() if untrained is not None else {}
    module = make_module(
        config,
        encoder,
        steps=_steps(config, len(training)),
        validation=_validation(config, dataset) if config.valid_split else None,
        probe=probe.figures if probe is not None else None,
        untrained={name: value for name, value in known.items() if math.isfinite(value)} or None,
    )
    if untrained is not None and tell is not None:
        for term in module.terms.values():
            if (warning := term.warning(untrained.hardness_gap)) is not None:
                tell(warning)
    tracking = config.tracking
    outlets = loggers(
        run_dir,
        wandb=tracking.wandb,
        project=tracking.project,
        name=run_dir.name,
        config=config,
        group=tracking.group,
        console=config.fit.progress,
    )
    encoder.train()
    trained = fit(module, data, config=config.fit, run_dir=run_dir, seed=config.seed, loggers=outlets)
    encoder.eval()
    encoder.save(run_dir / "encoder")
    metrics = _test(config, dataset, encoder, run_dir, record, skip_bad)
    if probe is not None and untrained is not None:
        metrics.update(_diagnose(probe.report(encoder), untrained, run_dir))
    record.notes.update(
        documents=len(dataset.documents),
        train_queries=len(training),
        candidates=float(training.negatives.lengths.mean()),
        short_of_candidates=int((training.negatives.lengths < config.candidates).sum()),
        texts_cut=encoder.cut,
        epochs=trained.epochs,
        stopped_early=trained.stopped_early,
        train_seconds=trained.wall_seconds,
        train_samples_per_second=trained.samples_per_second,
    )
    record.finish(metrics)
    close(outlets, record.metrics)
    record.save(run_dir / "record.json")
    return record


def _known_tokens(config: TrainConfig, dataset: Dataset, encoder: Encoder) -> Ragged | None:
    """Token ids of the corpus from the cache that runs share; None without one."""
    if config.cache is None:
        return None
    texts = [document.content for document in dataset.documents]
    return tokenize(encoder, texts, query=False, cache=config.cache, key=dataset.corpus_fingerprint)


def make_probe(config: TrainConfig, material: Material) -> Probe | None:
    """The probe of a run; None where no query is held out."""
    if not material.probes:
        return None
    return Probe(
        material.probes,
        material.dataset,
        documents=config.diagnose.documents,
        temperature=config.loss.temperature,
    )


def _untrained(
    probe: Probe | None, encoder: Encoder, run_dir: Path, cache: Path | None
) -> SourceReport | None:
    """The probe's report on the encoder before training, kept for a run that is resumed.

    With a cache it is measured once for all runs that start from the same encoder.
    """
    if probe is None:
        return None
    kept = run_dir / "untrained.json"
    if not kept.is_file():
        shared = (
            kept if cache is None else cache / f"probe-{encoder.fingerprint[:16]}-{probe.fingerprint}.json"
        )
        if not shared.is_file():
            shared.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(shared, probe.report(encoder.eval()).to_json() + "\n")
        atomic_write(kept, shared.read_text())
    return SourceReport.from_json(kept.read_text())


def _steps(config: TrainConfig, queries: int) -> int:
    per_epoch = queries // (config.train.batch_size * config.fit.devices)
    steps = math.ceil(per_epoch / config.fit.accumulate) * config.fit.epochs
    return min(steps, config.fit.max_steps or steps)


def _validation(config: TrainConfig, dataset: Dataset) -> Callable[[Encoder], dict[str, float]]:
    def validate(encoder: Encoder) -> dict[str, float]:
        assert config.valid_split is not None
        found = evaluate_encoder(encoder, dataset, [config.valid_split], cache=config.cache)
        return dict(found[0].metrics.mean)

    return validate


def _test(
    config: TrainConfig, dataset: Dataset, encoder: Encoder, run_dir: Path, record: Record, skip_bad: bool
) -> dict[str, float | None]:
    """Evaluate every test split on the corpus and on its mixed-style twin."""
    metrics: dict[str, float | None] = {}
    evaluated: dict[str, str] = {}
    styled_gold: dict[str, list[str]] = {}
    if not config.tests:
        record.notes.update(tests=[], evaluated={}, styled_gold={})
        return metrics
    views = {"": dataset}
    if config.mixed is not None:
        views["/mixed"] = _dataset(config.mixed, tuple(config.tests), skip_bad)
    evaluations = evaluate_views(encoder, list(views.values()), config.tests, cache=config.cache)
    for (view, corpus), found in zip(views.items(), evaluations, strict=True):
        for one in found:
            one.save(run_dir / "eval")
            evaluated[one.split + view] = f"{one.name}-{one.split}"
            metrics.update({f"{one.split}/{name}{view}": v for name, v in one.metrics.mean.items()})
            if view:
                styled = _styled_gold(corpus, one.split)
                styled_gold[one.split] = sorted(styled)
                metrics.update(_by_gold(one, styled))
    record.notes.update(tests=list(config.tests), evaluated=evaluated, styled_gold=styled_gold)
    return metrics


def _styled_gold(dataset: Dataset, split: str) -> set[str]:
    """Queries with a positive in the writer's style."""
    styled = {d.id for d in dataset.documents if d.metadata.get("style")}
    return {query for query, found in dataset.positives(split).items() if styled & set(found)}


def _by_gold(one: Evaluation, styled: set[str]) -> dict[str, float | None]:
    """nDCG@10 of the queries whose gold is in the writer's style, and of the others."""
    values = one.metrics.per_query["ndcg@10"]
    out: dict[str, float | None] = {}
    for name, wanted in (("styled", True), ("plain", False)):
        chosen = [v for q, v in values.items() if (q in styled) == wanted]
        out[f"{one.split}/ndcg@10/mixed-{name}"] = float(np.mean(chosen)) if chosen else None
    return out


def _diagnose(trained: SourceReport, untrained: SourceReport, run_dir: Path) -> dict[str, float | None]:
    """Write diagnosis.json; the figures under ``diagnosis/`` and ``diagnosis/untrained/``."""
    pair = {"trained": json.loads(trained.to_json()), "untrained": json.loads(untrained.to_json())}
    atomic_write(run_dir / "diagnosis.json", json.dumps(pair, indent=1) + "\n")
    found: dict[str, float | None] = {}
    for prefix, report in (("diagnosis/", trained), ("diagnosis/untrained/", untrained)):
        for name, value in report.figures().items():
            found[prefix + name] = value if math.isfinite(value) else None
    return found


def diagnose_run(
    run_dir: Path,
    *,
    examples: Sequence[Path] = (),
    trust_remote_code: bool = False,
    skip_bad: bool = False,
    tell: Tell | None = None,
) -> tuple[SourceReport, SourceReport]:
    """Measure the source shortcut of a trained run again, on its own held-out queries or on other sets.

    Args:
        run_dir: The run folder; diagnosis.json in it is replaced.
        examples: Training sets to measure on instead of the run's own.
        trust_remote_code: Whether code that lies in the folder of the run's encoder may run.
        skip_bad: Whether malformed lines are left out.
        tell: Told how many were.

    Returns:
        The reports on the trained encoder and on the one it started from.

    Raises:
        DataError: The folder is no run, or its data is gone.
        ConfigError: No query was held out of training.
    """
    if not (run_dir / "config.yaml").is_file():
        raise DataError(f"{run_dir}: not a run folder (no config.yaml); `causalneg train` makes one")
    config = load_train_config(run_dir / "config.yaml")
    if examples:
        chosen = dataclasses.replace(config.diagnose, examples=list(examples))
        config = dataclasses.replace(config, diagnose=chosen)
    material = open_material(config, skip_bad=skip_bad, tell=tell)
    probe = make_probe(config, material)
    if probe is None:
        raise ConfigError("diagnose.holdout: no query was held out of training, so nothing can be measured")
    trained = probe.report(load_encoder(run_dir / "encoder", trust_remote_code=trust_remote_code))
    untrained = probe.report(material.encoder)
    _diagnose(trained, untrained, run_dir)
    return trained, untrained
