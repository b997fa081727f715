"""The settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from common.errors import ConfigError
from common.training.config import RENAMED as FIT_RENAMED
from common.training.config import FitConfig, TrackingConfig, mistakes

RENAMED = {**FIT_RENAMED}
"""What became of settings, by the dotted key that they had before."""


@dataclass
class EncoderConfig:
    """The encoder.

    Args:
        kind: ``static`` (bag of learned word weights), ``small`` (a transformer from scratch) or
            ``transformer`` (any Hugging Face model).
        start: Folder of an encoder to start from; kind and options are then those that it was made with.
        options: Arguments of the kind's ``build`` (width, layers, max_tokens, model, pooling, ...).
    """

    kind: Literal["static", "small", "transformer"] = "static"
    start: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class SetConfig:
    """A training set, and how much of it is used.

    Args:
        path: JSONL file that ``causalneg mine``, ``generate`` or ``verify`` wrote.
        count: Negatives taken of each query, from its front; what is left over can fill up ``candidates``.
    """

    path: Path
    count: int = 0


@dataclass
class LossConfig:
    """What is minimised: InfoNCE + entropy_weight * L_ent + matching_weight * matching distance.

    Args:
        temperature: tau of InfoNCE.
        in_batch: Whether the other queries' positives are candidates too, those of other processes
            included; ``documents`` adds the other queries' negatives.
        entropy_weight: lambda of the query-view entropy (published: .05); 0 turns it off.
        entropy_temperature: tau_e of the query-view entropy.
        entropy_scope: Negatives that the entropy's softmax runs over: the query's own or the batch's.
        matching_weight: Weight of the distribution matching; 0 turns it off.
        matching: Which distance between the similarities of generated and mined negatives.
        matching_gradient: Which side the matching moves.
    """

    temperature: float = 0.05
    in_batch: bool | Literal["documents"] = False
    entropy_weight: float = 0.0
    entropy_temperature: float = 0.1
    entropy_scope: Literal["own", "batch"] = "own"
    matching_weight: float = 0.0
    matching: Literal["wasserstein", "energy"] = "wasserstein"
    matching_gradient: Literal["generated", "both"] = "generated"

    def __post_init__(self) -> None:
        """Refuse what cannot be minimised, all at once."""
        wrong = [
            f"loss.{n} must be positive, got {getattr(self, n)}"
            for n in ("temperature", "entropy_temperature")
            if not getattr(self, n) > 0
        ]
        wrong += [
            f"loss.{n} must not be negative, got {getattr(self, n)}"
            for n in ("entropy_weight", "matching_weight")
            if getattr(self, n) < 0
        ]
        ConfigError.raise_if(wrong)


@dataclass
class OptimConfig:
    """How the weights are learned.

    Args:
        batch_size: Queries per step and process.
        learning_rate: Of AdamW; for the static encoder, a factor on the rates of its three parts. Null
            takes 1 for ``static``, 1e-3 for ``small`` and 5e-5 for ``transformer``.
        weight_decay: Of AdamW.
        warmup: Share of all steps in which the learning rate rises linearly from 0.
        decay: Whether it then falls linearly to 0.
        cached: Whether gradients are cached at the embeddings, so that memory holds one chunk at a time
            and the batch may be as large as you like, for a second forward pass.
        chunk_tokens: Tokens of such a chunk. Null takes 4,096 on a CPU, whose caches they suit, and 16,384
            elsewhere.
    """

    batch_size: int = 64
    learning_rate: float | None = None
    weight_decay: float = 0.0
    warmup: float = 0.1
    decay: bool = True
    cached: bool = False
    chunk_tokens: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot train, all at once."""
        wrong = [
            f"train.{n} must be at least 1, got {getattr(self, n)}"
            for n in ("batch_size", "chunk_tokens")
            if (value := getattr(self, n)) is not None and value < 1
        ]
        if self.learning_rate is not None and not self.learning_rate > 0:
            wrong.append(f"train.learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.warmup < 1:
            wrong.append(f"train.warmup must lie in [0, 1), got {self.warmup}")
        ConfigError.raise_if(wrong)


@dataclass
class DiagnoseConfig:
    """What is measured about the source of negatives, on queries that were not trained on.

    Args:
        examples: Training sets with mined and generated negatives for the held-out queries; empty measures
            the sets that are trained on.
        holdout: Share of the training queries that is kept from training for this.
        documents: Documents whose style is changed for the style shift.
        every: Steps between two measurements while training; 0 measures at the end only.
    """

    examples: list[Path] = field(default_factory=list)
    holdout: float = 0.05
    documents: int = 1000
    every: int = 0

    def __post_init__(self) -> None:
        """Refuse shares that are none."""
        if not 0 <= self.holdout < 1:
            raise ConfigError(f"diagnose.holdout must lie in [0, 1), got {self.holdout}")


@dataclass
class RetrievalFit(FitConfig):
    """As its base; by default one epoch, judged by the nDCG@10 of the validation split.

    Args:
        epochs: Most passes over the training queries.
        patience: Validations without a better one before training stops; 0 never stops it.
        monitor: The figure that decides which weights are kept.
    """

    epochs: int = 1
    patience: int = 0
    monitor: str = "valid/ndcg@10"


@dataclass
class TrainConfig:
    """Everything that decides a run.

    Args:
        data: BEIR folder with the corpus and the queries.
        sets: Training sets; the queries trained on are those of the first. Empty trains on the qrels of
            ``train_split`` without negatives.
        candidates: Negatives per query; 0 takes what the counts of the sets give.
        exact: Whether a query with fewer negatives than ``candidates`` is an error.
        voices: Training set with rewritten positives and mined negatives (both voices); null for none.
        voice_share: Probability that a rewritten version stands in for its passage.
        train_split: Split that known positives are read from, and queries where there are no sets.
        valid_split: Split that is evaluated after every epoch; null does not validate.
        tests: Splits evaluated at the end.
        mixed: BEIR folder with the mixed-style twin of the corpus, evaluated beside it; null for none.
        out: Folder in which the run folder is made.
        name: Name of the run folder; null makes one of encoder, config hash and seed.
        cache: Folder for token ids that runs share; null keeps none.
        seed: Decides the start of the weights, the order of the queries and the dropout.
        encoder: The encoder.
        loss: What is minimised.
        train: How its weights are learned.
        diagnose: What is measured about the source of negatives.
        fit: How long, how precisely, on what.
        tracking: Loggers.
    """

    data: Path
    sets: list[SetConfig] = field(default_factory=list)
    candidates: int = 0
    exact: bool = True
    voices: Path | None = None
    voice_share: float = 0.5
    train_split: str = "train"
    valid_split: str | None = None
    tests: list[str] = field(default_factory=lambda: ["test"])
    mixed: Path | None = None
    out: Path = Path("runs")
    name: str | None = None
    cache: Path | None = None
    seed: int = 0
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: OptimConfig = field(default_factory=OptimConfig)
    diagnose: DiagnoseConfig = field(default_factory=DiagnoseConfig)
    fit: RetrievalFit = field(default_factory=RetrievalFit)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        """Refuse what would stop a run after it began, all at once."""
        ConfigError.raise_if(mistakes(self))
