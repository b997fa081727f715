"""A matrix of runs from one YAML: plan it, skip what is done, run the rest in worker processes, collect."""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from common import config
from common.errors import ConfigError, DataError, UserError, suggest
from common.files import atomic_write
from common.report.tables import format_seconds
from common.training.record import Record


@dataclass
class Extra:
    """Runs beside the main matrix: more arms for one backbone, or a sweep.

    Args:
        backbones: Which backbones.
        arms: Which arms.
        seeds: Which seeds; those of the study by default.
        overrides: Settings of these runs, by dotted key.
        vary: Lists of values by dotted key; every combination is a run.
        tag: Name of the sweep; runs without one join the main table.
    """

    backbones: list[str]
    arms: list[str]
    seeds: list[int] | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    vary: dict[str, list[Any]] = field(default_factory=dict)
    tag: str = ""


@dataclass(frozen=True)
class RunSpec:
    """One run of a study.

    Args:
        key: Name of its folder.
        backbone: Backbone.
        arm: Arm.
        seed: Seed.
        tag: ``""`` in the main matrix, otherwise the sweep and its values: ``"sweep:max_length=20"``.
        config: The settings it is run with, nested.
    """

    key: str
    backbone: str
    arm: str
    seed: int
    tag: str
    config: dict[str, Any]

    @property
    def hash(self) -> str:
        """Hash of everything that decides the result; a finished run with another hash is run again."""
        names = {"backbone": self.backbone, "arm": self.arm, "seed": self.seed}
        return config.config_hash({**names, "config": self.config})


