"""The record of a run: everything needed to know what was run, on what, and what came out."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from common.config import config_hash, to_dict
from common.errors import DataError
from common.files import atomic_write
from common.machine import hardware, peak_memory, versions
from common.redact import redact_arguments


def _git(*arguments: str) -> str | None:
    """What git says about the checkout that this file stands in, or None when there is none."""
    here = Path(__file__).resolve()
    command = ["git", "-C", str(here.parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def commit() -> tuple[str | None, bool | None]:
    """The commit of this checkout and whether tracked files differ from it; None when not a checkout."""
    root = _git("rev-parse", "--show-toplevel")
    here = Path(__file__).resolve()
    if root is None or not here.is_relative_to(root) or "site-packages" in here.parts:
        return None, None
    head = _git("rev-parse", "--verify", "HEAD")
    status = _git("status", "--porcelain", "--untracked-files=no")
    return head, None if status is None else bool(status)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(kw_only=True)
class Record:
    """What a run was and what it measured; written as JSON beside its results.

    Args:
        config: The resolved config.
        identity: Hash of everything that decides the result: settings, and the content of what is read.
        inputs: Fingerprint of everything that the run reads, by the dotted key that names it.
        command: The command line, without what looks like a secret.
        commit: Commit of the checkout; None outside a checkout.
        dirty: Whether tracked files differed from the commit.
        seed: Seed of the run; None when it has none.
        versions: Versions of Python and libraries.
        hardware: Processor, cores, threads, GPUs, memory in bytes.
        started: ISO time in UTC.
        finished: ISO time in UTC; None while the run is not complete.
        wall_seconds: Seconds from start to finish, of this process.
        peak_memory_bytes: Most main memory held by this process.
        parameters: Trainable parameters; None when nothing was trained.
        metrics: Every metric; None where it has no value.
        reasons: Why a metric has no value, by its name.
        notes: Anything else worth keeping, as JSON values.
    """

    config: dict[str, Any]
    identity: str
    inputs: dict[str, str]
    command: str
    commit: str | None
    dirty: bool | None
    seed: int | None
    versions: dict[str, str]
    hardware: dict[str, Any]
    started: str
    finished: str | None = None
    wall_seconds: float | None = None
    peak_memory_bytes: int | None = None
    parameters: int | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    _clock: float | None = field(default=None, repr=False, compare=False)

    @classmethod
    def start(
        cls,
        *,
        config: Any,
        seed: int | None = None,
        inputs: Mapping[str, str] | None = None,
        parameters: int | None = None,
        identity: str | None = None,
    ) -> Record:
        """Begin a record: what is known before the run.

        Args:
            config: A dataclass instance or a mapping.
            seed: Seed of the run.
            inputs: Fingerprint of everything that is read, by the dotted key that names it.
            parameters: Trainable parameters.
            identity: Hash of everything that decides the result; by default that of config and inputs.
        """
        head, dirty = commit()
        return cls(
            config=to_dict(config),
            identity=identity or config_hash({"config": to_dict(config), "inputs": dict(inputs or {})}),
            inputs=dict(inputs or {}),
            command=shlex.join([Path(sys.argv[0]).name, *redact_arguments(sys.argv[1:])]),
            commit=head,
            dirty=dirty,
            seed=seed,
            versions=versions(),
            hardware=hardware(),
            started=_now(),
            parameters=parameters,
            _clock=time.monotonic(),
        )

    @property
    def complete(self) -> bool:
        """Whether the run came to its end."""
        return self.finished is not None

    def finish(
        self, metrics: Mapping[str, float | int | None], reasons: Mapping[str, str] | None = None
    ) -> Record:
        """Complete the record; a metric that is not finite becomes None with a reason.

        Args:
            metrics: Every metric of the run.
            reasons: Why a metric is None, by its name.

        Returns:
            The record itself.
        """
        self.reasons = dict(reasons or {})
        self.metrics = {}
        for name, value in metrics.items():
            finite = value is not None and math.isfinite(value)
            self.metrics[name] = float(value) if value is not None and finite else None
            if not finite:
                self.reasons.setdefault(name, "no value" if value is None else f"not finite: {value}")
        self.finished = _now()
        self.peak_memory_bytes = peak_memory()
        if self._clock is not None:
            self.wall_seconds = round(time.monotonic() - self._clock, 3)
        if torch.cuda.is_available():
            self.notes["gpu_peak_memory_bytes"] = torch.cuda.max_memory_allocated()
        return self

    def save(self, path: Path) -> None:
        """Write the record as JSON, whole or not at all.

        Args:
            path: The file, by custom ``record.json`` in the run folder.
        """
        content = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "_clock"}
        atomic_write(
            path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", durable=True
        )

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read a record.

        Args:
            path: The file.

        Raises:
            DataError: The file is missing or not a record.
        """
        advice = "remove its folder and run again, or give another name"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{path}: there is no such record") from None
        except ValueError as error:
            raise DataError(f"{path}: not a readable record ({error}); {advice}") from None
        names = {f.name for f in dataclasses.fields(cls)} - {"_clock"}
        if not isinstance(content, dict) or set(content) != names:
            raise DataError(f"{path}: not a record of this version; {advice}")
        return cls(**content)
