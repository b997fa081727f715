"""Click-through studies, for the study engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common import config
from common.config import Registry
from common.study.collect import Run, run_rows
from common.study.execute import Worker
from common.study.kind import StudyKind
from common.study.plan import RunSpec, Study
from common.study.results import settings_of
from common.training.checkpoint import forget_optimizer
from lain.study.data import PreparedCTR, prepare_data
from lain.study.resample import UserResampler
from lain.study.table import CTRReport, answer, facts, gaps, study_table
from lain.training.config import RENAMED, TrainConfig
from lain.training.run import train_run

PLOTS: Registry[Any] = Registry("plot", given={"report"})
PLOTS.add("auc_by_bucket", "lain.study.plots:auc_by_bucket")
PLOTS.add("length_sweep", "lain.study.plots:length_sweep")
PLOTS.add("attention", "lain.study.plots:attention")

SECTIONS: Registry[Any] = Registry("section", given={"report"})
"""Sections of the page of a study, in order."""
SECTIONS.add("differences", "lain.study.page:differences")
SECTIONS.add("examples", "lain.study.examples:examples")
SECTIONS.add("buckets", "lain.study.page:buckets")
SECTIONS.add("sweep", "lain.study.page:sweep")
SECTIONS.add("attention", "lain.study.page:attention")
SECTIONS.add("calibration", "lain.study.page:calibration")
SECTIONS.add("training", "lain.study.page:training")
SECTIONS.add("tables", "lain.study.page:tables")

RUN_SECTIONS: Registry[Any] = Registry("section", given={"run"})
"""Sections of the page of one run, in order."""
RUN_SECTIONS.add("attention", "lain.study.page:run_attention")
RUN_SECTIONS.add("calibration", "lain.study.page:run_calibration")
RUN_SECTIONS.add("slices", "lain.study.slices:run_slices")
RUN_SECTIONS.add("data", "lain.study.slices:run_data")


def train(spec: RunSpec, folder: Path, *, data: Path) -> None:
    """Train and test one run, in a worker process."""
    train_run(config.load(TrainConfig, None, base={**settings_of(spec), "data": str(data)}), folder)


class CTRStudies(StudyKind[Study, PreparedCTR, UserResampler]):
    """Arms differ by history length; users are resampled."""

    command = "lain"
    area = "ctr"
    study_class = Study
    config_class = TrainConfig
    renamed = RENAMED
    backbone_key = "model.name"
    plots = PLOTS
    title = "CTR study"
    page_sections = SECTIONS
    run_sections = RUN_SECTIONS

    def prepare(
        self, study: Study, source: Path | None, out: Path, *, workers: int, report: Callable[[str], None]
    ) -> PreparedCTR:
        """Prepare the data set, in data/ beside the folder of the study, where studies share it."""
        return prepare_data(study.data, source, out.parent / "data", report)

    def fingerprint(self, prepared: PreparedCTR, config: TrainConfig) -> str:
        """Fingerprint of the data set."""
        return prepared.fingerprint

    def worker(self, prepared: PreparedCTR, out: Path) -> Worker:
        """Trains on the prepared data set."""
        return partial(train, data=prepared.path.resolve())

    def resampler(self, runs: Sequence[Run]) -> UserResampler:
        """Resamples the users of the test rows."""
        return UserResampler(runs[0])

    def rows(self, report: CTRReport) -> list[dict[str, Any]]:
        """One row per run: ``{"backbone", "arm", "seed", "tag" (only of a sweep), "metrics": {...}}``."""
        rows = []
        for run in run_rows(report.frame):
            row: dict[str, Any] = {"backbone": run.backbone, "arm": run.arm, "seed": run.seed}
            if run.tag:
                row["tag"] = run.tag
            row["metrics"] = {m.name: value for m, value in run.metrics.items() if m.split == "test"}
            rows.append(row)
        return rows

    def table(self, report: CTRReport) -> str:
        """The comparison by history length."""
        return study_table(report)

    def facts(self, report: CTRReport) -> dict[str, str]:
        """What stands at the head of the table."""
        return facts(report)

    def answer(self, report: CTRReport) -> list[str]:
        """Who gains and who loses, over all rows and at both ends of the history lengths."""
        return answer(report)

    def gaps(self, report: CTRReport) -> list[str]:
        """What the study did not measure."""
        return gaps(report)

    def validated(self, run: Run) -> tuple[str, float | None]:
        """AUC on the validation rows."""
        return "AUC", run.record.metrics.get("valid/auc")

    def tidy(self, folder: Path) -> None:
        """Keep the weights of a finished run once, without optimizer state."""
        forget_optimizer(folder)


CTR = CTRStudies()
