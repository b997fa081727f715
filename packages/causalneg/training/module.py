"""The Lightning module of dense retrieval: encode, call the losses, log."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import lightning as L
import torch
from jaxtyping import Float, Int
from torch import Tensor

from causalneg.encoders import Encoder
from causalneg.evaluation.diagnostics import gradient_signals
from causalneg.losses import EmbeddedBatch, Term, info_nce
from causalneg.training.cached import cached_embeddings, token_chunks
from causalneg.training.data import Batch
from common.ragged import Ragged

Measure = Callable[[Encoder], dict[str, float]]
"""Figures of an encoder by name."""


class RetrievalModule(L.LightningModule):
    """The shell around an encoder: encode, call the losses, log; optimiser and schedule.

    Args:
        encoder: The encoder.
        temperature: tau of InfoNCE.
        in_batch: Which texts of other queries are candidates; see :func:`causalneg.losses.info_nce`.
        terms: Terms of the loss beside InfoNCE, by the name that they are logged under.
        learning_rate: Learning rate; None takes the encoder's own.
        weight_decay: Decay of matrices.
        warmup: Share of all steps in which the learning rate rises linearly from 0.
        decay: Whether it then falls linearly to 0.
        cached: Whether gradients are cached at the embeddings.
        chunk_tokens: Tokens of a chunk of cached gradients; None: 4,096 on a CPU, else 16,384.
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
        temperature: float = 0.05,
        in_batch: bool | Literal["documents"] = False,
        terms: Mapping[str, Term] | None = None,
        learning_rate: float | None = None,
        weight_decay: float = 0.0,
        warmup: float = 0.1,
        decay: bool = True,
        cached: bool = False,
        chunk_tokens: int | None = None,
        steps: int = 1,
        validation: Measure | None = None,
        probe: Measure | None = None,
        probe_every: int = 0,
        untrained: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.temperature, self.in_batch = encoder, temperature, in_batch
        self.terms = {name: term for name, term in (terms or {}).items() if term.weight}
        self.learning_rate = encoder.default_learning_rate if learning_rate is None else learning_rate
        self.weight_decay, self.warmup, self.decay = weight_decay, warmup, decay
        self.cached, self.chunk_tokens, self.steps = cached, chunk_tokens, max(steps, 1)
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
        if not self.cached:
            embeddings: Tensor = self.encoder(ids, offsets, query=query)
            return embeddings
        tokens = Ragged(ids.cpu().numpy(), offsets.cpu().numpy())
        size = self.chunk_tokens or (4096 if ids.device.type == "cpu" else 16_384)
        chunks, place = token_chunks(tokens, query=query, chunk_tokens=size)
        made = cached_embeddings(self.encoder, [chunk.to(ids.device) for chunk in chunks])
        return made[place.to(ids.device)]

    def losses(
        self, batch: Batch
    ) -> tuple[dict[str, Float[Tensor, ""]], Float[Tensor, "queries dim"], Float[Tensor, "documents dim"]]:
        """Every term of the loss by name, its weight included, and the embeddings that it was made of."""
        query, documents = self.embed(batch)
        known = self.in_batch is not False

        def contrast(query: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
            return info_nce(
                query,
                positive,
                negatives,
                batch.negative_row,
                self.temperature,
                self.in_batch,
                positive_id=batch.positive_id if known else None,
                negative_id=batch.negative_id if known else None,
                known_row=batch.known_row if known else None,
                known_id=batch.known_id if known else None,
                gather=known and torch.distributed.is_initialized(),
            )

        embedded = EmbeddedBatch(
            query,
            documents[batch.positive],
            documents[batch.negative],
            batch.negative_row,
            batch.generated,
            batch.positive_teacher,
            batch.negative_teacher,
            contrast,
        )
        found = {"info_nce": contrast(query, embedded.positive, embedded.negatives)}
        for name, term in self.terms.items():
            found[name] = term.weight * term.value(embedded)
        return found, query, documents

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
                self.temperature,
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
        optimizer = self.encoder.optimizer(lr=self.learning_rate, weight_decay=self.weight_decay)
        warmup = math.ceil(self.warmup * self.steps)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return max(self.steps - step, 1) / max(self.steps - warmup, 1) if self.decay else 1.0

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
