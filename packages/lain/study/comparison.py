"""The arms of a study against each other: differences by history length, users resampled, seeds pooled."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from common.errors import DataError
from common.metrics.ctr import DEFAULT_BUCKETS, Bucket, bucket_masks, ctr_metrics
from common.stats.paired import Difference, Spread, UserBootstrap, holm, paired_difference, spread
from common.study.engine import RunSpec, collect, is_done
from common.training.record import Record
from lain.evaluation.predictions import truth_path

WHOLE = ""
"""Name of the group of all rows."""

METRICS = ("auc", "logloss", "gauc")

Test = tuple[str, str, str, str, str]
"""Metric, group, backbone, arm, and the arm that it is tested against."""


@dataclass(frozen=True)
class Run:
    """What one finished run left behind.

    Args:
        spec: Which run.
        folder: Its folder.
        metrics: Test metrics by key.
        parameters: Number of parameters.
        milliseconds: Time per sample in evaluation, ms; None where it was not measured.
        seconds: Wall time, s.
        hardware: What it ran on.
        attention: ``{branch: {bucket: {"gini", "entropy", "prompt_mass"}}}``; empty where there is none.
    """

    spec: RunSpec
    folder: Path
    metrics: Mapping[str, float | None]
    parameters: int | None
    milliseconds: float | None
    seconds: float
    hardware: Mapping[str, Any]
    attention: Mapping[str, Mapping[str, Mapping[str, float | None]]] = field(default_factory=dict)


def read_runs(plan: Sequence[RunSpec], out: Path) -> list[Run]:
    """The finished runs of a plan, in its order."""
    done = [spec for spec in plan if is_done(spec, out)]
    return [_read(spec, out / spec.key, row) for spec, row in zip(done, collect(done, out), strict=True)]


def _read(spec: RunSpec, folder: Path, row: Mapping[str, Any]) -> Run:
    record = Record.load(folder / "record.json")
    attention = folder / "attention.json"
    return Run(
        spec=spec,
        folder=folder,
        metrics=row["metrics"],
        parameters=record.parameters,
        milliseconds=record.notes.get("milliseconds_per_sample"),
        seconds=record.wall_seconds or 0.0,
        hardware=record.hardware,
        attention=json.loads(attention.read_text()) if attention.is_file() else {},
    )


def _predictions(run: Run, where: Callable[[Path], Path] = lambda path: path) -> pa.Table:
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
        predictions = _predictions(run, truth_path)
    return np.asarray(predictions["probability"])


@dataclass(frozen=True)
class Tested:
    """A difference and its p, corrected within the family that it was tested in."""

    difference: Difference
    p: float

    @property
    def significant(self) -> bool:
        """Whether the corrected p is below .05."""
        return self.p < 0.05


class Comparison:
    """Compares the arms of a study on its test rows.

    All runs are resampled with the same users, so any two can be compared in pairs. Each run's metrics on all
    resamples are computed once.

    Args:
        runs: Finished runs; those with a tag (sweeps) are left out of the comparisons.
        buckets: Ranges of true history length.
        resamples: Number of bootstrap resamples.

    Raises:
        DataError: There is no run, or the runs were not tested on the same rows.
    """

    def __init__(
        self, runs: Sequence[Run], *, buckets: Sequence[Bucket] = DEFAULT_BUCKETS, resamples: int = 1000
    ) -> None:
        """Read and resample the predictions of every run."""
        self.runs = [run for run in runs if not run.spec.tag]
        if not self.runs:
            raise DataError("no run of the study has finished, so there is nothing to compare")
        self.resamples = resamples
        first = _predictions(self.runs[0])
        self._rows = [np.asarray(first[name]) for name in ("user", "item", "label", "length")]
        user, _, label, length = self._rows
        masks = bucket_masks(length, buckets)
        self.groups = [WHOLE, *masks]
        everything = {WHOLE: np.ones(len(user), dtype=bool)}
        self._bootstrap = UserBootstrap(
            user=user, label=label, groups={**everything, **masks}, resamples=resamples
        )
        self._values = {
            (run.spec.backbone, run.spec.arm, run.spec.seed): self._resampled(run) for run in self.runs
        }
        score = np.asarray(first["score"])
        truth = _truth(self.runs[0], first)
        self.about = ctr_metrics(
            label=label, score=score, user=user, length=length, probability=truth, buckets=buckets
        ).values
        """Counts of rows and users, and the best possible values, by metric key."""
        self.clicks = {group: _mean(label[mask]) for group, mask in {**everything, **masks}.items()}

    def _resampled(self, run: Run) -> dict[tuple[str, str], np.ndarray]:
        table = _predictions(run)
        for name, ours in zip(("user", "item", "label", "length"), self._rows, strict=True):
            if not np.array_equal(ours, np.asarray(table[name])):
                first = self.runs[0].folder
                raise DataError(f"{run.folder}: tested on other rows than {first} ({name} differs)")
        score = np.asarray(table["score"])
        if not np.isfinite(score).all():
            nothing = np.full(self.resamples + 1, np.nan)
            return {(metric, group): nothing for metric in METRICS for group in self.groups}
        found = {
            "auc": self._bootstrap.auc(score),
            "logloss": self._bootstrap.logloss(score),
            "gauc": self._bootstrap.gauc(score),
        }
        return {(metric, group): row for metric, rows in found.items() for group, row in rows.items()}

    @property
    def backbones(self) -> list[str]:
        """Backbones in the order of the plan."""
        return list(dict.fromkeys(run.spec.backbone for run in self.runs))

    def arms(self, backbone: str) -> list[str]:
        """Arms of a backbone in the order of the plan."""
        return list(dict.fromkeys(run.spec.arm for run in self.runs if run.spec.backbone == backbone))

    def of(self, backbone: str, arm: str) -> list[Run]:
        """The runs of an arm, one per seed."""
        return [run for run in self.runs if (run.spec.backbone, run.spec.arm) == (backbone, arm)]

    def _seeds(self, metric: str, group: str, backbone: str, arm: str) -> dict[int, np.ndarray]:
        runs = self.of(backbone, arm)
        return {run.spec.seed: self._values[(backbone, arm, run.spec.seed)][(metric, group)] for run in runs}

    def spread(self, metric: str, group: str, backbone: str, arm: str) -> Spread | None:
        """Mean and standard deviation of a metric over seeds; None where it is not defined."""
        values = [float(row[0]) for row in self._seeds(metric, group, backbone, arm).values()]
        return spread(values) if values and np.isfinite(values).all() else None

    def level(self, metric: str, group: str, backbone: str, arm: str) -> Difference | None:
        """A metric of one arm with its interval."""
        rows = list(self._seeds(metric, group, backbone, arm).values())
        return paired_difference(rows, [np.zeros_like(row) for row in rows]) if rows else None

    def difference(self, metric: str, group: str, backbone: str, arm: str, against: str) -> Difference | None:
        """Arm minus other arm, over the seeds that both have; None where it is not defined."""
        ours = self._seeds(metric, group, backbone, arm)
        theirs = self._seeds(metric, group, backbone, against)
        both = [seed for seed in ours if seed in theirs]
        if not both:
            return None
        return paired_difference([ours[seed] for seed in both], [theirs[seed] for seed in both])

    def family(self, tests: Sequence[Test]) -> dict[Test, Tested]:
        """Differences that are tested together, their p corrected after Holm.

        Args:
            tests: What is tested.

        Returns:
            The tests whose difference is defined.
        """
        found = {test: difference for test in tests if (difference := self.difference(*test)) is not None}
        corrected = holm([difference.p for difference in found.values()])
        tested = [Tested(difference, p) for difference, p in zip(found.values(), corrected, strict=True)]
        return dict(zip(found, tested, strict=True))


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
