"""Predictions of a trained model, and what they are worth."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from common.ctr_metrics import Metrics, ctr_metrics
from common.errors import DataError
from lain.batch import Batch
from lain.model import CTRModel
from lain.store import Split


@dataclass(frozen=True, eq=False)
class Predictions:
    """One row per impression, in the split's order.

    Args:
        user: User index.
        item: Item index.
        length: True history length.
        label: 1 for a click.
        score: Predicted click probability.
        probability: True click probability, where the world knows it.
        milliseconds: Time per impression that the model took, without loading.
    """

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    length: NDArray[np.int32]
    label: NDArray[np.uint8]
    score: Float[np.ndarray, " rows"]
    probability: Float[np.ndarray, " rows"] | None = None
    milliseconds: float = float("nan")

    def save(self, path: Path) -> None:
        """Write a parquet file, whole or not at all."""
        columns = {
            name: np.asarray(getattr(self, name)) for name in ("user", "item", "length", "label", "score")
        }
        if self.probability is not None:
            columns["probability"] = np.asarray(self.probability)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        pq.write_table(pa.table(columns), part)
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: The file is missing or no predictions.
        """
        try:
            table = pq.read_table(path)
            columns = {name: table[name].to_numpy() for name in table.column_names}
            return cls(**columns)
        except (OSError, pa.ArrowInvalid, TypeError) as error:
            raise DataError(
                f"{path}: cannot be read as predictions ({error}); run `lain evaluate` again"
            ) from error

    def metrics(self, buckets: Iterable[tuple[int, int | None]]) -> Metrics:
        """All metrics, whole and per bucket of true length."""
        return ctr_metrics(
            label=self.label,
            score=self.score,
            user=self.user,
            length=self.length,
            probability=self.probability,
            buckets=tuple(buckets),
        )


@torch.inference_mode()
def predict(model: CTRModel, batches: Iterable[Batch], split: Split) -> Predictions:
    """Score every row of a split.

    Args:
        model: The model; left in the mode (training or not) it came in.
        batches: Batches that together hold every row once.
        split: The rows they are of.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    score = np.full(len(split), np.nan)
    seconds = 0.0
    for batch in batches:
        began = time.perf_counter()
        logit = model(batch.to(device)).logit
        score[batch.rows.numpy()] = torch.sigmoid(logit.double()).cpu().numpy()
        seconds += time.perf_counter() - began
    model.train(training)
    return Predictions(
        user=np.asarray(split.user),
        item=np.asarray(split.item),
        length=np.asarray(split.length),
        label=np.asarray(split.label),
        score=score,
        probability=None if split.probability is None else np.asarray(split.probability),
        milliseconds=1e3 * seconds / max(len(split), 1),
    )
