"""Retrieval studies, for the study engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from causalneg.study.arms import check_arms
from causalneg.study.plan import RetrievalStudy
from causalneg.study.prepare import Prepared, forget_checkpoints, placed, prepare
from causalneg.study.resample import QueryResampler, splits
from causalneg.study.table import RetrievalReport, answer, facts, gaps, study_table
from causalneg.training.config import TrainConfig
from causalneg.training.run import Library, train_run
from common import config
from common.config import Registry
from common.study.collect import Measure, Run, run_rows
from common.study.execute import Worker
from common.study.kind import StudyKind
from common.study.plan import RunSpec
from common.study.results import settings_of

PLOTS: Registry[Any] = Registry("plot", given={"report"})
PLOTS.add("ndcg", "causalneg.study.plots:ndcg")
PLOTS.add("similarity", "causalneg.study.plots:similarity")
PLOTS.add("source_auc", "causalneg.study.plots:source_auc")

SECTIONS: Registry[Any] = Registry("section", given={"report"})
"""Sections of the page of a study, in order."""
SECTIONS.add("differences", "causalneg.study.page:differences")
SECTIONS.add("examples", "causalneg.study.examples:examples")
SECTIONS.add("ndcg", "causalneg.study.page:ndcg")
SECTIONS.add("similarity", "causalneg.study.page:similarity")
SECTIONS.add("source", "causalneg.study.page:source")
SECTIONS.add("written", "causalneg.study.page:written")
SECTIONS.add("training", "causalneg.study.page:training")
SECTIONS.add("tables", "causalneg.study.page:tables")

RUN_SECTIONS: Registry[Any] = Registry("section", given={"run"})
"""Sections of the page of one run, in order."""
RUN_SECTIONS.add("ladder", "causalneg.study.page:run_ladder")
RUN_SECTIONS.add("similarity", "causalneg.study.page:run_similarity")
RUN_SECTIONS.add("slices", "causalneg.study.slices:run_slices")
RUN_SECTIONS.add("data", "causalneg.study.slices:run_data")

DIAGNOSIS = "diagnosis"
"""What stands in place of the split where held-out training queries are diagnosed."""


def train(spec: RunSpec, folder: Path, *, prepared: Prepared, cache: Path, library: Library) -> None:
    """Train and evaluate one run, in a worker process; its runs share what the library has read."""
    loaded = config.load(TrainConfig, None, base=placed(settings_of(spec), prepared, cache))
    train_run(loaded, folder, library=library)


class RetrievalStudies(StudyKind[RetrievalStudy, Prepared, QueryResampler]):
    """Arms differ in their negatives; queries are resampled."""

    command = "causalneg"
    area = "retrieval"
    study_class = RetrievalStudy
    config_class = TrainConfig
    backbone_key = "encoder.name"
    plots = PLOTS
    title = "Retrieval study"
    page_sections = SECTIONS
    run_sections = RUN_SECTIONS

    def prepare(
        self,
        study: RetrievalStudy,
        source: Path | None,
        out: Path,
        *,
        workers: int,
        report: Callable[[str], None],
    ) -> Prepared:
        """Make data, start encoder and sets, in the folder of the study."""
        return prepare(study, source, out, workers=workers, report=report)

    def fingerprint(self, prepared: Prepared, config: TrainConfig) -> str:
        """Fingerprint of the data, the start encoder and the sets that a run uses."""
        return prepared.fingerprint(config)

    def worker(self, prepared: Prepared, out: Path) -> Worker:
        """Trains on what was prepared."""
        return partial(train, prepared=prepared, cache=out / "cache", library=Library())

    def resampler(self, runs: Sequence[Run]) -> QueryResampler:
        """Resamples the queries of the test splits."""
        return QueryResampler()

    def rows(self, report: RetrievalReport) -> list[dict[str, Any]]:
        """One row per run and test split.

        Returns:
            ``{"arm", "seed", "split", "encoder", "tag" (only beside the main matrix), "metrics": {...}}``;
            the diagnoses, which do not depend on the split, stand in each.
        """
        tested = {(*_place(run), run.spec.tag): splits(run) for run in report.runs}
        rows = []
        for run in run_rows(report.frame):
            shared = {
                f"{m.bucket}/{m.metric}" if m.bucket else m.metric: value
                for m, value in run.metrics.items()
                if m.split == DIAGNOSIS
            }
            for split in tested[run[:4]]:
                own = {m.name: value for m, value in run.metrics.items() if m.split == split}
                row: dict[str, Any] = {"arm": run.arm, "seed": run.seed, "split": split}
                row["encoder"] = run.backbone
                if run.tag:
                    row["tag"] = run.tag
                rows.append({**row, "metrics": {**own, **shared}})
        return rows

    def table(self, report: RetrievalReport) -> str:
        """The comparison by arm, clean and mixed, with the diagnoses."""
        return study_table(report)

    def facts(self, report: RetrievalReport) -> dict[str, str]:
        """What stands at the head of the table."""
        return facts(report)

    def answer(self, report: RetrievalReport) -> list[str]:
        """Which arms gain and lose against the reference, and which is best."""
        return answer(report)

    def gaps(self, report: RetrievalReport) -> list[str]:
        """What the study did not measure."""
        return gaps(report)

    def validated(self, run: Run) -> tuple[str, float | None]:
        """The best value of the monitored metric, which is that of the weights that were kept."""
        monitor = str(run.spec.config["fit"]["monitor"])
        _, values = run.history(monitor)
        return monitor.removeprefix("valid/"), max(values, default=None)

    def check_arms(self, arms: Mapping[str, TrainConfig]) -> None:
        """Refuse arms that differ in more than their negatives and their regulariser."""
        check_arms(arms)

    def tidy(self, folder: Path) -> None:
        """Remove the checkpoints of a finished run: the encoder in it holds the weights."""
        forget_checkpoints(folder)

    def measure(self, key: str) -> Measure:
        """``diagnosis/untrained/NAME`` measures NAME before training; others as in records."""
        found = Measure.read(key)
        if found.split == DIAGNOSIS and found.bucket:
            return Measure(found.bucket, found.metric, DIAGNOSIS)
        return found


def _place(run: Run) -> tuple[str, str, int]:
    return run.spec.backbone, run.spec.arm, run.spec.seed


RETRIEVAL = RetrievalStudies()
