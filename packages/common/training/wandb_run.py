"""Weights & Biases: one run for one run folder, its results as tables, its files as artifacts."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from lightning.pytorch.loggers import WandbLogger

from common.cli import report
from common.errors import ConfigError
from common.files import atomic_write
from common.redact import redact, redact_arguments, redact_text, redacted_command_line
from common.training.config import TrackingConfig
from common.training.metrics_file import MetricsFile
from common.training.task import Artifact, Measured
from common.training.wandb_mode import Mode
from common.training.wandb_step import log_artifact, quiet_settings

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run

TAG_LENGTH = 64
"""Most characters of a tag that W&B takes."""

RESULTS, RESULT_COLUMNS = "results", ["split", "measure", "slice", "value", "reason"]
"""Name and columns of the table of all metrics."""


class WandbRun(WandbLogger):
    """One W&B run for one run folder, however often the run is interrupted.

    Its id is kept in ``wandb/id``. W&B cannot go on with a run that it kept offline: it would leave one
    folder per part. So the folders of the parts before go, and a resumed run writes its rows anew, from
    metrics.csv.

    Args:
        run_dir: The run folder.
        config: Settings; see :class:`common.training.config.TrackingConfig`.
        mode: ``offline`` or ``online``.
        project: W&B project where the settings name none.
        tags: What the run is found by, beside the tags of the settings.
        resolved: The resolved config of the run, kept with it; what looks like a secret in it, or on the
            command line, does not get there.
    """

    def __init__(
        self,
        run_dir: Path,
        config: TrackingConfig,
        *,
        mode: Mode,
        project: str,
        tags: Sequence[str] = (),
        resolved: Mapping[str, Any],
    ) -> None:
        safe = redact(resolved)
        if safe != resolved or redact_arguments(sys.argv[1:]) != sys.argv[1:]:
            report("note: what looks like a secret in the settings or on the command line is kept from W&B")
        self._run_dir, self._upload = run_dir, config.upload
        kept = run_dir / "wandb" / "id"
        if not kept.is_file():
            atomic_write(kept, uuid4().hex[:8] + "\n")
        super().__init__(
            name=run_dir.name,
            project=redact_text(config.project or project),
            entity=config.entity,
            save_dir=run_dir,
            id=kept.read_text(encoding="utf-8").strip(),
            group=redact_text(config.group) if config.group else None,
            job_type=config.job_type,
            tags=[redact_text(tag)[:TAG_LENGTH] for tag in dict.fromkeys([*config.tags, *tags])],
            config=safe,
            settings=quiet_settings(mode),
        )
        self._wandb_init.pop("anonymous", None)  # W&B warns of it though it is not set
        self.kept_offline = mode == "offline"
        self.begun = False

    @property
    def experiment(self) -> Run:
        """The run, begun where it is first asked for; W&B reads the command line then.

        Raises:
            ConfigError: W&B refuses it.
        """
        import wandb

        try:
            with redacted_command_line():
                run: Run = super().experiment
        except wandb.Error as error:
            raise ConfigError(f"tracking: W&B refuses the run ({' '.join(str(error).split())})") from error
        return run

    def begin(self, step: int) -> None:
        """Go on at a step.

        Args:
            step: The optimiser step, from 0, that is done next.
        """
        self.begun = True
        if not self.kept_offline:
            return
        for folder in self._run_dir.glob(f"wandb/offline-run-*-{self.version}"):
            shutil.rmtree(folder)
        for row in MetricsFile(self._run_dir / "metrics.csv").rows():
            if int(row["step"]) < step:
                values = {name: float(value) for name, value in row.items() if value and name != "step"}
                self.log_metrics(values, int(row["step"]))

    def close(self, measured: Measured | None, artifacts: Sequence[Artifact], *, finished: bool) -> None:
        """End the run, or this part of it.

        Args:
            measured: What the evaluation found, kept in the summary, a table and histograms.
            artifacts: What the run read and made.
            finished: Whether the run came to its end.
        """
        if not finished and not self.begun:
            return
        run = self.experiment
        if measured is not None:
            run.summary.update({k: v for k, v in measured.metrics.items() if v is not None})
            run.log(_media(measured))
        for artifact in artifacts:
            log_artifact(run, artifact, upload=self._upload)
        run.finish(exit_code=0 if finished else 1)


def result_rows(measured: Measured) -> list[list[Any]]:
    """Every metric as a row of :data:`RESULT_COLUMNS`: ``test/auc/0-50`` is the slice 0-50 of test's auc.

    Args:
        measured: What the evaluation found.
    """
    rows = []
    for name, value in measured.metrics.items():
        split, _, rest = name.partition("/")
        measure, _, part = rest.partition("/")
        rows.append([split, measure, part, value, measured.reasons.get(name, "")])
    return rows


def _media(measured: Measured) -> dict[str, Any]:
    from wandb import Histogram, Table

    logged: dict[str, Any] = dict(measured.figures)
    for name, (counts, edges) in measured.histograms.items():
        if sum(counts):
            logged[name] = Histogram(np_histogram=(np.asarray(counts), np.asarray(edges)))
    logged[RESULTS] = Table(columns=[*RESULT_COLUMNS], data=[*result_rows(measured)])
    return logged
