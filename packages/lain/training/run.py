"""From a config to a trained, measured run folder.

What needs Lightning is imported where it is used: that takes seconds, and a finished run is shown without it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common.cli import report
from common.errors import ConfigError, DataError, DivergedError
from common.files import atomic_write, fingerprint
from common.training.record import Record
from common.training.run import check_inputs, train
from common.training.run import load_run as load_any_run
from common.training.task import Artifact, Measured, Task, Training
from lain.data.catalog import keep_catalog
from lain.data.schema import Feature
from lain.data.store import Store
from lain.formats.log.encode import FOLDER as ENCODING_FOLDER
from lain.formats.log.encode import keep_encoding
from lain.model import CTRModel
from lain.training.build import ADAM_MOMENTS, build_model, largest_sizes
from lain.training.config import RENAMED, TrainConfig

if TYPE_CHECKING:
    from lain.data.module import CTRData

FEATURES_FILE = "features.json"
"""What a run folder keeps of the data: the features and how their values are encoded."""


class CTRTask(Task):
    """Train a click-through model, score ``valid`` and ``test``, measure the attention.

    Args:
        config: Everything that decides the run.
        start: Run whose best weights the training starts from.
        same_encoding: Whether the data's ids stand for the same things as those of ``start``, where no
            vocabulary says so.
    """

    method = "lain"
    samples = "samples"
    display = ("train.loader_workers",)
    extendable = ("fit.epochs", "diagnose_rows", "train.eval_batch_size")

    def __init__(
        self, config: TrainConfig, *, start: Path | None = None, same_encoding: bool = False
    ) -> None:
        self._config, self._start, self._same_encoding = config, start, same_encoding
        self._grown: dict[str, int] = {}
        self._built: tuple[CTRModel, CTRData] | None = None

    @property
    def config(self) -> TrainConfig:
        """The settings."""
        return self._config

    def inputs(self) -> dict[str, str]:
        """The data set, by its content, and the weights that it starts from."""
        found = {"data": Store.open(self.config.data).fingerprint}
        if self._start is not None:
            from common.training.checkpoint import best_checkpoint

            load_any_run(self._start, TrainConfig, method=self.method, renamed=RENAMED)
            found["start"] = fingerprint([best_checkpoint(self._start)])
        return found

    def label(self) -> str:
        """Backbone and what it knows of lengths."""
        return f"{self.config.model.name}-{self.config.length.preset}"

    def build(self, run_dir: Path) -> Training:
        """Open the data, draw the weights, and keep in the run folder what scoring needs of the data."""
        from lain.training.module import CTRModule

        config = self.config
        data = open_data(config)
        data.store.verify()
        torch.manual_seed(config.seed)
        on_host = config.fit.accelerator == "cpu" or not torch.cuda.is_available()
        copies = 1 + ADAM_MOMENTS * on_host
        model = build_model(config, data.store.features, copies=copies)
        if self._start is not None:
            from lain.training.warm import warm_start

            known = model_features(self._start)
            self._grown = warm_start(model, self._start, known, data.store, same_encoding=self._same_encoding)
        self._built = model, data
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        _save_features(data.store, run_dir)
        keep_encoding(data.store, run_dir)
        if not (run_dir / ENCODING_FOLDER).is_dir():  # which knows items and users by their raw ids
            keep_catalog(data.store, run_dir)
        return Training(CTRModule(model, config.train, config.buckets), data, parameters)

    def evaluate(self, run_dir: Path) -> Measured:
        """Score ``valid`` and ``test`` into predictions/, and measure the attention into attention.json."""
        from lain.evaluation.predictions import predict

        assert self._built is not None
        model, data = self._built
        measured = Measured()
        for split in [s for s in ("valid", "test") if s in data.store.splits]:
            predictions = predict(model, data.eval_loader(split), data.store.split(split))
            broken = int((~np.isfinite(predictions.score)).sum())
            if broken:
                raise DivergedError(
                    f"training diverged: {broken} of {len(predictions.score)} scores of {split} are not "
                    "finite; lower train.learning_rate or set fit.clip"
                )
            predictions.save(run_dir / "predictions" / f"{split}.parquet")
            measured.notes[f"milliseconds_per_sample/{split}"] = predictions.milliseconds
            if not predictions.labelled:
                report(f"note: {split} has no labels: its scores are in predictions/, metrics it has none")
                continue
            found = predictions.metrics(self.config.buckets)
            measured.metrics.update({f"{split}/{k}": v for k, v in found.values.items()})
            measured.reasons.update({f"{split}/{k}": v for k, v in found.reasons.items()})
        if self._start is not None:
            measured.notes["started_from"] = {"run": str(self._start), "new_rows": self._grown}
        measured.notes["milliseconds_per_sample"] = measured.notes.get("milliseconds_per_sample/test")
        if self.config.diagnose_rows and "test" in data.store.splits:
            shape = write_attention(model, data, self.config, run_dir)
            measured.figures |= attention_figures(shape)
            measured.figures |= write_cosine(model, data, self.config, run_dir)
        return measured

    def tags(self) -> list[str]:
        """Backbone, and what it knows of lengths."""
        return [self.config.model.name, str(self.config.length.preset)]

    def artifacts(self, run_dir: Path) -> list[Artifact]:
        """The data set that was read, the weights that came out."""
        from common.training.checkpoint import best_checkpoint

        data, facts = self.config.data, self.inputs()
        weights = best_checkpoint(run_dir)
        return [
            Artifact(data.resolve().name, "dataset", (data,), facts={"fingerprint": facts["data"]}),
            Artifact(
                f"{run_dir.name}-model", "model",
                (weights, run_dir / "config.yaml", run_dir / FEATURES_FILE), made=True,
            ),
        ]  # fmt: skip

    def advice(self) -> str:
        """The sizes that decide how much memory a step takes."""
        own = self.config.train
        return (
            f"lower train.batch_size={own.batch_size}, train.eval_batch_size={own.eval_batch_size}, "
            f"history.max_length={self.config.history.max_length} or the model's sizes: "
            f"{largest_sizes(self.config)}"
        )


def train_run(config: TrainConfig, run_dir: Path | None = None) -> Record:
    """Train, evaluate on ``test``, measure the attention; see :func:`common.training.run.train`.

    Args:
        config: Everything that decides the run.
        run_dir: The run folder; by default the one that the config names.

    Returns:
        The finished record, metrics under ``valid/`` and ``test/``.
    """
    return train(CTRTask(config), run_dir).record


def open_data(config: TrainConfig, path: Path | None = None) -> CTRData:
    """The data set that a config names, or another one read in the same way.

    Args:
        config: How it is read.
        path: The other data set.

    Raises:
        DataError: There is none, or it lacks the splits that training needs.
    """
    from lain.data.module import CTRData

    data = CTRData(
        path or config.data,
        max_length=config.history.max_length,
        columns=config.history.columns,
        batch_size=config.train.batch_size,
        eval_batch_size=config.train.eval_batch_size,
        seed=config.seed,
        workers=config.train.loader_workers,
    )
    for split in ("train", "valid") if path is None else ():
        data.store.split(split)
    return data


def load_model(run_dir: Path) -> tuple[TrainConfig, CTRModel, Record]:
    """A trained run: its config, its best weights, its record. Its data are not needed.

    Args:
        run_dir: The run folder.

    Raises:
        ConfigError: The folder's config.yaml is not one.
        DataError: The folder is no run, or has no checkpoint.
    """
    from common.training.checkpoint import best_checkpoint, load_checkpoint
    from lain.training.module import CTRModule

    config, record = load_any_run(run_dir, TrainConfig, method=CTRTask.method, renamed=RENAMED)
    features, _ = _load_features(run_dir)
    model = build_model(config, features)
    load_checkpoint(best_checkpoint(run_dir), CTRModule(model, config.train, config.buckets))
    return config, model.eval(), record


def load_run(run_dir: Path) -> tuple[TrainConfig, CTRModel, CTRData]:
    """A trained run with its data.

    Args:
        run_dir: The run folder.

    Raises:
        ConfigError: The folder's config.yaml is not one.
        DataError: The folder is no run, has no checkpoint, or its data set is gone or has another content.
    """
    config, model, record = load_model(run_dir)
    check_inputs(run_dir, record, CTRTask(config).inputs(), {"data": config.data})
    return config, model, open_data(config)


def check_encoding(run_dir: Path, record: Record, store: Store, *, same: bool = False) -> None:
    """Refuse data whose numbers stand for other things than those that a run was trained on.

    Args:
        run_dir: The run folder.
        record: The record of the run.
        store: The data to score.
        same: Whether the user says that the encoding is the same.

    Raises:
        ConfigError: A feature is missing, is another, or has values that the run does not know.
        DataError: Nothing says that the encoding is the same.
    """
    features, vocabularies = _load_features(run_dir)
    known = {(f.source == "behaviour", f.name): f for f in features}
    wrong = []
    for feature in store.features:
        twin = known.pop((feature.source == "behaviour", feature.name), None)
        if twin is None:
            wrong.append(f"{store.path}: feature {feature.name} is not one that {run_dir} was trained on")
        elif (twin.source, twin.kind, twin.width) != (feature.source, feature.kind, feature.width):
            wrong.append(f"{store.path}: feature {feature.name} has another kind than in {run_dir}")
        elif feature.size > twin.size:
            wrong.append(
                f"{store.path}: feature {feature.name} has {feature.size} values, {run_dir} knows {twin.size}"
            )
    wrong += [
        f"{store.path}: feature {f.name} is missing, {run_dir} was trained on it" for f in known.values()
    ]
    ConfigError.raise_if(wrong)
    if same or store.fingerprint == record.inputs["data"]:
        return
    own = _vocabularies(store)
    if not own or own != vocabularies:
        differing = [name for name in vocabularies.keys() & own.keys() if vocabularies[name] != own[name]]
        why = "nothing says what its ids stand for"
        if differing:
            why = f"the vocabulary of {differing[0]} differs"
        raise DataError(
            f"{store.path}: is not the data set that {run_dir} was trained on, and {why}; if it was prepared "
            "with the very same ids, say so with --same-encoding"
        )


def model_features(run_dir: Path) -> list[Feature]:
    """The features that a run was trained on.

    Raises:
        DataError: The run does not say.
    """
    return _load_features(run_dir)[0]


def _vocabularies(store: Store) -> dict[str, str]:
    return {name: fingerprint([file]) for name, file in sorted(store.vocabularies.items())}


def _save_features(store: Store, run_dir: Path) -> None:
    content = {
        "features": [dataclasses.asdict(feature) for feature in store.features],
        "vocabularies": _vocabularies(store),
    }
    atomic_write(run_dir / FEATURES_FILE, json.dumps(content, indent=1) + "\n")


def _load_features(run_dir: Path) -> tuple[list[Feature], dict[str, str]]:
    path = run_dir / FEATURES_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [Feature(**feature) for feature in content["features"]], content["vocabularies"]
    except FileNotFoundError:
        raise DataError(f"{path}: missing; the run is of an older version, train it again") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); train the run again") from error


def write_attention(model: CTRModel, data: CTRData, config: TrainConfig, run_dir: Path) -> dict[str, Any]:
    """Measure the attention on test rows and write attention.json."""
    from lain.evaluation import diagnostics

    shape = diagnostics.attention_by_bucket(
        model, data.batches("test"), config.buckets, rows=config.diagnose_rows
    )
    atomic_write(run_dir / "attention.json", json.dumps(shape, indent=1) + "\n")
    return shape


def attention_figures(shape: dict[str, Any]) -> dict[str, float]:
    """What attention.json holds, by the name that trackers keep it under: ``attention/BRANCH/gini/0-50``.

    Args:
        shape: What :func:`write_attention` gave.
    """
    return {
        f"attention/{branch}/{figure}/{bucket}": value
        for branch, buckets in shape.items()
        for bucket, figures in buckets.items()
        for figure, value in figures.items()
    }


def write_cosine(model: CTRModel, data: CTRData, config: TrainConfig, run_dir: Path) -> dict[str, float]:
    """Measure whether the test rows of short and of long users pull the same way, into gradient_cosine.json.

    Returns:
        The cosines by the name that trackers keep them under: ``gradient_cosine/all``.
    """
    from lain.evaluation import diagnostics

    found = diagnostics.gradient_cosine(model, data.batches("test"), rows=config.diagnose_rows)
    atomic_write(run_dir / "gradient_cosine.json", json.dumps(found, indent=1) + "\n")
    return {f"gradient_cosine/{part}": value for part, value in found.items()}
