"""What stands in a W&B file, read by W&B's own reader (`wandb leet inspect`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Logged:
    """One W&B run.

    Args:
        run: Its head: id, group, job type, tags, project, config.
        rows: What was logged, in order.
        summary: The last value of everything.
        artifacts: What was read and made.
    """

    run: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def names(self) -> set[str]:
        """Names of everything that was logged; of a table or histogram without its fields."""
        keys = {key for found in (*self.rows, self.summary) for key in found}
        return {key.split(".")[0] for key in keys if not key.startswith("_")}


def inspect(path: Path) -> list[dict[str, Any]]:
    """Every record of a W&B file, by `wandb leet inspect`."""
    environment = os.environ | {"WANDB_ERROR_REPORTING": "false"}
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def read_wandb(folder: Path) -> Logged:
    """The one W&B run under a folder, once W&B's own process has written its end."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    until = time.monotonic() + 60
    while (records := inspect(path))[-1]["type"] != "exit":
        assert time.monotonic() < until, "W&B's own process did not write the end of the run"
        time.sleep(0.1)
    logged = Logged()
    for record in records:
        match record["type"]:
            case "run":
                logged.run = record["run"]
            case "history":
                logged.rows.append(record["history"]["item"])
            case "summary":
                logged.summary |= record["summary"]["update"]
            case "artifact":
                logged.artifacts.append(record["artifact"])
    return logged
