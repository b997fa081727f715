"""From a config to a trained, measured run folder."""

from __future__ import annotations

import inspect
import json
import math
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.config import config_hash
from common.config import load as load_config
from common.config import save as save_config
from common.errors import ConfigError, DataError, HouseError, suggest
from common.files import atomic_write
from common.machine import check_fits, keep_freed_memory, out_of_memory
from common.metrics.ctr import DEFAULT_BUCKETS, ctr_metrics
from common.training.fit import FitConfig, fit, load_checkpoint
from common.training.record import Record
from common.training.tracking import close, loggers
from lain.backbones import BACKBONES
from lain.data.batch import Batch
from lain.data.module import CTRData
from lain.data.store import Feature
from lain.evaluation import diagnostics
from lain.evaluation.predictions import Predictions, predict
from lain.length import LengthConfig
from lain.model import CTRModel
from lain.training.optim import RowAdam, clip_gradients

Buckets = list[tuple[int, int | None]]

MAY_CHANGE = (
    *("data", "out", "name", "tracking.", "diagnose_rows", "train.eval_batch_size", "train.loader_workers"),
    *("fit.progress", "fit.log_every", "fit.epochs", "fit.checkpoint_steps"),
)
"""Settings that a run may be resumed with in another form; ``data`` is compared by its content."""

MOST_BEHAVIOURS = 2**31 - 1
"""The longest history that can be told: lengths are 32-bit integers."""

ADAM_MOMENTS = 2
"""Numbers that Adam keeps beside each weight."""