@dataclass
class Study:
    """What a study file holds: backbones x arms x seeds, and what goes beside them.

    Args:
        name: Name of the study.
        description: One sentence for the head of the table.
        data: Where the data comes from; the script that runs the study reads it.
        base: Settings that all runs share, nested or by dotted key.
        backbones: Backbones of the main matrix.
        arms: Settings of each arm, by dotted key.
        seeds: Seeds of the main matrix.
        main: Arms of the main matrix; all of ``arms`` when empty.
        per_backbone: Settings of single backbones, by dotted key.
        extra: Runs beside the main matrix.
        tune: Grids that the settings in ``base`` and the form of the arms were chosen from, on validation
            rows; never part of the study's own runs.
    """

    name: str
    backbones: list[str]
    arms: dict[str, dict[str, Any]]
    seeds: list[int]
    base: dict[str, Any] = field(default_factory=dict)
    description: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    main: list[str] = field(default_factory=list)
    per_backbone: dict[str, dict[str, Any]] = field(default_factory=dict)
    extra: list[Extra] = field(default_factory=list)
    tune: list[Extra] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check that every name that is used is defined."""
        beside = [(f"extra[{place}]", extra) for place, extra in enumerate(self.extra)]
        beside += [(f"tune[{place}]", extra) for place, extra in enumerate(self.tune)]
        used = {*self.backbones, *(name for _, extra in beside for name in extra.backbones)}
        wanted = [("main", arm) for arm in self.main]
        for place, extra in beside:
            wanted += [(f"{place}.arms", arm) for arm in extra.arms]
        unknown = [(where, arm) for where, arm in wanted if arm not in self.arms]
        mistakes = [f"{where}: no arm {arm!r}{suggest(arm, self.arms)}" for where, arm in unknown]
        mistakes += [
            f"per_backbone: no backbone {name!r} in this study{suggest(name, used)}"
            for name in self.per_backbone
            if name not in used
        ]
        for name in ("backbones", "arms", "seeds"):
            if not getattr(self, name):
                mistakes.append(f"{name}: must not be empty")
        ConfigError.raise_if(mistakes)

    @classmethod
    def load(cls, path: Path) -> Study:
        """Read a study file.

        Raises:
            ConfigError: All mistakes in it together.
        """
        return config.load(cls, path)

    def plan(self, seeds: int | None = None) -> list[RunSpec]:
        """All runs, the main matrix first.

        A run of a sweep that has exactly the settings of an earlier run shares its key, so that it is
        trained once.

        Args:
            seeds: Use seeds 0 .. ``seeds - 1`` instead of those in the file.

        Raises:
            ConfigError: Two different runs would share a folder.
        """
        main = Extra(self.backbones, self.main or list(self.arms))
        return self._plan([main, *self.extra], seeds)

    def tuning(self) -> list[RunSpec]:
        """The runs of the grids that the settings were chosen from.

        Raises:
            ConfigError: The study has none.
        """
        if not self.tune:
            raise ConfigError(f"study {self.name}: has no grid (tune) to choose its settings from")
        return self._plan([dataclasses.replace(grid, tag=grid.tag or "tune") for grid in self.tune], None)

    def _plan(self, extras: Sequence[Extra], seeds: int | None) -> list[RunSpec]:
        own = list(range(seeds)) if seeds is not None else self.seeds
        plan: list[RunSpec] = []
        keys: dict[str, str] = {}
        for extra in extras:
            chosen = own if seeds is not None or extra.seeds is None else extra.seeds
            for backbone, arm in itertools.product(extra.backbones, extra.arms):
                for values in itertools.product(*extra.vary.values()):
                    varied = dict(zip(extra.vary, values, strict=True))
                    for seed in chosen:
                        spec = self._spec(backbone, arm, seed, extra, varied)
                        spec = RunSpec(**{**vars(spec), "key": keys.get(spec.hash, spec.key)})
                        if any(other.key == spec.key and other.hash != spec.hash for other in plan):
                            raise ConfigError(f"study {self.name}: two different runs are called {spec.key}")
                        keys.setdefault(spec.hash, spec.key)
                        if spec not in plan:
                            plan.append(spec)
        return plan

    def _spec(self, backbone: str, arm: str, seed: int, extra: Extra, varied: Mapping[str, Any]) -> RunSpec:
        short = {key.rsplit(".", 1)[-1]: value for key, value in varied.items()}
        values = ",".join(f"{key}={value}" for key, value in short.items())
        tag = ":".join(part for part in (extra.tag, values) if part)
        key = "-".join([backbone, arm, *([tag.replace(":", "-")] if tag else []), str(seed)])
        settings = nested(
            self.base, self.per_backbone.get(backbone, {}), self.arms[arm], extra.overrides, varied
        )
        return RunSpec(key, backbone, arm, seed, tag, settings)


def nested(*settings: Mapping[str, Any]) -> dict[str, Any]:
    """One nested dict from several, with or without dotted keys; the later one wins."""
    out: dict[str, Any] = {}
    for layer in settings:
        for key, value in layer.items():
            at = out
            *parents, last = str(key).split(".")
            for parent in parents:
                at = at.setdefault(parent, {})
            if isinstance(value, Mapping):
                at[last] = nested(at.get(last) or {}, value)
            else:
                at[last] = value
    return out


@dataclass(frozen=True)
class Failure:
    """A run that did not finish.

    Args:
        spec: Which one.
        message: Why, in one line; ``error.txt`` in its folder has the traceback.
    """

    spec: RunSpec
    message: str


Worker = Callable[[RunSpec, Path], None]
"""Does one run in a folder and leaves a finished ``record.json`` there; importable, as it is spawned."""


def is_done(spec: RunSpec, out: Path) -> bool:
    """Whether a run is finished, with the settings that are asked for now."""
    try:
        return Record.load(out / spec.key / "record.json").complete and _hash_of(out / spec.key) == spec.hash
    except DataError:
        return False


def _hash_of(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / "study.json").read_text())["hash"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _prepare(spec: RunSpec, folder: Path) -> None:
    """Leave a half-done run of the same settings to be resumed; clear away one of other settings."""
    if folder.exists() and _hash_of(folder) != spec.hash:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.txt").unlink(missing_ok=True)
    atomic_write(folder / "study.json", json.dumps({"hash": spec.hash, **vars(spec)}, indent=1, default=str))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _write_output_to(path: Path) -> None:
    """Send what this process prints to a file, so that workers do not talk over each other."""
    sys.stdout.flush()
    sys.stderr.flush()
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _serve(pipe: connection.Connection, worker: Worker, out: Path, threads: int) -> None:
    """A worker process: does the runs that come through the pipe, one after the other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which ends its workers
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    while (spec := pipe.recv()) is not None:
        folder = out / spec.key
        try:
            _prepare(spec, folder)
            _write_output_to(folder / "log.txt")
            worker(spec, folder)
            message = "" if is_done(spec, out) else "it left no finished record.json"
        except BaseException as error:  # whatever it was, the other runs go on
            message = " ".join(str(error).split()) or "no message"
            if not isinstance(error, UserError):
                message = f"{type(error).__name__}: {message}"
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write(folder / "error.txt", traceback.format_exc())
        pipe.send(message)


