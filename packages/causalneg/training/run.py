"""One training run from its config to its record: data, training, evaluation, diagnosis."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from causalneg.data import Dataset, Report, passage_key, read_dataset
from causalneg.data.dataset import PassageKey as Key
from causalneg.data.exchange import read_training_set
from causalneg.data.lineage import dataset_artifact, set_artifact
from causalneg.data.readers import TrainingSetReader, find_reader
from causalneg.data.schema import Example, Passage
from causalneg.encoders.models import PACKAGED, hub_commit
from causalneg.encoders.saved import encoder_folder
from causalneg.training.config import RENAMED, TrainConfig
from common.cli import report as to_stderr
from common.errors import ConfigError, DataError
from common.files import atomic_write, fingerprint
from common.ragged import Ragged
from common.training.record import Record
from common.training.run import check_inputs, load_run, train
from common.training.task import Artifact, Measured, Task, Training

if TYPE_CHECKING:
    from causalneg.encoders import Encoder
    from causalneg.evaluation.diagnostics import SourceReport
    from causalneg.evaluation.evaluate import Evaluation
    from causalneg.evaluation.probe import Probe
    from causalneg.training.data import TrainingSet

T = TypeVar("T")

_ALL = 10**6  # negatives of a query: as many as there are


class Library:
    """Data sets and training sets, read once for all runs that are done with the same library.

    They are known by the content of their files, so a file that changes is read again.

    Args:
        kept: How many are kept in memory, the latest ones.
    """

    def __init__(self, kept: int = 8) -> None:
        self._kept = kept
        self._found: OrderedDict[tuple[object, ...], Any] = OrderedDict()

    def dataset(self, path: Path, splits: Sequence[str], *, skip_bad: bool, report: Report | None) -> Dataset:
        """A BEIR folder with the judgements of some splits.

        Args:
            path: The folder.
            splits: The splits.
            skip_bad: Whether malformed lines are left out.
            report: Called with how many were.
        """
        key = ("dataset", path.resolve(), dataset_fingerprint(path, splits), tuple(splits), skip_bad)
        return self._once(key, lambda: read_dataset(path, splits=splits, skip_bad=skip_bad, report=report))

    def examples(self, path: Path, *, skip_bad: bool, report: Report | None) -> list[Example]:
        """A training set.

        Args:
            path: The JSONL file.
            skip_bad: Whether malformed lines are left out.
            report: Called with how many were.
        """
        key = ("examples", path.resolve(), fingerprint([path]), skip_bad)
        return self._once(key, lambda: read_training_set(path, skip_bad=skip_bad, report=report))

    def _once(self, key: tuple[object, ...], read: Callable[[], T]) -> T:
        if key not in self._found:
            self._found[key] = read()
        self._found.move_to_end(key)
        while len(self._found) > self._kept:
            self._found.popitem(last=False)
        found: T = self._found[key]
        return found


def dataset_fingerprint(path: Path, splits: Sequence[str]) -> str:
    """What tells the content of a data set apart: documents, queries and the judgements of some splits.

    Args:
        path: The data set, in any layout that there is a reader for.
        splits: The splits; one that is not there is left to whoever reads the data set.

    Raises:
        DataError: There is no such data set, or it has no documents or queries.
    """
    reader = find_reader(path)
    reader.check()
    judged = [reader.file(split) for split in sorted(set(splits))]
    files = [reader.file("documents"), reader.file("queries"), *(file for file in judged if file.is_file())]
    return fingerprint(dict.fromkeys(files))


def encoder_fingerprint(folder: Path) -> str:
    """What tells the content of an encoder's folder apart; evaluations that were left in it do not count.

    Args:
        folder: The folder, or that of a run.
    """
    folder = encoder_folder(folder)
    files = [f for f in sorted(folder.rglob("*")) if f.is_file()]
    if not files:
        raise DataError(f"{folder}: there is no encoder; give the folder that one was saved in")
    return fingerprint(f for f in files if "eval" not in f.relative_to(folder).parts)


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


def splits_of(config: TrainConfig) -> tuple[str, ...]:
    """The splits that a run reads."""
    valid = [config.valid_split] if config.valid_split else []
    return tuple(dict.fromkeys([config.train_split, *valid, *config.tests]))


def open_material(
    config: TrainConfig,
    *,
    skip_bad: bool = False,
    report: Report | None = None,
    library: Library | None = None,
) -> Material:
    """Read everything that a config names.

    Args:
        config: The config.
        skip_bad: Whether malformed lines are left out.
        report: Called with how many were.
        library: What was read before.

    Raises:
        ConfigError: Parts of the config do not fit together.
        DataError: A file cannot be read, or a query has too few negatives.
    """
    from causalneg.training.build import make_encoder
    from causalneg.training.data import combine, held_out

    library = library or Library()

    def examples(path: Path) -> list[Example]:
        return library.examples(path, skip_bad=skip_bad, report=report)

    dataset = library.dataset(config.data, splits_of(config), skip_bad=skip_bad, report=report)
    sets = [(examples(entry.path), entry.count) for entry in config.sets]
    if not sets and isinstance(find_reader(config.data), TrainingSetReader):
        sets = [(examples(config.data), _ALL)]
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
        everything = combine([(examples(path), _ALL) for path in config.diagnose.examples])
        probes = [e for e in everything if held_out(e.query.id, share)]
    else:
        probes = [e for e in combined if held_out(e.query.id, share)]
    voices = _voices(config.voices, examples(config.voices)) if config.voices else {}
    encoder = make_encoder(config, [document.content for document in dataset.documents])
    if encoder.departures and report is not None:
        report(f"the encoder is read otherwise than its folder says: {', '.join(encoder.departures)}")
    return Material(dataset, kept, probes, voices, encoder)


def _voices(path: Path, examples: Sequence[Example]) -> dict[Key, Passage]:
    """Rewritten passages by the document that they were made of."""
    found: dict[Key, Passage] = {}
    for example in examples:
        for passage in (*example.positives, *example.negatives):
            if passage.voice is not None and passage.document_id is not None:
                found.setdefault(passage_key(Passage(document_id=passage.document_id)), passage)
    if not found:
        raise DataError(f"{path}: holds no rewritten passage; write it with generate --both-voices")
    return found


class RetrievalTask(Task):
    """Train an encoder, evaluate it on every test split, diagnose the source shortcut.

    Args:
        config: Everything that decides the run.
        skip_bad: Whether malformed lines are left out.
        report: Called with how many were, and with what else a user should know.
        library: What was read before, for callers that do several runs.
    """

    method = "causalneg"
    samples = "queries"
    display = ("cache", "ladder")

    def __init__(
        self,
        config: TrainConfig,
        *,
        skip_bad: bool = False,
        report: Report = to_stderr,
        library: Library | None = None,
    ) -> None:
        self._config = config
        self._skip_bad, self._report = skip_bad, report
        self._library = library or Library()
        self._built: _Built | None = None

    @property
    def config(self) -> TrainConfig:
        """The settings."""
        return self._config

    def inputs(self) -> dict[str, str]:
        """Data, mixed twin, training sets, voices, probes and the encoder to start from, by content."""
        config = self.config
        found = {"data": dataset_fingerprint(config.data, splits_of(config))}
        if config.mixed is not None:
            found["mixed"] = dataset_fingerprint(config.mixed, config.tests)
        files = {f"sets[{place}].path": entry.path for place, entry in enumerate(config.sets)}
        files |= {f"diagnose.examples[{place}]": path for place, path in enumerate(config.diagnose.examples)}
        files |= {"voices": config.voices} if config.voices else {}
        found |= {key: fingerprint([path]) for key, path in files.items()}
        options = config.encoder.options
        if (folder := options.get("folder")) is not None:
            found["encoder.folder"] = encoder_fingerprint(Path(folder))
        if (model := options.get("model")) is not None:
            found["encoder.model"] = (
                encoder_fingerprint(Path(model))
                if Path(model).is_dir() or model in PACKAGED
                else hub_commit(model, revision=options["revision"], offline=options["offline"])
            )
        return found | ({"--skip-bad": "yes"} if self._skip_bad else {})

    def label(self) -> str:
        """Name of the encoder."""
        return self.config.encoder.name

    def build(self, run_dir: Path) -> Training:
        """Read the data, make the encoder, and measure it untrained."""
        from causalneg.training.build import make_module
        from causalneg.training.data import RetrievalData, TrainingSet, ValidatedData, no_negatives

        config = self.config
        material = open_material(config, skip_bad=self._skip_bad, report=self._report, library=self._library)
        dataset, encoder = material.dataset, material.encoder
        training = TrainingSet(
            material.examples,
            encoder,
            dataset,
            known=no_negatives(dataset, config.train_split),
            voices=material.voices,
            voice_share=config.voice_share,
            corpus=_known_tokens(config, dataset, encoder),
            seed=config.seed,
        )
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
        if untrained is not None:
            for term in module.terms.values():
                if (warning := term.warning(untrained.hardness_gap)) is not None:
                    self._report(warning)
        encoder.train()
        self._built = _Built(dataset, encoder, training, probe, untrained)
        parameters = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
        return Training(module, data, parameters)

    def evaluate(self, run_dir: Path) -> Measured:
        """Save the encoder, evaluate every test split, diagnose."""
        assert self._built is not None
        built, config = self._built, self.config
        encoder, training = built.encoder.eval(), built.training
        encoder.save(run_dir / "encoder")
        measured = self._test(built.dataset, encoder, run_dir)
        if built.probe is not None and built.untrained is not None:
            trained = built.probe.report(encoder)
            measured.metrics |= _diagnose(trained, built.untrained, run_dir)
            measured.histograms |= _histograms(trained, built.untrained)
        measured.notes |= {
            "documents": len(built.dataset.documents),
            "train_queries": len(training),
            "candidates": float(training.negatives.lengths.mean()),
            "short_of_candidates": int((training.negatives.lengths < config.candidates).sum()),
            "texts_cut": encoder.cut,
        }
        return measured

    def advice(self) -> str:
        """The sizes that decide how much memory a step takes."""
        own = self.config.train
        return f"lower train.batch_size={own.batch_size} or the encoder's sizes, or set train.cached=true"

    def artifacts(self, run_dir: Path) -> list[Artifact]:
        """The data set and training sets that were read, the encoder that came out."""
        config, known = self.config, self.inputs()
        read = [dataset_artifact(config.data, fingerprint=known["data"])]
        for place, entry in enumerate(config.sets):
            examples = self._library.examples(entry.path, skip_bad=self._skip_bad, report=None)
            read.append(set_artifact(entry.path, examples, fingerprint=known[f"sets[{place}].path"]))
        if config.sets:
            paths = tuple(dict.fromkeys(entry.path for entry in config.sets))
            counts = {str(entry.path): entry.count for entry in config.sets}
            read.append(Artifact(f"{run_dir.name}-training-set", "training-set", paths, facts=counts))
        made = Artifact(f"{run_dir.name}-encoder", "model", (run_dir / "encoder",), made=True, facts=known)
        return [*read, made]

    def _test(self, dataset: Dataset, encoder: Encoder, run_dir: Path) -> Measured:
        """Evaluate every test split on the corpus and on its mixed-style twin."""
        from causalneg.evaluation.evaluate import evaluate_views

        config, measured = self.config, Measured()
        evaluated: dict[str, str] = {}
        styled_gold: dict[str, list[str]] = {}
        measured.notes |= {"tests": list(config.tests), "evaluated": evaluated, "styled_gold": styled_gold}
        if not config.tests:
            return measured
        views = {"": dataset}
        if config.mixed is not None:
            views["/mixed"] = self._library.dataset(
                config.mixed, tuple(config.tests), skip_bad=self._skip_bad, report=None
            )
        evaluations = evaluate_views(encoder, list(views.values()), config.tests, cache=config.cache)
        for (view, corpus), found in zip(views.items(), evaluations, strict=True):
            for one in found:
                one.save(run_dir / "eval")
                evaluated[one.split + view] = f"{one.name}-{one.split}"
                measured.metrics |= {f"{one.split}/{k}{view}": v for k, v in one.metrics.mean.items()}
                if view:
                    styled = _styled_gold(corpus, one.split)
                    styled_gold[one.split] = sorted(styled)
                    measured.metrics |= _by_gold(one, styled)
        return measured


@dataclass(frozen=True)
class _Built:
    """What a task has opened."""

    dataset: Dataset
    encoder: Encoder
    training: TrainingSet
    probe: Probe | None
    untrained: SourceReport | None


def train_run(
    config: TrainConfig,
    run_dir: Path | None = None,
    *,
    skip_bad: bool = False,
    report: Report = to_stderr,
    library: Library | None = None,
    replace: bool = False,
) -> Record:
    """Train, evaluate, diagnose; see :func:`common.training.run.train`.

    The folder then holds config.yaml, record.json, metrics.csv, checkpoints/, encoder/, eval/ and
    diagnosis.json.

    Args:
        config: Everything that decides the run.
        run_dir: The run folder; by default the one that the config names.
        skip_bad: Whether malformed lines are left out.
        report: Called with how many were, and with what else a user should know.
        library: What was read before, for callers that do several runs.
        replace: Whether another run in the folder is removed instead of refused.

    Returns:
        The finished record, metrics under ``SPLIT/`` and ``diagnosis/``.
    """
    task = RetrievalTask(config, skip_bad=skip_bad, report=report, library=library)
    return train(task, run_dir, replace=replace).record


def _known_tokens(config: TrainConfig, dataset: Dataset, encoder: Encoder) -> Ragged | None:
    """Token ids of the corpus from the cache that runs share; None without one."""
    if config.cache is None:
        return None
    from causalneg.encoders.cache import tokenize

    texts = [document.content for document in dataset.documents]
    return tokenize(encoder, texts, query=False, cache=config.cache, key=dataset.corpus_fingerprint)


def make_probe(config: TrainConfig, material: Material) -> Probe | None:
    """The probe of a run; None where no query is held out."""
    if not material.probes:
        return None
    from causalneg.evaluation.probe import Probe

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
    from causalneg.evaluation.diagnostics import SourceReport

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
    from causalneg.evaluation.evaluate import evaluate_encoder

    def validate(encoder: Encoder) -> dict[str, float]:
        assert config.valid_split is not None
        found = evaluate_encoder(encoder, dataset, [config.valid_split], cache=config.cache)
        return dict(found[0].metrics.mean)

    return validate


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


def _histograms(trained: SourceReport, untrained: SourceReport) -> dict[str, Any]:
    """Similarities by source, as trackers keep them."""
    return {
        f"{prefix}/similarity/{source}": (counts, one.histogram.edges)
        for prefix, one in (("diagnosis", trained), ("diagnosis/untrained", untrained))
        for source, counts in one.histogram.counts.items()
    }


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
    report: Report | None = None,
) -> tuple[SourceReport, SourceReport]:
    """Measure the source shortcut of a trained run again, on its own held-out queries or on other sets.

    Args:
        run_dir: The run folder; diagnosis.json in it is replaced.
        examples: Training sets to measure on instead of the run's own.
        trust_remote_code: Whether code that lies in the folder of the run's encoder may run.
        skip_bad: Whether malformed lines are left out.
        report: Called with how many were.

    Returns:
        The reports on the trained encoder and on the one it started from.

    Raises:
        DataError: The folder is no run, or what it read is gone or has another content.
        ConfigError: No query was held out of training.
    """
    from causalneg.encoders import load_encoder

    config, record = load_run(run_dir, TrainConfig, method=RetrievalTask.method, renamed=RENAMED)
    read = ("data", "encoder") if examples else ("data", "encoder", "sets", "diagnose")
    found = {k: v for k, v in RetrievalTask(config).inputs().items() if k.startswith(read)}
    check_inputs(run_dir, record, found, {"data": config.data})
    if examples:
        chosen = dataclasses.replace(config.diagnose, examples=list(examples))
        config = dataclasses.replace(config, diagnose=chosen)
    material = open_material(config, skip_bad=skip_bad, report=report)
    probe = make_probe(config, material)
    if probe is None:
        raise ConfigError("diagnose.holdout: no query was held out of training, so nothing can be measured")
    trained = probe.report(load_encoder(run_dir / "encoder", trust_remote_code=trust_remote_code))
    untrained = probe.report(material.encoder)
    _diagnose(trained, untrained, run_dir)
    return trained, untrained
