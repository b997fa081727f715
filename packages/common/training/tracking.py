"""Where a run's metrics go while it trains: one CSV file, the progress panel, Weights & Biases."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from common.config import to_dict
from common.live import Progress
from common.training.config import TrackingConfig
from common.training.metrics_file import MetricsFile, NamedLogger
from common.training.task import Artifact, Measured
from common.training.wandb_mode import wandb_mode
from common.training.wandb_run import WandbRun


class Shown(NamedLogger):
    """The metrics of a run in its panel: the loss and its parts, and every validation by whole metrics.

    Args:
        progress: The panel.
        samples: What a batch has: ``samples``, ``queries``.
    """

    def __init__(self, progress: Progress, *, samples: str = "samples") -> None:
        super().__init__()
        self.progress, self.samples = progress, samples
        self.seen = False
        """Whether there was a loss to show: a run that goes on inside an epoch logs its first one later."""

    def log_metrics(self, metrics: Mapping[str, float | int], step: int | None = None) -> None:
        """Show what there is of loss and validation; the rest stays in the file.

        A metric without a value is left out: why it has none is said apart.

        Args:
            metrics: Values by name.
            step: Step of the optimiser, from 0.
        """
        shown = {
            name: f"{value:.4f}" if math.isfinite(value) else ""
            for name, value in metrics.items()
            if re.fullmatch("(train|valid)/[^/]+", name) and not float(value).is_integer()
        }
        if shown and "epoch" in metrics:
            shown["epoch"] = str(int(metrics["epoch"]) + 1)
        self.progress.show(shown)
        self.seen = self.seen or "train/loss" in shown


def loggers(
    run_dir: Path,
    config: TrackingConfig,
    *,
    project: str,
    resolved: Any,
    tags: Sequence[str] = (),
    progress: Progress | None = None,
    samples: str = "samples",
) -> list[Logger]:
    """The loggers of a run: ``metrics.csv``, the panel, and W&B unless disabled.

    Args:
        run_dir: The run folder; W&B writes to ``wandb/`` in it.
        config: Whether and where W&B tracks the run.
        project: W&B project where the config names none: the name of the method.
        resolved: The resolved config of the run, a dataclass instance or a mapping.
        tags: What W&B finds the run by, beside the tags of the config.
        progress: The panel; None for none.
        samples: What a batch has, for the panel.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    found: list[Logger] = [MetricsFile(run_dir / "metrics.csv")]
    if progress is not None:
        found.append(Shown(progress, samples=samples))
    mode = wandb_mode(config.wandb)
    if mode != "disabled":
        found.append(
            WandbRun(run_dir, config, mode=mode, project=project, tags=tags, resolved=to_dict(resolved))
        )
    return found


def begin_at(loggers: Iterable[Logger], step: int) -> None:
    """Have the loggers of a run forget what is going to be logged again.

    Args:
        loggers: What :func:`loggers` gave.
        step: The optimiser step, from 0, that is done next.
    """
    for logger in loggers:
        if isinstance(logger, (MetricsFile, WandbRun)):
            logger.begin(step)


def close(
    loggers: Iterable[Logger],
    measured: Measured | None = None,
    artifacts: Sequence[Artifact] = (),
    *,
    finished: bool = True,
) -> None:
    """End the tracking of a run, or of this part of it.

    Args:
        loggers: What :func:`loggers` gave.
        measured: What the evaluation found.
        artifacts: What the run read and made.
        finished: Whether the run came to its end.
    """
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.close(measured, artifacts, finished=finished)
