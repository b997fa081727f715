"""Where a run's metrics go while it trains: one CSV file, Weights & Biases, console lines."""

from __future__ import annotations

import csv
import io
import math
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from lightning.pytorch.loggers import Logger, WandbLogger
from tqdm import tqdm

from common.cli import report
from common.config import to_dict
from common.files import atomic_write, sync
from common.redact import redact, redact_arguments, redact_text, redacted_command_line
from common.training.config import TrackingConfig


class _Named(Logger):
    """A logger of one run folder; Lightning asks every logger for a name and a version."""

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the config stands beside the metrics in the run folder."""


class MetricsFile(_Named):
    """All metrics of a run in one CSV file, one row per logged step or epoch.

    The columns are ``step`` and every metric seen so far; a new metric rewrites the file with one more
    column. Opening an existing file continues it, from the step given to :meth:`begin`, or else from the
    first that is logged.

    Args:
        path: The CSV file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._columns = ["step"]
        self._begun = False

    def begin(self, step: int) -> None:
        """Go on at a step: rows of this and later steps, and a row cut off by a kill, are dropped.

        Args:
            step: The optimiser step, from 0, that is done next.
        """
        kept = [row for row in self.rows() if int(row["step"]) < step]
        self._columns = list(kept[0]) if kept else ["step"]
        self._begun = True
        if kept:
            self._rewrite(kept)
        else:
            self.path.unlink(missing_ok=True)

    def rows(self) -> list[dict[str, str]]:
        """The whole rows in the file; absent metrics are empty text."""
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        return [row for row in csv.DictReader(io.StringIO(whole)) if (row.get("step") or "").isdecimal()]

    def log_metrics(self, metrics: Mapping[str, float | int], step: int | None = None) -> None:
        """Add one row.

        Args:
            metrics: Values by name.
            step: Step of the optimiser, from 0.
        """
        row = {"step": str(step or 0)} | {name: _text(value) for name, value in metrics.items()}
        if not self._begun:
            self.begin(int(row["step"]))
        new = [name for name in row if name not in self._columns]
        if new or not self.path.exists():
            self._columns += new
            self._rewrite([*self.rows(), row])
        else:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(self._lines([row]))

    def save(self) -> None:
        """Have the rows on the disk, before a checkpoint that counts on them."""
        if self.path.exists():
            sync(self.path)

    def _lines(self, rows: list[dict[str, str]], header: bool = False) -> str:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self._columns, restval="", lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return buffer.getvalue()

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        atomic_write(self.path, self._lines(rows, header=True))


def _text(value: float | int) -> str:
    number = float(value)
    return str(int(number)) if math.isfinite(number) and number.is_integer() else repr(number)


class Console(_Named):
    """Lines on standard error for validations and training losses, above the progress bar if there is one."""

    def log_metrics(self, metrics: Mapping[str, float | int], step: int | None = None) -> None:
        """Show the whole metrics of a validation, or the loss of a training step; the rest stays in the file.

        A metric without a value is left out: why it has none is said apart.

        Args:
            metrics: Values by name.
            step: Step of the optimiser, from 0.
        """
        shown = [
            f"{name} {value:.4f}"
            for name, value in metrics.items()
            if name == "train/loss"
            or (re.fullmatch("valid/[^/]+", name) and math.isfinite(value) and not float(value).is_integer())
        ]
        if shown:
            epoch = int(metrics.get("epoch", 0)) + 1
            tqdm.write("  ".join([f"epoch {epoch}", f"step {(step or 0) + 1}", *shown]), file=sys.stderr)


class WandbRun(WandbLogger):
    """One W&B run for one run folder, however often the run is interrupted.

    Its id is kept in ``wandb/id``. W&B cannot go on with a run that it kept offline: it would leave one
    folder per part. So the folders of the parts before go, and a resumed run writes its rows anew, from
    metrics.csv.

    Args:
        run_dir: The run folder.
        config: Settings and group; see :class:`common.training.config.TrackingConfig`.
        project: W&B project where the settings name none.
        resolved: The resolved config of the run, kept with it; what looks like a secret in it, or on the
            command line, does not get there.
    """

    def __init__(
        self, run_dir: Path, config: TrackingConfig, *, project: str, resolved: Mapping[str, Any]
    ) -> None:
        from wandb import Settings

        safe = redact(resolved)
        if safe != resolved or redact_arguments(sys.argv[1:]) != sys.argv[1:]:
            report("note: what looks like a secret in the settings or on the command line is kept from W&B")
        self._run_dir = run_dir
        kept = run_dir / "wandb" / "id"
        if not kept.is_file():
            atomic_write(kept, uuid4().hex[:8] + "\n")
        super().__init__(
            name=run_dir.name,
            project=redact_text(config.project or project),
            save_dir=run_dir,
            id=kept.read_text(encoding="utf-8").strip(),
            group=redact_text(config.group) if config.group else None,
            config=safe,
            settings=Settings(
                silent=True,
                console="off",
                reinit="create_new",
                mode="offline" if config.wandb == "offline" else "online",
            ),
        )
        self._wandb_init.pop("anonymous", None)  # W&B warns of it though it is not set
        self.kept_offline = config.wandb == "offline"
        self.begun = False

    @property
    def experiment(self) -> Any:
        """The run; W&B reads the command line when it is opened."""
        with redacted_command_line():
            return super().experiment

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


def loggers(
    run_dir: Path, config: TrackingConfig, *, project: str, resolved: Any, console: bool = True
) -> list[Logger]:
    """The loggers of a run: ``metrics.csv``, console lines, and W&B unless disabled.

    Args:
        run_dir: The run folder; W&B writes to ``wandb/`` in it.
        config: Whether and where W&B tracks the run.
        project: W&B project where the config names none: the name of the method.
        resolved: The resolved config of the run, a dataclass instance or a mapping.
        console: Whether to show metrics on standard error.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    found: list[Logger] = [MetricsFile(run_dir / "metrics.csv")]
    if console:
        found.append(Console())
    if config.wandb != "disabled":
        found.append(WandbRun(run_dir, config, project=project, resolved=to_dict(resolved)))
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
    metrics: Mapping[str, float | int | None] | None = None,
    *,
    finished: bool = True,
) -> None:
    """End the tracking of a run, or of this part of it.

    Args:
        loggers: What :func:`loggers` gave.
        metrics: Final metrics, kept in W&B's summary of the run.
        finished: Whether the run came to its end.
    """
    for logger in loggers:
        if isinstance(logger, WandbRun) and (finished or logger.begun):
            run = logger.experiment
            run.summary.update({key: value for key, value in (metrics or {}).items() if value is not None})
            run.finish(exit_code=0 if finished else 1)
