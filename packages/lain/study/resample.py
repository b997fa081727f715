"""Runs of a study measured on resamples of its test users."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from common.errors import DataError
from common.metrics.ctr import DEFAULT_BUCKETS, Bucket, bucket_masks, ctr_metrics
from common.stats.bootstrap import UserBootstrap
from common.study.collect import Measure, Run
from common.study.compare import Resampler, Vector
from lain.evaluation.predictions import truth_path

WHOLE = ""
"""Name of the group of all rows."""

METRICS = ("auc", "logloss", "gauc")


def read_predictions(run: Run, where: Callable[[Path], Path] = lambda path: path) -> pa.Table:
    """What a run predicted for the test rows, with their labels.

    Args:
        run: The run.
        where: The file to read instead, from the path of the predictions.

    Raises:
        DataError: The file cannot be read.
    """
    path = where(run.folder / "predictions" / "test.parquet")
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        hint = "remove the run's folder to train it again"
        raise DataError(f"{path}: cannot be read ({error}); {hint}") from error


def _truth(run: Run, predictions: pa.Table) -> Float[np.ndarray, " rows"] | None:
    """The true click probabilities, where the world knows them; they may stand among the predictions."""
    if "probability" not in predictions.column_names:
        if not truth_path(run.folder / "predictions" / "test.parquet").is_file():
            return None
        predictions = read_predictions(run, truth_path)
    return np.asarray(predictions["probability"])


class UserResampler(Resampler):
    """AUC, logloss and gAUC of every run on the same resamples of users, whole and by history length.

    Each run's metrics on all resamples are computed once. All runs have to be tested on the same rows.

    Args:
        first: A run, whose test rows those of all others have to equal.
        buckets: Ranges of true history length.
        resamples: Number of resamples.

    Raises:
        DataError: Its predictions cannot be read.
    """

    def __init__(
        self, first: Run, *, buckets: Sequence[Bucket] = DEFAULT_BUCKETS, resamples: int = 1000
    ) -> None:
        self.resamples = resamples
        self._first = first.folder
        table = read_predictions(first)
        self._rows = [np.asarray(table[name]) for name in ("user", "item", "label", "length")]
        user, _, label, length = self._rows
        masks = {WHOLE: np.ones(len(user), dtype=bool), **bucket_masks(length, buckets)}
        self.groups = list(masks)
        self._bootstrap = UserBootstrap(user=user, label=label, groups=masks, resamples=resamples)
        self._measured: dict[Path, dict[Measure, Vector]] = {}
        score, truth = np.asarray(table["score"]), _truth(first, table)
        self.about = ctr_metrics(
            label=label, score=score, user=user, length=length, probability=truth, buckets=buckets
        ).values
        """Counts of rows and users, and the best possible values, by metric key."""
        self.clicks = {
            group: float(label[mask].mean()) if mask.any() else None for group, mask in masks.items()
        }
        """Share of clicks by group."""

    def __call__(self, run: Run, measure: Measure) -> Vector | None:
        """A metric on the rows as they are, then on every resample; None for one that is not resampled.

        Raises:
            DataError: The run's predictions cannot be read, or are of other rows.
        """
        if run.folder not in self._measured:
            self._measured[run.folder] = self._measure(run)
        return self._measured[run.folder].get(measure)

    def _measure(self, run: Run) -> dict[Measure, Vector]:
        table = read_predictions(run)
        for name, rows in zip(("user", "item", "label", "length"), self._rows, strict=True):
            if not np.array_equal(rows, np.asarray(table[name])):
                raise DataError(f"{run.folder}: tested on other rows than {self._first} ({name} differs)")
        score = np.asarray(table["score"])
        if not np.isfinite(score).all():
            nothing = np.full(self.resamples + 1, np.nan)
            return {Measure(metric, group): nothing for metric in METRICS for group in self.groups}
        found = {
            "auc": self._bootstrap.auc(score),
            "logloss": self._bootstrap.logloss(score),
            "gauc": self._bootstrap.gauc(score),
        }
        return {Measure(metric, group): row for metric, rows in found.items() for group, row in rows.items()}
