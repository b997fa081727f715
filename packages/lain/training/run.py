"""From a config to a trained, measured run folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from common.config import config_hash
from common.config import load as load_config
from common.config import save as save_config
from common.errors import ConfigError, DataError, UserError
from common.files import atomic_write
from common.machine import keep_freed_memory, out_of_memory
from common.training.fit import fit, load_checkpoint
from common.training.record import Record
from common.training.tracking import close, loggers
from lain.data.module import CTRData
from lain.evaluation import diagnostics
from lain.evaluation.predictions import predict
from lain.model import CTRModel
from lain.training.build import ADAM_MOMENTS, build_model, largest_sizes
from lain.training.config import MAY_CHANGE, RENAMED, TrainConfig
from lain.training.module import CTRModule


def train_run(config: TrainConfig, run_dir: Path) -> Record:
    """Train, evaluate on ``test``, measure the attention; resumes what a killed call left.

    The folder then holds config.yaml, record.json, metrics.csv, checkpoints/, attention.json and
    predictions/test.parquet.

    Args:
        config: Everything that decides the run.
        run_dir: The run folder.

    Returns:
        The finished record, metrics under ``valid/`` and ``test/``.

    Raises:
        ConfigError: The parts of the config do not fit together or the data.
        DataError: The data set cannot be read.
    """
    keep_freed_memory()
    data = open_data(config)
    torch.manual_seed(config.seed)
    on_host = config.fit.accelerator == "cpu" or not torch.cuda.is_available()
    copies = 1 + ADAM_MOMENTS * on_host
    model = build_model(config, data.store.features, copies=copies)
    record = Record.start(
        config=config,
        seed=config.seed,
        data_fingerprint=data.store.fingerprint,
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        hash=run_hash(config),
    )
    _check_resumed(record, run_dir)
    with _folder(run_dir), out_of_memory(_lighter(config)):
        _train(config, model, data, record, run_dir)
    return record


def _lighter(config: TrainConfig) -> str:
    """What to do about a run whose batches do not fit into memory."""
    train = config.train
    return (
        f"lower train.batch_size={train.batch_size}, train.eval_batch_size={train.eval_batch_size}, "
        f"history.max_length={config.history.max_length} or the model's sizes: {largest_sizes(config)}"
    )


def _train(config: TrainConfig, model: CTRModel, data: CTRData, record: Record, run_dir: Path) -> None:
    record.save(run_dir / "record.json")
    save_config(config, run_dir / "config.yaml")
    module = CTRModule(model, config.train, config.buckets)
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
    trained = fit(module, data, config=config.fit, run_dir=run_dir, seed=config.seed, loggers=outlets)
    metrics: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for split in [s for s in ("valid", "test") if s in data.store.splits]:
        predictions = predict(model, data.eval_loader(split), data.store.split(split))
        predictions.save(run_dir / "predictions" / f"{split}.parquet")
        found = predictions.metrics(config.buckets)
        metrics.update({f"{split}/{k}": v for k, v in found.values.items()})
        reasons.update({f"{split}/{k}": v for k, v in found.reasons.items()})
        record.notes[f"milliseconds_per_sample/{split}"] = predictions.milliseconds
    record.notes["milliseconds_per_sample"] = record.notes.get("milliseconds_per_sample/test")
    if config.diagnose_rows and "test" in data.store.splits:
        write_attention(model, data, config, run_dir)
    record.notes.update(
        epochs=trained.epochs,
        stopped_early=trained.stopped_early,
        train_seconds=trained.wall_seconds,
        train_samples_per_second=trained.samples_per_second,
    )
    record.finish(metrics, reasons)
    close(outlets, record.metrics)
    record.save(run_dir / "record.json")


@contextmanager
def _folder(run_dir: Path) -> Iterator[None]:
    """Make a run folder; when it is new, a mistake found before the first checkpoint removes it again."""
    new = not run_dir.exists()
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except (UserError, OSError):
        if new and not (run_dir / "checkpoints" / "last.ckpt").exists():
            shutil.rmtree(run_dir, ignore_errors=True)
        raise


def _check_resumed(record: Record, run_dir: Path) -> None:
    """Refuse to go on with a run that was begun with other settings or on other data."""
    try:
        before = Record.load(run_dir / "record.json")
    except DataError:
        return
    ours, theirs = dict(_leaves(record.config)), dict(_leaves(before.config))
    differing = [
        f"{key} was {theirs[key]}, is {ours[key]}"
        for key in ours.keys() & theirs.keys()
        if ours[key] != theirs[key] and not key.startswith(MAY_CHANGE)
    ]
    if before.data_fingerprint != record.data_fingerprint:
        differing.append("its data were others")
    if differing:
        raise ConfigError(f"{run_dir}: holds a run with other settings ({', '.join(sorted(differing))}); "
                          "give another name or remove the folder")  # fmt: skip


def _leaves(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a plain config, and its value."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def run_hash(config: TrainConfig) -> str:
    """What tells two runs apart: the config without where things lie and how they are shown."""
    return config_hash(config, ignore=("data", "out", "name", "tracking", "fit.progress", "fit.log_every"))


def run_name(config: TrainConfig, data: CTRData) -> str:
    """Name of the folder of a run: the one that the config gives, or one that no other run has."""
    hash = config_hash({"run": run_hash(config), "data": data.store.fingerprint})
    return config.name or f"{config.model.name}-{config.length.preset}-{hash}-seed{config.seed}"


def open_data(config: TrainConfig) -> CTRData:
    """The data set a config names.

    Raises:
        DataError: There is none, or it lacks the splits that training needs.
    """
    data = CTRData(
        config.data,
        max_length=config.history.max_length,
        columns=config.history.columns,
        batch_size=config.train.batch_size,
        eval_batch_size=config.train.eval_batch_size,
        seed=config.seed,
        workers=config.train.loader_workers,
    )
    for split in ("train", "valid"):
        data.store.split(split)
    return data


def load_run(run_dir: Path) -> tuple[TrainConfig, CTRModel, CTRData]:
    """A trained run: its config, its best weights, its data.

    Raises:
        ConfigError: The folder's config.yaml is not one.
        DataError: The folder is no run, has no checkpoint, or its data set is gone.
    """
    if not (run_dir / "config.yaml").is_file():
        raise DataError(f"{run_dir}: not a run folder (no config.yaml); `lain train` makes one")
    config = load_config(TrainConfig, run_dir / "config.yaml", renamed=RENAMED)
    data = open_data(config)
    model = build_model(config, data.store.features)
    module = CTRModule(model, config.train, config.buckets)
    best = run_dir / "checkpoints" / "best.ckpt"
    load_checkpoint(best if best.exists() else best.with_name("last.ckpt"), module)
    return config, model.eval(), data


def write_attention(model: CTRModel, data: CTRData, config: TrainConfig, run_dir: Path) -> dict[str, Any]:
    """Measure the attention on test rows and write attention.json."""
    shape = diagnostics.attention_by_bucket(
        model, data.batches("test"), config.buckets, rows=config.diagnose_rows
    )
    atomic_write(run_dir / "attention.json", json.dumps(shape, indent=1) + "\n")
    return shape
