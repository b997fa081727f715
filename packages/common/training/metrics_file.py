"""All metrics of a run in one CSV file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from common.files import atomic_write, sync


class NamedLogger(Logger):
    """A logger of one run folder; Lightning asks every logger for a name and a version."""

    @property
    def name(self) -> str:
        """Name of the class."""
        return type(self).__name__

    @property
    def version(self) -> str:
        """None."""
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the config stands beside the metrics in the run folder."""


class MetricsFile(NamedLogger):
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