class _Slot:
    """One worker process and the run that it is at."""

    def __init__(self, worker: Worker, out: Path, threads: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(theirs, worker, out, threads))
        self.process.start()
        theirs.close()
        self.spec: RunSpec | None = None

    def give(self, spec: RunSpec) -> None:
        self.spec = spec
        self.pipe.send(spec)

    def result(self) -> str:
        """Message of the run that ended; ``""`` when all went well."""
        try:
            return str(self.pipe.recv())
        except (EOFError, OSError):
            self.process.join()
            return f"its process died with exit code {self.process.exitcode} (out of memory?)"

    def end(self, gently: bool) -> None:
        if gently and self.process.is_alive():
            self.pipe.send(None)
        else:
            self.process.terminate()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


def say(line: str) -> None:
    """Write one line of progress to standard error."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def run(
    plan: Sequence[RunSpec],
    worker: Worker,
    out: Path,
    *,
    workers: int = 2,
    threads: int = 1,
    tidy: Callable[[Path], None] = lambda folder: None,
    progress: Callable[[str], None] = say,
) -> list[Failure]:
    """Do the runs that are not done yet.

    May be killed at any time: a later call resumes. A run that fails, or whose process dies, is reported and
    the others go on. Workers end with the process that started them.

    Args:
        plan: The runs.
        worker: Does one run.
        out: The folder of the study; a run has the folder ``out / key``.
        workers: Number of worker processes.
        threads: Number of torch threads of each.
        tidy: Removes from the folder of a finished run what only an unfinished one needs; removes nothing by
            default.
        progress: Called with one line whenever a run ends.

    Returns:
        The runs that failed.

    Raises:
        ValueError: ``workers`` or ``threads`` is less than 1.
    """
    if workers < 1 or threads < 1:
        raise ValueError(f"workers and threads must be at least 1, got {workers} and {threads}")
    unique = list({spec.key: spec for spec in plan}.values())
    done = {spec.key for spec in unique if is_done(spec, out)}
    waiting = [spec for spec in unique if spec.key not in done]
    for key in done:
        tidy(out / key)
    if not waiting:
        return []
    total = len(waiting)
    progress(f"{total} runs to do, {len(done)} already done")
    failures: list[Failure] = []
    started, finished, clean = time.monotonic(), 0, False
    slots = [_Slot(worker, out, threads) for _ in range(min(workers, total))]
    try:
        for slot in slots:
            slot.give(waiting.pop(0))
        while busy := [slot for slot in slots if slot.spec is not None]:
            ready = connection.wait([slot.pipe for slot in busy])
            for slot in [slot for slot in busy if slot.pipe in ready]:
                spec, message = slot.spec, slot.result()
                if spec is not None and message:
                    failures.append(Failure(spec, message))
                elif spec is not None:
                    tidy(out / spec.key)
                finished += 1
                seconds = time.monotonic() - started
                left = format_seconds(seconds / finished * (total - finished))
                word = f"FAILED: {message}" if message else "done"
                progress(f"[{finished}/{total}] {spec.key if spec else ''} {word}; {left} left")
                slot.spec = None
                if not slot.process.is_alive() and waiting:
                    slot.end(gently=False)
                    slots[slots.index(slot)] = slot = _Slot(worker, out, threads)
                if waiting:
                    slot.give(waiting.pop(0))
        clean = True
    finally:
        for slot in slots:
            slot.end(gently=clean)
    return failures


def collect(plan: Sequence[RunSpec], out: Path, *, prefix: str = "test/") -> list[dict[str, Any]]:
    """Rows of the finished runs, in the order of the plan.

    Args:
        plan: The runs.
        out: The folder of the study.
        prefix: Which metrics of the records to take; it is cut off their names.

    Returns:
        ``{"backbone", "arm", "seed", "tag" (only of a sweep), "metrics": {...}}`` per run.
    """
    rows = []
    for spec in plan:
        if not is_done(spec, out):
            continue
        metrics = Record.load(out / spec.key / "record.json").metrics
        row: dict[str, Any] = {"backbone": spec.backbone, "arm": spec.arm, "seed": spec.seed}
        if spec.tag:
            row["tag"] = spec.tag
        row["metrics"] = {
            key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)
        }
        rows.append(row)
    return rows
