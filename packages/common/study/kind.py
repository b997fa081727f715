"""What a method gives the study engine: one small object."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pyarrow as pa

from common.config import Registry
from common.machine import describe_hardware
from common.report.tables import format_seconds
from common.study.collect import Measure, Run
from common.study.compare import Comparison, Resampler
from common.study.execute import Worker
from common.study.plan import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

S = TypeVar("S", bound=Study)
P = TypeVar("P")
R = TypeVar("R", bound=Resampler)


@dataclass(frozen=True)
class Head:
    """What was run, for the head of a table.

    Args:
        study: Name of the study.
        description: What it is, in a sentence.
        command: The command that makes it again.
        planned: Number of runs in the plan.
        workers: Number of runs at a time.
    """

    study: str
    description: str
    command: str
    planned: int
    workers: int


@dataclass(frozen=True)
class Report(Generic[S, P, R]):
    """All that the table and the plots of a study are made from.

    Args:
        head: What was run.
        study: The study file.
        prepared: What was prepared for its runs.
        runs: All finished runs, sweeps too, in the order of the plan.
        frame: Their metrics, one row per run and metric.
        resampler: Measures runs on resamples of the test rows.
    """

    head: Head
    study: S
    prepared: P
    runs: Sequence[Run]
    frame: pa.Table
    resampler: R

    @property
    def tags(self) -> list[str]:
        """The tags of the finished runs, in the order of the plan; ``""`` is the main matrix."""
        return list(dict.fromkeys(run.spec.tag for run in self.runs))

    def comparison(self, tag: str = "") -> Comparison:
        """The arms of the runs of one tag against each other."""
        runs = [run for run in self.runs if run.spec.tag == tag]
        return Comparison(runs, self.resampler, intervals=self.study.intervals)

    @cached_property
    def main(self) -> Comparison:
        """The arms of the main matrix against each other."""
        return self.comparison()

    def head_lines(self, title: str, data: str, measured: str, units: str, family: str) -> list[str]:
        """The lines above the first section.

        Args:
            title: What kind of study it is.
            data: The data in words.
            measured: What the numbers are.
            units: What is resampled: users, queries.
            family: What the correction after Holm is over.
        """
        head = self.head
        folders = {run.folder: run.record.wall_seconds or 0.0 for run in self.runs}
        seeds = sorted({run.spec.seed for run in self.main.runs})
        crossed = {"units": "seeds pooled", "crossed": "crossed with seeds"}[self.study.intervals]
        return [
            f"# {title}: {head.study}",
            "",
            head.description,
            "",
            f"- command: `{head.command}`",
            f"- data: {data}",
            f"- runs: {len(folders)} of {head.planned}, seeds {', '.join(map(str, seeds))}; "
            f"{format_seconds(sum(folders.values()))} of training and testing in all, "
            f"{head.workers} at a time",
            f"- hardware: {describe_hardware(self.runs[0].record.hardware)}",
            f"- {measured}; ± is the standard deviation over seeds; intervals: {self.resampler.resamples} "
            f"resamples of {units}, {crossed}; p: two-sided, corrected after Holm over {family}; * is a "
            "corrected p below .05",
        ]


class StudyKind(ABC, Generic[S, P, R]):
    """What one method's studies need; everything else is the engine's."""

    command: str
    """The command that has the verb ``study``: ``lain``."""

    area: str
    """Folder of the study files in experiments/, and the first word of the output folder: ``ctr``."""

    study_class: type[S]
    """What a study file holds."""

    config_class: type[Any]
    """Settings of a run."""

    renamed: Mapping[str, str] = {}
    """New name of a setting by the key that it had before."""

    backbone_key: str
    """Where these settings keep what the matrix calls a backbone: ``model.name``."""

    plots: Registry[Figure | None]
    """Plots by the name of their file: functions of the report, None where there is nothing to show."""

    @abstractmethod
    def prepare(
        self, study: S, source: Path | None, out: Path, *, workers: int, report: Callable[[str], None]
    ) -> P:
        """Make once what the runs read.

        Args:
            study: The study.
            source: Folder that the user names for the data, if any.
            out: The folder of the study.
            workers: Processes to use.
            report: Called with a line for what takes long.

        Raises:
            DataError: Source files are missing; says which.
        """

    @abstractmethod
    def fingerprint(self, prepared: P, config: Any) -> str:
        """Hash of all that a run of this config reads."""

    @abstractmethod
    def worker(self, prepared: P, out: Path) -> Worker:
        """What does one run; importable, as it is spawned."""

    @abstractmethod
    def resampler(self, runs: Sequence[Run]) -> R:
        """What measures runs on resamples of the test rows.

        Args:
            runs: The runs of the main matrix, at least one.
        """

    @abstractmethod
    def rows(self, report: Report[S, P, R]) -> list[dict[str, Any]]:
        """The rows of results.json."""

    @abstractmethod
    def table(self, report: Report[S, P, R]) -> str:
        """The whole of table.md."""

    @abstractmethod
    def validated(self, run: Run) -> tuple[str, float | None]:
        """Name and value of the metric on the validation rows that settings are chosen by; more is better."""

    def check_arms(self, arms: Mapping[str, Any]) -> None:
        """Refuse configs of arms that cannot be compared; by default any can.

        Raises:
            ConfigError: They differ in more than what is studied.
        """

    def tidy(self, folder: Path) -> None:
        """Remove from the folder of a finished run what only an unfinished one needs; by default nothing."""

    def measure(self, key: str) -> Measure:
        """What a key of a record's metrics measures."""
        return Measure.read(key)
