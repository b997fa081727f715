"""What the finished runs of a study left behind, as objects and as one tidy frame."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from common.study.execute import is_done
from common.study.plan import RunSpec
from common.training.record import Record

COLUMNS = {
    "study": pa.string(),
    "backbone": pa.string(),
    "arm": pa.string(),
    "seed": pa.int64(),
    "tag": pa.string(),
    "split": pa.string(),
    "bucket": pa.string(),
    "metric": pa.string(),
    "value": pa.float64(),
    "folder": pa.string(),
    "fingerprint": pa.string(),
}
"""Columns of the frame: one row per run and metric."""


class Measure(NamedTuple):
    """What a number measures.

    Args:
        metric: Name of the metric: ``auc``, ``ndcg@10``.
        bucket: Part of the rows, or the view of the data, that it is measured on; ``""`` is all of them.
        split: Split that it is measured on.
    """

    metric: str
    bucket: str = ""
    split: str = "test"

    @property
    def name(self) -> str:
        """Metric and bucket, as records and results.json write them: ``auc/0-50``."""
        return f"{self.metric}/{self.bucket}" if self.bucket else self.metric

    @classmethod
    def read(cls, key: str) -> Measure:
        """The measure of a record's key ``split/metric`` or ``split/metric/bucket``."""
        split, _, name = key.partition("/")
        metric, _, bucket = name.partition("/")
        return cls(metric, bucket, split)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        spec: Which run.
        folder: Its folder.
        record: Its record.
    """

    spec: RunSpec
    folder: Path
    record: Record

    def history(self, column: str) -> tuple[list[int], list[float]]:
        """Steps and values of a figure that was logged while training; none where nothing was logged."""
        steps: list[int] = []
        values: list[float] = []
        path = self.folder / "metrics.csv"
        if path.is_file():
            with path.open() as file:
                for row in csv.DictReader(file):
                    if row.get(column):
                        steps.append(int(float(row["step"])))
                        values.append(float(row[column]))
        return steps, values


def mean_history(runs: Sequence[Run], column: str) -> tuple[list[int], list[float]]:
    """Steps and mean over runs of a figure that was logged while training, as far as all of them have it.

    Args:
        runs: Runs that differ in their seed only.
        column: Name of the figure.

    Returns:
        Steps of the first run, and means; none where a run did not log it.
    """
    found = [run.history(column) for run in runs]
    length = min((len(values) for _, values in found), default=0)
    if not length:
        return [], []
    means = [sum(values) / len(found) for values in zip(*(v[:length] for _, v in found), strict=True)]
    return found[0][0][:length], means


def finished_runs(plan: Sequence[RunSpec], out: Path) -> list[Run]:
    """The finished runs of a plan, in its order.

    Args:
        plan: The runs; one that serves two tags stands in it, and in what is returned, twice.
        out: The folder of the study.
    """
    return [
        Run(spec, out / spec.key, Record.load(out / spec.key / "record.json"))
        for spec in plan
        if is_done(spec, out)
    ]


def tidy_frame(study: str, runs: Sequence[Run], measure: Callable[[str], Measure] = Measure.read) -> pa.Table:
    """One row per run and metric, whatever was measured.

    Args:
        study: Name of the study.
        runs: Its finished runs.
        measure: What a key of a record's metrics measures.

    Returns:
        The columns of :data:`COLUMNS`: ``value`` is null where a metric is not defined, ``folder`` is that of
        the run inside the study's, ``fingerprint`` the hash of all that decides the run.
    """
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for run in runs:
        spec = run.spec
        own = (study, spec.backbone, spec.arm, spec.seed, spec.tag)
        fingerprint = spec.hash
        for key, value in run.record.metrics.items():
            found = measure(key)
            row = (*own, found.split, found.bucket, found.metric, value, spec.key, fingerprint)
            for column, cell in zip(columns.values(), row, strict=True):
                column.append(cell)
    return pa.table(columns, schema=pa.schema(list(COLUMNS.items())))


class RunRow(NamedTuple):
    """The metrics of one run, read back from the frame.

    Args:
        backbone: Its backbone.
        arm: Its arm.
        seed: Its seed.
        tag: Its tag.
        metrics: Every value by what it measures.
    """

    backbone: str
    arm: str
    seed: int
    tag: str
    metrics: dict[Measure, float | None]


def run_rows(frame: pa.Table) -> list[RunRow]:
    """The rows of a frame gathered by run, in their order."""
    found: dict[tuple[str, str, int, str], RunRow] = {}
    for row in frame.to_pylist():
        key = (row["backbone"], row["arm"], row["seed"], row["tag"])
        measure = Measure(row["metric"], row["bucket"], row["split"])
        found.setdefault(key, RunRow(*key, {})).metrics[measure] = row["value"]
    return list(found.values())
