"""The Lightning module of dense retrieval: encode, call the losses, log."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from jaxtyping import Float, Int
from torch import Tensor

from causalneg import losses
from causalneg.encoders import Encoder
from causalneg.evaluation.diagnostics import gradient_signals
from causalneg.training.cached import cached_embeddings, token_chunks
from causalneg.training.config import LossConfig, OptimConfig
from causalneg.training.data import Batch
from common.ragged import Ragged

Measure = Callable[[Encoder], dict[str, float]]
"""Figures of an encoder by name."""


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