@dataclass
class ModelConfig:
    """The predictor. Each backbone reads the sizes it needs.

    Args:
        backbone: Which backbone.
        max_length: Behaviours of a history that are kept, counted from its end.
        embedding_dim: Width of each feature's vector.
        hidden: Widths of the head's hidden layers.
        dropout: Share of the head's hidden units dropped in training.
        batch_norm: Normalise the head's hidden layers over the batch.
        id_std: Standard deviation of the start of id tables.
        feature_std: Standard deviation of the start of all other tables.
        sparse: Row-sparse embedding gradients; null decides by table size.
        short_length: Behaviours of the short branch (SIM, SDIM, TWIN), the latest ones.
        top_k: Behaviours that a two-stage search keeps (SIM, TWIN).
        attention_dim: Width of queries, keys and values over all heads; 0 means the item's width.
        heads: Attention heads.
        attention_start: Start of the query and key projections.
        din_hidden: Widths of the hidden layers of DIN's scoring network.
        din_activation: Their activation; ``dice`` is the paper's.
        hashes: SDIM's number of hashes.
        hash_bits: Bits of each of them.
    """

    backbone: Literal["din", "dien", "sim", "sdim", "twin"] = "twin"
    max_length: int = 1000
    embedding_dim: int = 16
    hidden: list[int] = field(default_factory=lambda: [128, 64])
    dropout: float = 0.0
    batch_norm: bool = False
    id_std: float = 0.1
    feature_std: float = 0.3
    sparse: bool | None = None
    short_length: int = 50
    top_k: int = 50
    attention_dim: int = 0
    heads: int = 2
    attention_start: Literal["identity", "xavier"] = "identity"
    din_hidden: list[int] = field(default_factory=lambda: [64])
    din_activation: Literal["dice", "relu"] = "dice"
    hashes: int = 8
    hash_bits: int = 3

    def __post_init__(self) -> None:
        """Refuse sizes that make no model, all at once."""
        sizes = ("max_length", "embedding_dim", "short_length", "top_k", "heads", "hashes", "hash_bits")
        wrong = [f"{n}: must be at least 1, got {getattr(self, n)}" for n in sizes if getattr(self, n) < 1]
        wrong += [
            f"{n}: must be at most {MOST_BEHAVIOURS}, got {getattr(self, n)}"
            for n in ("max_length", "short_length", "top_k")
            if getattr(self, n) > MOST_BEHAVIOURS
        ]
        if self.attention_dim < 0:
            wrong.append(f"attention_dim: must not be negative, got {self.attention_dim}")
        for name in ("hidden", "din_hidden"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                wrong.append(f"{name}: must name positive widths, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            wrong.append(f"dropout: must lie in [0, 1), got {self.dropout}")
        for name in ("id_std", "feature_std"):
            if not 0 <= getattr(self, name) < math.inf:
                wrong.append(f"{name}: must be finite and not negative, got {getattr(self, name)}")
        ConfigError.raise_if(wrong)

    def build(self, features: Iterable[Feature], length: LengthConfig, *, copies: int = 1) -> CTRModel:
        """The model for a data set's features.

        Args:
            features: The features.
            length: What the model is told about history lengths.
            copies: Numbers that this machine's memory has to hold for each weight.

        Raises:
            ConfigError: The parts do not fit together, or the model does not fit into memory.
        """
        backbone = partial(BACKBONES[self.backbone], **{name: getattr(self, name) for name in self._taken})
        known = list(features)

        def make() -> CTRModel:
            return CTRModel(
                features=known,
                embedding_dim=self.embedding_dim,
                backbone=backbone,
                length=length.resolve(),
                hidden=self.hidden,
                dropout=self.dropout,
                batch_norm=self.batch_norm,
                id_std=self.id_std,
                feature_std=self.feature_std,
                sparse=self.sparse,
            )

        try:
            check_fits(make, copies=copies, advice=f"lower its sizes: {self.largest_sizes(length)}")
            return make()
        except ValueError as error:
            raise ConfigError(f"model: {error}") from error

    @property
    def _taken(self) -> list[str]:
        """The fields that the backbone reads."""
        return [name for name in inspect.signature(BACKBONES[self.backbone]).parameters if name != "width"]

    def largest_sizes(self, length: LengthConfig) -> str:
        """The three largest of the settings that decide how large the model is, and their values."""
        own = ["embedding_dim", "hidden"]
        own += [
            name for name in ("attention_dim", "din_hidden", "hashes", "hash_bits") if name in self._taken
        ]
        sizes = {f"model.{name}": getattr(self, name) for name in own}
        options = length.resolve()
        if options.encoded:
            of_length = ("hidden", "frequencies", "prompts")
            sizes |= {f"length.{name}": getattr(options, name) for name in of_length}
        largest = sorted(sizes, key=lambda name: np.max(sizes[name]), reverse=True)[:3]
        return ", ".join(f"{name}={sizes[name]}" for name in largest)


@dataclass
class OptimConfig:
    """How the weights are learned.

    Args:
        batch_size: Impressions per step and process.
        eval_batch_size: Impressions per step without gradient.
        learning_rate: Of Adam.
        embedding_l2: Penalty on embedding tables: embedding_l2 / 2 times the squared norm (of the rows
            a batch mentions, for tables with row-sparse gradients).
        auxiliary_weight: Weight of a backbone's auxiliary loss (SIM).
        loader_workers: Loader processes; 0 loads in the training process.
    """

    batch_size: int = 512
    eval_batch_size: int = 2048
    learning_rate: float = 1e-3
    embedding_l2: float = 0.0
    auxiliary_weight: float = 1.0
    loader_workers: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot train, all at once."""
        sizes = ("batch_size", "eval_batch_size")
        wrong = [f"{n}: must be at least 1, got {getattr(self, n)}" for n in sizes if getattr(self, n) < 1]
        if not 0 < self.learning_rate < math.inf:
            wrong.append(f"learning_rate: must be finite and positive, got {self.learning_rate}")
        for name in ("embedding_l2", "auxiliary_weight", "loader_workers"):
            if not 0 <= getattr(self, name) < math.inf:
                wrong.append(f"{name}: must be finite and not negative, got {getattr(self, name)}")
        ConfigError.raise_if(wrong)


@dataclass
class TrackingConfig:
    """Where the figures of a run go besides its folder.

    Args:
        wandb: W&B ``offline`` (files in the run folder), ``online``, or ``disabled``.
        project: W&B project.
        group: W&B group.
    """

    wandb: Literal["offline", "online", "disabled"] = "offline"
    project: str = "lain"
    group: str | None = None


@dataclass
class TrainConfig:
    """Everything that decides a run.

    Args:
        data: Prepared data set (``lain prepare`` or ``lain world`` makes one).
        out: Folder in which the run folder is made.
        name: Name of the run folder; null makes one of backbone, preset, a hash of settings and data, and
            seed.
        seed: From 0 to 2^32 - 1; decides the start of the weights, the order of the rows and the dropout.
        model: The predictor.
        length: What the model is told about history lengths.
        train: How its weights are learned.
        fit: How long, how precisely, on what.
        tracking: Loggers.
        buckets: Buckets of true length [low, high) that metrics are reported for; null is open.
        diagnose_rows: Test rows per bucket whose attention is measured at the end; 0 for none.
    """

    data: Path
    out: Path = Path("runs")
    name: str | None = None
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    length: LengthConfig = field(default_factory=LengthConfig)
    train: OptimConfig = field(default_factory=OptimConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    buckets: Buckets = field(default_factory=lambda: list(DEFAULT_BUCKETS))
    diagnose_rows: int = 500

    def __post_init__(self) -> None:
        """Refuse what would stop a run after it began, all at once."""
        wrong = [
            f"buckets[{number}]: needs 0 <= low < high, got {low} and {high}"
            for number, (low, high) in enumerate(self.buckets)
            if low < 0 or (high is not None and high <= low)
        ]
        if not wrong and self.fit.monitor not in (there := _logged(self.buckets)):
            choices = ", ".join(name for name in there if name.count("/") == 1)
            wrong.append(f"fit.monitor: no metric '{self.fit.monitor}'{suggest(self.fit.monitor, there)} "
                         f"(there are {choices}, and the same by bucket)")  # fmt: skip
        if not 0 <= self.seed < 2**32:
            wrong.append(f"seed: must be from 0 to {2**32 - 1}, got {self.seed}")
        if self.diagnose_rows < 0:
            wrong.append(f"diagnose_rows: must not be negative, got {self.diagnose_rows}")
        if self.name is not None and (not self.name or {".", ".."} & set(self.name.split("/"))):
            wrong.append(f"name: must be the name of a new folder, got '{self.name}'")
        ConfigError.raise_if(wrong)


def _logged(buckets: Buckets) -> list[str]:
    """The metrics that a run of these buckets logs."""
    row = np.zeros(2, dtype=np.int64)
    found = ctr_metrics(label=row, score=row + 0.5, user=row, length=row, buckets=buckets)
    return ["train/loss", *(f"valid/{name}" for name in found.values)]


class CTRModule(L.LightningModule):
    """The shell around :class:`~lain.model.CTRModel`: loss, optimiser, validation metrics.

    loss = mean binary cross-entropy + auxiliary_weight * the auxiliary head's; the embedding penalty
    is the optimiser's weight decay on the tables.

    Args:
        model: The predictor.
        config: How it learns.
        buckets: Buckets of true length for the validation metrics.
    """

    def __init__(self, model: CTRModel, config: OptimConfig, buckets: Buckets | None = None) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.buckets = list(DEFAULT_BUCKETS) if buckets is None else buckets
        self._seen: list[tuple[Tensor, Tensor]] = []

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """The training loss of a batch."""
        output = self.model(batch)
        loss = nn.functional.binary_cross_entropy_with_logits(output.logit, batch.label)
        if output.auxiliary is not None and self.config.auxiliary_weight:
            own = nn.functional.binary_cross_entropy_with_logits(output.auxiliary, batch.label)
            loss = loss + self.config.auxiliary_weight * own
        return loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step; logs ``train/loss``."""
        loss = self.loss(batch)
        self.log("train/loss", loss.detach(), batch_size=len(batch))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score a batch; the metrics come at the epoch's end."""
        self._seen.append((batch.rows.cpu(), self.model(batch).logit.float().cpu()))

    def on_validation_epoch_end(self) -> None:
        """Log ``valid/auc``, ``valid/logloss`` and their buckets."""
        rows = torch.cat([r for r, _ in self._seen])
        logit = torch.cat([x for _, x in self._seen])
        self._seen.clear()
        if self.trainer.world_size > 1:
            rows, logit = (torch.cat(list(self.all_gather(x))) for x in (rows, logit))
        data: CTRData = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it in fit()
        split = data.store.split("valid")
        number, first = np.unique(rows.cpu().numpy(), return_index=True)
        score = torch.sigmoid(logit.cpu().double()).numpy()[first]
        found = Predictions(
            user=split.user[number],
            item=split.item[number],
            length=split.length[number],
            label=split.label[number],
            score=score,
        ).metrics(self.buckets)
        self.log_dict({f"valid/{k}": float("nan") if v is None else v for k, v in found.values.items()})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """RowAdam, with the embedding penalty on the tables alone."""
        tables = self.model.tables()
        of_tables = {id(p) for p in tables}
        rest = [p for p in self.model.parameters() if id(p) not in of_tables and p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": tables, "weight_decay": self.config.embedding_l2}]
        return RowAdam([*groups, {"params": rest}], lr=self.config.learning_rate)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the joint norm of dense and row-sparse gradients."""
        if gradient_clip_val:
            clip_gradients(self.model.parameters(), float(gradient_clip_val))


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
    model = config.model.build(data.store.features, config.length, copies=copies)
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
    train, model = config.train, config.model
    return (
        f"lower train.batch_size={train.batch_size}, train.eval_batch_size={train.eval_batch_size}, "
        f"model.max_length={model.max_length} or the model's sizes: {model.largest_sizes(config.length)}"
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
    except (HouseError, OSError):
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
    return config.name or f"{config.model.backbone}-{config.length.preset}-{hash}-seed{config.seed}"


def open_data(config: TrainConfig) -> CTRData:
    """The data set a config names.

    Raises:
        DataError: There is none, or it lacks the splits that training needs.
    """
    data = CTRData(
        config.data,
        max_length=config.model.max_length,
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
    config = load_config(TrainConfig, run_dir / "config.yaml")
    data = open_data(config)
    model = config.model.build(data.store.features, config.length)
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
