"""The settings of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le, Lt

from common.config import Component, Positive, checked
from common.errors import ConfigError, suggest
from common.metrics.ctr import DEFAULT_BUCKETS, Bucket, ctr_metrics
from common.training.config import RENAMED as FIT_RENAMED
from common.training.config import FitConfig, TrackingConfig, mistakes
from lain.backbones import BACKBONES, Backbone
from lain.heads import HEADS, Head
from lain.length import LengthConfig

MOST_BEHAVIOURS = 2**31 - 1
"""The longest history that a data set can hold: lengths are 32-bit integers."""

PLAIN = ("train/loss", "valid/auc", "valid/logloss", "valid/gauc")
"""Metrics that every run logs, whatever its buckets; known without computing any, which takes seconds."""


RENAMED = {
    **FIT_RENAMED,
    "model.backbone": "model.name",
    "model.max_length": "history.max_length",
    "model.embedding_dim": "embedding.dim",
    "model.id_std": "embedding.id_std",
    "model.feature_std": "embedding.feature_std",
    "model.sparse": "embedding.sparse",
    "model.hidden": "head.hidden",
    "model.dropout": "head.dropout",
    "model.batch_norm": "head.batch_norm",
    "model.din_hidden": "model.attention_hidden",
    "model.din_activation": "model.attention_activation",
}
"""What a setting is called now, by the key that it had before."""

NotNegative = Annotated[float, Ge(0), Lt(math.inf)]


@dataclass(kw_only=True)
class EmbeddingConfig:
    """How features become vectors.

    Args:
        dim: Width of each feature's vector.
        id_std: Standard deviation of the start of id tables.
        feature_std: Standard deviation of the start of all other tables.
        sparse: Row-sparse gradients; null decides by table size.
    """

    dim: Positive = 16
    id_std: NotNegative = 0.1
    feature_std: NotNegative = 0.3
    sparse: bool | None = None


@dataclass(kw_only=True)
class HistoryConfig:
    """What is read of a user's history.

    Args:
        max_length: Behaviours that are kept, counted from the end.
        columns: What of a behaviour is embedded with its item: columns of the data set, such as action.
    """

    max_length: Annotated[int, Ge(1), Le(MOST_BEHAVIOURS)] = 1000
    columns: list[str] = field(default_factory=list)


@checked
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

    batch_size: Positive = 512
    eval_batch_size: Positive = 2048
    learning_rate: Annotated[float, Gt(0), Lt(math.inf)] = 1e-3
    embedding_l2: NotNegative = 0.0
    auxiliary_weight: NotNegative = 1.0
    loader_workers: Annotated[int, Ge(0)] = 0


@checked
@dataclass
class TrainConfig:
    """Everything that decides a run.

    Args:
        data: Prepared data set (``lain prepare`` or ``lain world`` makes one).
        out: Folder in which the run folder is made.
        name: Name of the run folder; null makes one of backbone, preset, a hash of settings and data, and
            seed.
        seed: From 0 to 2^32 - 1; decides the start of the weights, the order of the rows and the dropout.
        model: The backbone, which reads the history for what there is of interest in the target.
        embedding: How features become vectors.
        head: What makes one logit of features, target and interests.
        history: What is read of a user's history.
        length: How the length of a history conditions the model.
        train: How its weights are learned.
        fit: How long, how precisely, on what.
        tracking: Loggers.
        buckets: list[Bucket] of true length [low, high) that metrics are reported for; null is open.
        diagnose_rows: Test rows per bucket whose attention is measured at the end; 0 for none.
    """

    data: Path
    out: Path = Path("runs")
    name: str | None = None
    seed: int = 0
    model: Annotated[Component[Backbone], BACKBONES] = field(
        default_factory=lambda: BACKBONES.component("twin")
    )
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    head: Annotated[Component[Head], HEADS] = field(default_factory=lambda: HEADS.component("mlp"))
    history: HistoryConfig = field(default_factory=HistoryConfig)
    length: LengthConfig = field(default_factory=LengthConfig)
    train: OptimConfig = field(default_factory=OptimConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    buckets: list[Bucket] = field(default_factory=lambda: list(DEFAULT_BUCKETS))
    diagnose_rows: Annotated[int, Ge(0)] = 500

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
        ConfigError.raise_if(wrong)


def _logged(buckets: list[Bucket]) -> list[str]:
    """The metrics that a run of these buckets logs."""
    row = np.zeros(2, dtype=np.int64)
    found = ctr_metrics(label=row, score=row + 0.5, user=row, length=row, buckets=buckets)
    return ["train/loss", *(f"valid/{name}" for name in found.values)]
