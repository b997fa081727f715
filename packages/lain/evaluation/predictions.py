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

from common.errors import DataError
from common.files import atomic_path
from common.metrics.ctr import Metrics, ctr_metrics
from lain.data.batch import Batch
from lain.data.store import Split
from lain.model import CTRModel

COLUMNS = ("user", "item", "length", "label", "score")
"""The columns of a file of predictions."""


def truth_path(path: Path) -> Path:
    """Where the true click probabilities of a file of predictions lie: ``test-truth.parquet``."""
    return path.with_name(f"{path.stem}-truth{path.suffix}")


def is_predictions(path: Path) -> bool:
    """Whether a file is one of predictions, which others may replace.

    Args:
        path: The file.
    """
    try:
        names = pq.read_schema(path).names
    except (OSError, pa.ArrowException):
        return False
    return {"user", "item", "length", "score"} <= set(names) <= set(COLUMNS)


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
        labelled: Whether the labels are known.
    """

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    length: NDArray[np.int32]
    label: NDArray[np.uint8]
    score: Float[np.ndarray, " rows"]
    probability: Float[np.ndarray, " rows"] | None = None
    milliseconds: float = float("nan")
    labelled: bool = True

    def save(self, path: Path) -> None:
        """Write a Parquet file, whole or not at all: user, item, length, label where it is known, score.

        The true probability, where it is known, goes into a file beside it (:func:`truth_path`).
        """
        columns = {c: np.asarray(getattr(self, c)) for c in COLUMNS if self.labelled or c != "label"}
        with atomic_path(path) as temporary:
            pq.write_table(pa.table(columns), temporary)
        if self.probability is not None:
            with atomic_path(truth_path(path)) as temporary:
                pq.write_table(pa.table({"probability": np.asarray(self.probability)}), temporary)

    def metrics(self, buckets: Iterable[tuple[int, int | None]]) -> Metrics:
        """All metrics, whole and per bucket of true length.

        Raises:
            DataError: The labels are not known.
        """
        if not self.labelled:
            raise DataError("these rows have no labels to compare scores with; `lain predict` scores them")
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
        labelled=split.labelled,
    )
