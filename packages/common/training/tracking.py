"""Where a run's metrics go while it trains: one CSV file, Weights & Biases, console lines."""

from __future__ import annotations

import csv
import io
import math
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, WandbLogger
from tqdm import tqdm

from common.config import to_dict
from common.files import atomic_write

WandbMode = Literal["offline", "online", "disabled"]


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
    column. Opening an existing file continues it: a last row cut off by a killed process is dropped, and so
    are rows at or after the first step that is logged again.

    Args:
        path: The CSV file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._columns = ["step"]
        self._rows_before: list[dict[str, str]] | None = None
        self._fresh = True

    def clear(self) -> None:
        """Forget every row of an earlier run."""
        self.path.unlink(missing_ok=True)
        self._columns, self._fresh = ["step"], True

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
        new = [name for name in row if name not in self._columns]
        if self._fresh:
            kept = [old for old in self.rows() if int(old["step"]) < int(row["step"])]
            columns = list(kept[0]) if kept else ["step"]
            self._columns = columns + [name for name in row if name not in columns]
            self._rewrite([*kept, row])
            self._fresh = False
        elif new:
            self._columns += new
            self._rewrite([*self.rows(), row])
        else:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(self._lines([row]))

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
    """One line on standard error for every validation, above the progress bar if there is one."""

    def log_metrics(self, metrics: Mapping[str, float | int], step: int | None = None) -> None:
        """Show the whole metrics of a validation; those of buckets and of training steps stay in the file.

        Args:
            metrics: Values by name.
            step: Step of the optimiser, from 0.
        """
        whole = {name: value for name, value in metrics.items() if re.fullmatch("valid/[^/]+", name)}
        shown = [f"{name} {value:.4f}" for name, value in whole.items() if not float(value).is_integer()]
        if shown:
            epoch = int(metrics.get("epoch", 0)) + 1
            tqdm.write("  ".join([f"epoch {epoch}", f"step {(step or 0) + 1}", *shown]), file=sys.stderr)


def loggers(
    run_dir: Path,
    *,
    wandb: WandbMode,
    project: str,
    name: str,
    config: Any,
    group: str | None = None,
    console: bool = True,
) -> list[Logger]:
    """The loggers of a run: ``metrics.csv``, console lines, and W&B unless disabled.

    Args:
        run_dir: The run folder; W&B writes to ``wandb/`` in it.
        wandb: ``"offline"`` keeps W&B's files in the run folder, ``"online"`` sends them as well.
        project: W&B project.
        name: W&B name of the run.
        config: The resolved config, a dataclass instance or a mapping.
        group: W&B group, such as the name of a study.
        console: Whether to print a line for every validation.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    found: list[Logger] = [MetricsFile(run_dir / "metrics.csv")]
    if console:
        found.append(Console())
    if wandb != "disabled":
        from wandb import Settings

        found.append(
            WandbLogger(
                name=name,
                project=project,
                save_dir=run_dir,
                offline=wandb == "offline",
                group=group,
                config=to_dict(config),
                settings=Settings(silent=True, console="off", reinit="create_new"),
            )
        )
    return found


def close(loggers: Iterable[Logger], metrics: Mapping[str, float | int | None] | None = None) -> None:
    """End the tracking of a run.

    Args:
        loggers: What :func:`loggers` gave.
        metrics: Final metrics, kept in W&B's summary of the run.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            run = logger.experiment
            run.summary.update({key: value for key, value in (metrics or {}).items() if value is not None})
            run.finish()
