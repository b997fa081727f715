"""The Lightning module of click-through prediction: loss, optimiser, validation metrics."""

from __future__ import annotations

import functools
from typing import Any

import lightning as L
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.metrics.ctr import DEFAULT_BUCKETS, Bucket
from lain.data.batch import Batch
from lain.data.module import CTRData
from lain.evaluation.predictions import Predictions
from lain.model import CTRModel
from lain.training.config import OptimConfig
from lain.training.optim import RowAdam, clip_gradients


class CTRModule(L.LightningModule):
    """The shell around :class:`~lain.model.CTRModel`: loss, optimiser, validation metrics.

    loss = mean binary cross-entropy + auxiliary_weight * the auxiliary head's; the embedding penalty
    is the optimiser's weight decay on the tables.

    Args:
        model: The predictor.
        config: How it learns.
        buckets: Buckets of true length for the validation metrics.
    """

    def __init__(self, model: CTRModel, config: OptimConfig, buckets: list[Bucket] | None = None) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.buckets = list(DEFAULT_BUCKETS) if buckets is None else buckets
        self._seen: list[tuple[Tensor, Tensor]] = []

    def losses(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Every term of the training loss of a batch by name, its weight included."""
        output = self.model(batch)
        found = {"bce": nn.functional.binary_cross_entropy_with_logits(output.logit, batch.label)}
        if output.auxiliary is not None and self.config.auxiliary_weight:
            own = nn.functional.binary_cross_entropy_with_logits(output.auxiliary, batch.label)
            found["auxiliary"] = self.config.auxiliary_weight * own
        return found

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """The training loss of a batch."""
        return self._sum(self.losses(batch))

    def _sum(self, terms: dict[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
        return functools.reduce(torch.add, terms.values())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step; logs ``train/loss`` and its terms."""
        terms = self.losses(batch)
        loss = self._sum(terms)
        self.log("train/loss", loss.detach(), batch_size=len(batch))
        for name, value in terms.items():
            self.log(f"train/{name}", value.detach(), batch_size=len(batch))
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
