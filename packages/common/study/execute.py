"""Runs in worker processes of this machine: done ones skipped, stopped ones resumed, failures reported."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path

import torch

from common.errors import DataError, Interrupted, UserError
from common.files import atomic_write
from common.live import Progress, State
from common.report.tables import format_seconds
from common.study.plan import RunSpec
from common.training.record import Record
from common.training.run import CONFIG_FILE, RECORD_FILE


@dataclass(frozen=True)
class FailedRun:
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
    """Leave a half-done run of the same settings to be resumed; clear away any other."""
    if folder.exists() and (_hash_of(folder) != spec.hash or _is_damaged(folder)):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.txt").unlink(missing_ok=True)
    atomic_write(folder / "study.json", json.dumps({"hash": spec.hash, **vars(spec)}, indent=1, default=str))


def _is_damaged(folder: Path) -> bool:
    """Whether a folder holds a run that nothing says what it is of, so that it could only be refused."""
    if not (folder / CONFIG_FILE).exists():
        return False
    try:
        Record.load(folder / RECORD_FILE)
    except DataError:
        return True
    return False


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
        except Interrupted:  # the parent ends its workers; the checkpoint is saved
            return
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
        self.pipe, other_end = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(other_end, worker, out, threads))
        self.process.start()
        other_end.close()
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


def execute(
    plan: Sequence[RunSpec],
    worker: Worker,
    out: Path,
    *,
    workers: int = 2,
    threads: int = 1,
    tidy: Callable[[Path], None] = lambda folder: None,
    report: Callable[[str], None],
) -> list[FailedRun]:
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
        report: Called with one line whenever a run ends.

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
    report(f"{total} runs to do, {len(done)} already done")
    failures: list[FailedRun] = []
    clean = False
    panel = _Panel(unique, done, out)
    slots = [_Slot(worker, out, threads) for _ in range(min(workers, total))]
    try:
        panel.begin(total)
        for slot in slots:
            panel.give(slot, waiting.pop(0))
        while busy := [slot for slot in slots if slot.spec is not None]:
            ready = connection.wait([slot.pipe for slot in busy])
            for slot in [slot for slot in busy if slot.pipe in ready]:
                spec, message = slot.spec, slot.result()
                if spec is not None and message:
                    failures.append(FailedRun(spec, message))
                elif spec is not None:
                    tidy(out / spec.key)
                if spec is not None:
                    panel.ended(spec, message, report)
                slot.spec = None
                if not slot.process.is_alive() and waiting:
                    slot.end(gently=False)
                    slots[slots.index(slot)] = slot = _Slot(worker, out, threads)
                if waiting:
                    panel.give(slot, waiting.pop(0))
        clean = True
    except (KeyboardInterrupt, Interrupted) as stopped:
        signum = stopped.signum if isinstance(stopped, Interrupted) else signal.SIGINT
        kept = f"{panel.finished} of {total} runs ended, the others keep their last checkpoint"
        raise Interrupted(signum, f"{kept}; run the same command again to go on") from None
    finally:
        panel.close()
        for slot in slots:
            slot.end(gently=clean)
    return failures


class _Panel:
    """What is seen of a study while it runs: on a terminal the grid of its runs, elsewhere a line for each.

    Args:
        plan: All runs, each once.
        done: Keys of those that are done already.
        out: The folder of the study.
    """

    def __init__(self, plan: Sequence[RunSpec], done: set[str], out: Path) -> None:
        self._plan = plan
        self._states: dict[str, State] = {s.key: "done" if s.key in done else "waiting" for s in plan}
        self._seeds = sorted({spec.seed for spec in plan})
        self._progress = Progress(f"study {out.name}", shown=sys.stderr.isatty())
        self._total = self.finished = 0
        self._started = time.monotonic()

    def begin(self, total: int) -> None:
        self._total = total
        self._progress.__enter__()
        self._progress.stage("runs", total=total, unit="runs")

    def close(self) -> None:
        self._progress.__exit__(None, None, None)

    def give(self, slot: _Slot, spec: RunSpec) -> None:
        slot.give(spec)
        self._note(spec, "running")

    def ended(self, spec: RunSpec, message: str, report: Callable[[str], None]) -> None:
        """Note how a run ended; a failure is said in any case."""
        self.finished += 1
        self._note(spec, "failed" if message else "done")
        seconds = time.monotonic() - self._started
        left = format_seconds(seconds / self.finished * (self._total - self.finished))
        word = f"FAILED: {message}" if message else "done"
        line = f"[{self.finished}/{self._total}] {spec.key} {word}; {left} left"
        if not self._progress.live:
            report(line)
        elif message:
            self._progress.report(line)
        self._progress.at(self.finished)

    def _note(self, spec: RunSpec, state: State) -> None:
        self._states[spec.key] = state
        counts = Counter(self._states.values())
        self._progress.show({name: str(counts[name]) for name in ("done", "running", "failed", "waiting")})
        rows: dict[str, list[State | None]] = {}
        for one in self._plan:
            name = " ".join(part for part in (one.backbone, one.arm, one.tag) if part)
            row = rows.setdefault(name, [None] * len(self._seeds))
            row[self._seeds.index(one.seed)] = self._states[one.key]
        self._progress.grid([str(seed) for seed in self._seeds], rows)
