"""The settings of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from causalneg.encoders import ENCODERS, Encoder
from causalneg.losses import TERMS, Term
from common.config import Component
from common.config import load as load_config
from common.errors import ConfigError
from common.training.config import RENAMED as FIT_RENAMED
from common.training.config import FitConfig, TrackingConfig, mistakes

RENAMED = {
    **FIT_RENAMED,
    "encoder.kind": "encoder.name",
    "encoder.options": "part of the encoder itself: encoder={name: static, dim: 512}",
    "encoder.start": "encoder={name: saved, folder: ...}",
    "loss.entropy_weight": "loss.terms=[{name: entropy, weight: ...}]",
    "loss.entropy_temperature": "loss.terms=[{name: entropy, temperature: ...}]",
    "loss.entropy_scope": "loss.terms=[{name: entropy, scope: ...}]",
    "loss.matching_weight": "loss.terms=[{name: matching, weight: ...}]",
    "loss.matching": "loss.terms=[{name: matching, distance: ...}]",
    "loss.matching_gradient": "loss.terms=[{name: matching, gradient: ...}]",
}
"""What settings are called now, by the dotted key that they had before."""


@dataclass(kw_only=True)
class SetConfig:
    """A training set, and how much of it is used.

    Args:
        path: Training set: what ``causalneg mine``, ``generate`` or ``verify`` wrote, or that of another tool
            as it is (FlagEmbedding, sentence-transformers, Tevatron, ms-swift; JSON lines or Parquet).
        count: Negatives taken of each query, from its front; what is left over can fill up ``candidates``.
    """

    path: Path
    count: Annotated[int, Ge(0)] = 0


@dataclass(kw_only=True)
class LossConfig:
    """What is minimised: InfoNCE + sum over the terms of ``weight * term``.

    Args:
        temperature: tau of InfoNCE.
        in_batch: Whether the other queries' positives are candidates too, those of other processes
            included; ``documents`` adds the other queries' negatives.
        terms: Terms beside InfoNCE: ``entropy`` (published with weight .05), ``matching``.
    """

    temperature: Annotated[float, Gt(0)] = 0.05
    in_batch: bool | Literal["documents"] = False
    terms: list[Annotated[Component[Term], TERMS]] = field(default_factory=list)

    def build_terms(self) -> dict[str, Term]:
        """The terms by name; the second of a name is ``NAME-2``.

        Raises:
            ConfigError: A term refuses its settings.
        """
        built: dict[str, Term] = {}
        for component in self.terms:
            same = sum(name.split("-")[0] == component.name for name in built)
            built[component.name if not same else f"{component.name}-{same + 1}"] = component.build()
        return built


@dataclass(kw_only=True)
class OptimConfig:
    """How the weights are learned.

    Args:
        batch_size: Queries per step and process.
        learning_rate: Of AdamW; for the static encoder, a factor on the rates of its three parts. Null takes
            the encoder's own: 1 for ``static``, 1e-3 for ``small`` and 5e-5 for ``transformer``.
        weight_decay: Of AdamW.
        warmup: Share of all steps in which the learning rate rises linearly from 0.
        decay: Whether it then falls linearly to 0.
        cached: Whether gradients are cached at the embeddings, so that memory holds one chunk at a time
            and the batch may be as large as you like, for a second forward pass.
        chunk_tokens: Tokens of such a chunk. Null takes 4,096 on a CPU, whose caches they suit, and 16,384
            elsewhere.
    """

    batch_size: Annotated[int, Ge(1)] = 64
    learning_rate: Annotated[float, Gt(0)] | None = None
    weight_decay: Annotated[float, Ge(0)] = 0.0
    warmup: Annotated[float, Ge(0), Lt(1)] = 0.1
    decay: bool = True
    cached: bool = False
    chunk_tokens: Annotated[int, Ge(1)] | None = None


@dataclass(kw_only=True)
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
    holdout: Annotated[float, Ge(0), Lt(1)] = 0.05
    documents: Annotated[int, Ge(0)] = 1000
    every: Annotated[int, Ge(0)] = 0


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


@dataclass(kw_only=True)
class TrainConfig:
    """Everything that decides a run.

    Args:
        data: Data set with the corpus and the queries: a BEIR folder, another layout that is read, or a
            training set that holds its texts, whose corpus they are.
        sets: Training sets; the queries trained on are those of the first. Empty trains on the qrels of
            ``train_split`` without negatives, or on all of ``data`` where that is a training set.
        candidates: Negatives per query; 0 takes what the counts of the sets give.
        exact: Whether a query with fewer negatives than ``candidates`` is an error.
        voices: Training set with rewritten positives and mined negatives (both voices); null for none.
        voice_share: Probability that a rewritten version stands in for its passage.
        train_split: Split that known positives are read from, and queries where there are no sets.
        valid_split: Split that is evaluated after every epoch; null does not validate.
        tests: Splits evaluated at the end.
        mixed: Data set with the mixed-style twin of the corpus, evaluated beside it; null for none.
        out: Folder in which the run folder is made.
        name: Name of the run folder; null makes one of encoder, config hash and seed.
        cache: Folder for token ids that runs share; null keeps none.
        ladder: Whether ``causalneg train`` ends with BM25, the start encoder and the trained one on the first
            test split, side by side; they are measured where that costs little beside the training.
        seed: Decides the start of the weights, the order of the queries and the dropout.
        encoder: The encoder: ``static``, ``small``, ``transformer``, or ``saved`` to start from a folder.
        loss: What is minimised.
        train: How its weights are learned.
        diagnose: What is measured about the source of negatives.
        fit: How long, how precisely, on what.
        tracking: Loggers.
    """

    data: Path
    sets: list[SetConfig] = field(default_factory=list)
    candidates: Annotated[int, Ge(0)] = 0
    exact: bool = True
    voices: Path | None = None
    voice_share: Annotated[float, Ge(0), Le(1)] = 0.5
    train_split: str = "train"
    valid_split: str | None = None
    tests: list[str] = field(default_factory=lambda: ["test"])
    mixed: Path | None = None
    out: Path = Path("runs")
    name: str | None = None
    cache: Path | None = None
    ladder: bool = True
    seed: Annotated[int, Ge(0)] = 0
    encoder: Annotated[Component[Encoder], ENCODERS] = field(
        default_factory=lambda: ENCODERS.component("static")
    )
    loss: LossConfig = field(default_factory=LossConfig)
    train: OptimConfig = field(default_factory=OptimConfig)
    diagnose: DiagnoseConfig = field(default_factory=DiagnoseConfig)
    fit: RetrievalFit = field(default_factory=RetrievalFit)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        """Refuse what would stop a run after it began, all at once."""
        ConfigError.raise_if(mistakes(self))


def load_train_config(
    path: Path | None, overrides: Sequence[str] = (), base: Mapping[str, Any] | None = None
) -> TrainConfig:
    """Read the settings of a run; see :func:`common.config.load`."""
    return load_config(TrainConfig, path, overrides, base, renamed=RENAMED)
