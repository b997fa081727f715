"""The record of a run: everything needed to know what was run, on what, and what came out."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from common.config import config_hash, to_dict
from common.errors import DataError
from common.files import atomic_write

LIBRARIES = ("torch", "lightning", "numpy", "scipy", "scikit-learn", "torchmetrics", "pyarrow", "faiss-cpu")
"""The installed libraries whose versions a record keeps; absent ones are left out."""


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


def versions() -> dict[str, str]:
    """Versions of Python, of this distribution and of the libraries that results depend on."""
    found = {"python": platform.python_version()}
    for name in ("causalneg-lain", *LIBRARIES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def hardware() -> dict[str, Any]:
    """Processor, cores, threads that torch uses, GPUs, and memory in bytes."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def describe_hardware(found: Mapping[str, Any]) -> str:
    """What :func:`hardware` found, in one line for the head of a table."""
    parts = [
        f"{found.get('cpu', 'processor not recorded')}",
        f"{found.get('cores', '?')} cores",
        f"{found.get('threads', '?')} torch threads a run",
        *(found.get("gpu") or []),
    ]
    if memory := found.get("memory"):
        parts.append(f"{memory / 2**30:.0f} GiB")
    return ", ".join(parts)


def peak_memory() -> int:
    """The most main memory that this process has held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Unlike ru_maxrss this is not inherited from the process that started this one.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(kw_only=True)
class Record:
    """What a run was and what it measured; written as JSON beside its results.

    Args:
        config: The resolved config.
        config_hash: What tells this config from others.
        command: The command line.
        commit: Commit of the checkout; None outside a checkout.
        dirty: Whether tracked files differed from the commit.
        data_fingerprint: Fingerprint of the data set; None when the run has no data.
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
    config_hash: str
    command: str
    commit: str | None
    dirty: bool | None
    data_fingerprint: str | None
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
        data_fingerprint: str | None = None,
        parameters: int | None = None,
        hash: str | None = None,
    ) -> Record:
        """Begin a record: what is known before the run.

        Args:
            config: A dataclass instance or a mapping.
            seed: Seed of the run.
            data_fingerprint: Fingerprint of the data set.
            parameters: Trainable parameters.
            hash: The config's hash, when some keys are to be ignored in it.
        """
        head, dirty = commit()
        return cls(
            config=to_dict(config),
            config_hash=config_hash(config) if hash is None else hash,
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            commit=head,
            dirty=dirty,
            data_fingerprint=data_fingerprint,
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
        atomic_write(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read a record.

        Args:
            path: The file.

        Raises:
            DataError: The file is missing or not a record.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{path}: there is no such record") from None
        except ValueError as error:
            raise DataError(f"{path}: not a readable record ({error}); remove it and run again") from None
        names = {f.name for f in dataclasses.fields(cls)} - {"_clock"}
        if not isinstance(content, dict) or set(content) != names:
            raise DataError(f"{path}: not a record of this version; remove it and run again")
        return cls(**content)
