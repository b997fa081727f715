"""The settings of a training run."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from common.errors import ConfigError, suggest
from common.machine import check_fits
from common.metrics.ctr import DEFAULT_BUCKETS, ctr_metrics
from common.training.config import RENAMED as FIT_RENAMED
from common.training.config import FitConfig, TrackingConfig, mistakes
from lain.backbones import BACKBONES
from lain.data.schema import Feature
from lain.length import LengthConfig
from lain.model import CTRModel

Buckets = list[tuple[int, int | None]]

RENAMED = {**FIT_RENAMED}
"""What became of settings, by the dotted key that they had before."""

MOST_BEHAVIOURS = 2**31 - 1
"""The longest history that can be told: lengths are 32-bit integers."""

PLAIN = ("train/loss", "valid/auc", "valid/logloss", "valid/gauc")
"""Metrics that every run logs, whatever its buckets; known without computing any, which takes seconds."""

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
        known = self.fit.monitor in PLAIN
        if not wrong and not known and self.fit.monitor not in (there := _logged(self.buckets)):
            choices = ", ".join(name for name in there if name.count("/") == 1)
            wrong.append(f"fit.monitor: no metric '{self.fit.monitor}'{suggest(self.fit.monitor, there)} "
                         f"(there are {choices}, and the same by bucket)")  # fmt: skip
        wrong += mistakes(self)
        if self.diagnose_rows < 0:
            wrong.append(f"diagnose_rows: must not be negative, got {self.diagnose_rows}")
        ConfigError.raise_if(wrong)


def _logged(buckets: Buckets) -> list[str]:
    """The metrics that a run of these buckets logs."""
    row = np.zeros(2, dtype=np.int64)
    found = ctr_metrics(label=row, score=row + 0.5, user=row, length=row, buckets=buckets)
    return ["train/loss", *(f"valid/{name}" for name in found.values)]
