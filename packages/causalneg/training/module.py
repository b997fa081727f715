"""The config of a training run, and the Lightning module: encode, call the losses, log."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from jaxtyping import Float, Int
from torch import Tensor

from causalneg import losses
from causalneg.encoders import Encoder
from causalneg.evaluation.diagnostics import gradient_signals
from causalneg.training.cached import cached_embeddings, token_chunks
from causalneg.training.data import Batch
from common.config import config_hash
from common.errors import ConfigError
from common.ragged import Ragged
from common.training.fit import FitConfig

Measure = Callable[[Encoder], dict[str, float]]
"""Figures of an encoder by name."""


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
class TrackingConfig:
    """Where the figures of a run go besides its folder.

    Args:
        wandb: W&B ``offline`` (files in the run folder), ``online``, or ``disabled``.
        project: W&B project.
        group: W&B group.
    """

    wandb: Literal["offline", "online", "disabled"] = "offline"
    project: str = "causalneg"
    group: str | None = None


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


LEARNING_RATES = {"static": 1.0, "small": 1e-3, "transformer": 5e-5}
"""Learning rate by kind of encoder, where the config names none."""


class RetrievalModule(L.LightningModule):
    """The shell around an encoder: encode, call the losses, log; optimiser and schedule.

    Args:
        encoder: The encoder.
        loss: What is minimised.
        optim: How the weights are learned.
        steps: Optimiser steps of the whole training, for the schedule.
        validation: Evaluates the encoder when an epoch ends; its metrics are logged under ``valid/``.
        probe: Measures the source shortcut of the encoder; logged under ``probe/``.
        probe_every: Steps between two probes; 0 for none.
        untrained: The probe's figures of the encoder as it starts, where they are known.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        loss: LossConfig,
        optim: OptimConfig,
        steps: int,
        validation: Measure | None = None,
        probe: Measure | None = None,
        probe_every: int = 0,
        untrained: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.loss_config, self.optim, self.steps = encoder, loss, optim, max(steps, 1)
        self._validation, self._probe, self._probe_every = validation, probe, probe_every
        self._untrained = untrained

    def embed(self, batch: Batch) -> tuple[Float[Tensor, "queries dim"], Float[Tensor, "documents dim"]]:
        """Embeddings of the batch's queries and of its distinct documents; gradients cached if asked."""
        return (
            self._chunked(batch.query_ids, batch.query_offsets, query=True),
            self._chunked(batch.document_ids, batch.document_offsets, query=False),
        )

    def _chunked(
        self, ids: Int[Tensor, " tokens"], offsets: Int[Tensor, " texts_plus_one"], *, query: bool
    ) -> Float[Tensor, "texts dim"]:
        if not self.optim.cached:
            embeddings: Tensor = self.encoder(ids, offsets, query=query)
            return embeddings
        tokens = Ragged(ids.cpu().numpy(), offsets.cpu().numpy())
        size = self.optim.chunk_tokens or (4096 if ids.device.type == "cpu" else 16_384)
        chunks, place = token_chunks(tokens, query=query, chunk_tokens=size)
        made = cached_embeddings(self.encoder, [chunk.to(ids.device) for chunk in chunks])
        return made[place.to(ids.device)]

    def losses(
        self, batch: Batch
    ) -> tuple[dict[str, Float[Tensor, ""]], Float[Tensor, "queries dim"], Float[Tensor, "documents dim"]]:
        """Every term of the loss by name, its weight included, and the embeddings that it was made of."""
        config = self.loss_config
        query, documents = self.embed(batch)
        positive, negatives = documents[batch.positive], documents[batch.negative]
        terms = {
            "info_nce": losses.info_nce(
                query,
                positive,
                negatives,
                batch.negative_row,
                config.temperature,
                config.in_batch,
                positive_id=batch.positive_id if config.in_batch else None,
                negative_id=batch.negative_id if config.in_batch else None,
                known_row=batch.known_row if config.in_batch else None,
                known_id=batch.known_id if config.in_batch else None,
                gather=bool(config.in_batch) and torch.distributed.is_initialized(),
            )
        }
        if config.entropy_weight:
            terms["entropy"] = config.entropy_weight * losses.query_view_entropy(
                query,
                negatives,
                batch.negative_row,
                batch.generated,
                config.entropy_temperature,
                scope=config.entropy_scope,
            )
        if config.matching_weight:
            terms["matching"] = config.matching_weight * losses.distribution_matching(
                query,
                negatives,
                batch.negative_row,
                batch.generated,
                distance=config.matching,
                gradient=config.matching_gradient,
            )
        return terms, query, documents

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step; logs every term of the loss, and what the negatives of each source weigh in it."""
        terms, query, documents = self.losses(batch)
        loss = torch.stack(list(terms.values())).sum()
        size = len(batch)
        self.log("train/loss", loss.detach(), batch_size=size)
        for name, value in terms.items():
            self.log(f"train/{name}", value.detach(), batch_size=size)
        if batch.generated.any() and not batch.generated.all():
            signals = gradient_signals(
                query.detach(),
                documents.detach()[batch.positive],
                documents.detach()[batch.negative],
                batch.negative_row,
                batch.generated,
                self.loss_config.temperature,
            )
            self.log_dict({f"train/{k}": v for k, v in signals.items()}, batch_size=size)
        return loss

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Probe the source shortcut, before the step, so that the first probe is of the untrained encoder."""
        if self._probe and self._probe_every and self.global_step % self._probe_every == 0:
            known = self._untrained if self.global_step == 0 else None
            found = self._measured(self._probe) if known is None else known
            figures = {f"probe/{k}": v for k, v in found.items()}
            for logger in self.loggers:
                logger.log_metrics(figures, step=self.global_step)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing: the epoch's end evaluates the corpus."""

    def on_validation_epoch_end(self) -> None:
        """Evaluate the encoder on the validation split."""
        if self._validation:
            self.log_dict({f"valid/{k}": v for k, v in self._measured(self._validation).items()})

    def _measured(self, measure: Measure) -> dict[str, float]:
        training = self.encoder.training
        self.encoder.eval()
        try:
            found = measure(self.encoder)
        finally:
            self.encoder.train(training)
        return found

    def configure_optimizers(self) -> Any:
        """The encoder's own optimiser where it has one, else AdamW; linear warm-up and decay."""
        rate = self.optim.learning_rate or LEARNING_RATES[self.encoder.kind]
        optimizer = self.encoder.optimizer(lr=rate, weight_decay=self.optim.weight_decay)
        warmup = math.ceil(self.optim.warmup * self.steps)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return max(self.steps - step, 1) / max(self.steps - warmup, 1) if self.optim.decay else 1.0

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def run_hash(config: TrainConfig) -> str:
    """What tells two runs apart: the config without where things lie and how they are shown."""
    ignored = ("data", "out", "name", "cache", "mixed", "tracking", "fit.progress", "fit.log_every")
    return config_hash(config, ignore=ignored)
