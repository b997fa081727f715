"""The one lifecycle of a training run: begin, refuse or resume, fit, evaluate, finish."""

from __future__ import annotations

import dataclasses
import math
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from common.cli import report
from common.config import config_hash, load, save, to_dict
from common.errors import ConfigError, DataError, Interrupted, UserError
from common.files import locked
from common.live import Progress
from common.machine import keep_freed_memory, out_of_memory
from common.training.config import mistakes
from common.training.record import Record
from common.training.task import Measured, Task, Training
from common.training.wandb_mode import tracking_mistakes

if TYPE_CHECKING:  # Lightning takes seconds to import, and a finished run is shown without it
    from lightning.pytorch.loggers import Logger

    from common.training.fit import FitResult

C = TypeVar("C")

CONFIG_FILE, RECORD_FILE, CHECKPOINTS = "config.yaml", "record.json", "checkpoints"

DISPLAY = (
    *("out", "name", "tracking", "fit.progress", "fit.log_every"),
    *("fit.checkpoint_steps", "fit.checkpoint_minutes"),
)
"""Settings of every method that decide nothing but where things lie and what is shown or kept on the way."""


@dataclass(frozen=True)
class Identity:
    """What tells a run from others.

    Args:
        settings: Everything that decides the result, by dotted key; what is read counts by content instead.
        inputs: Fingerprint of everything that is read, by the dotted key that names it.
        extendable: The settings that may change while the run goes on, by dotted key.
        places: Where what is read lies, by dotted key.
    """

    settings: dict[str, Any]
    inputs: dict[str, str]
    extendable: dict[str, Any]
    places: dict[str, Any]

    @classmethod
    def of(cls, task: Task, config: Mapping[str, Any], inputs: Mapping[str, str]) -> Identity:
        """The identity of a run with these settings on these inputs."""
        leaves = dict(_leaves(config))
        display = (*DISPLAY, *task.display)

        def under(key: str, prefixes: tuple[str, ...]) -> bool:
            return any(key == prefix or key.startswith((f"{prefix}.", f"{prefix}[")) for prefix in prefixes)

        def part(chosen: Any) -> dict[str, Any]:
            return {key: value for key, value in leaves.items() if chosen(key)}

        return cls(
            settings=part(lambda k: k not in inputs and not under(k, (*display, *task.extendable))),
            inputs=dict(inputs),
            extendable=part(lambda k: under(k, task.extendable)),
            places=part(lambda k: k in inputs),
        )

    @property
    def hash(self) -> str:
        """12 hexadecimal digits that no other run has."""
        return config_hash({"settings": self.settings, "inputs": self.inputs, "extendable": self.extendable})

    def differences(self, before: Identity) -> list[str]:
        """What makes this another run than one before, in words; empty for the same."""
        now, then = self.settings, before.settings
        found = [
            f"{key} was {then.get(key, 'not there')}, is {now.get(key, 'not there')}"
            for key in sorted(now.keys() | then.keys())
            if key not in now or key not in then or now[key] != then[key]
        ]
        for key in sorted(self.inputs.keys() | before.inputs.keys()):
            if self.inputs.get(key) != before.inputs.get(key):
                where = self.places.get(key, before.places.get(key))
                what = "its data were others" if key == "data" else f"what {key} names was another"
                found.append(what if where is None else f"{what}: {where}")
        return found


def _leaves(config: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a plain config, and its value; empty groups and lists are values."""
    if isinstance(config, Mapping) and config:
        for name, value in config.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(config, (list, tuple)) and any(isinstance(value, (Mapping, str)) for value in config):
        for place, value in enumerate(config):
            yield from _leaves(value, f"{key}[{place}]")
    else:
        yield key, list(config) if isinstance(config, tuple) else config


@dataclass(frozen=True)
class Run:
    """A run that is finished.

    Args:
        folder: Its folder.
        record: What it was and what it measured.
        trained: Whether this call did anything; False where the run was finished before.
    """

    folder: Path
    record: Record
    trained: bool


def train(task: Task, folder: Path | None = None, *, replace: bool = False) -> Run:
    """Train and evaluate, resume what a stopped call left, or give what a finished run has.

    The folder then holds config.yaml, record.json, metrics.csv, checkpoints/ and what the task leaves there.
    Of several processes that train together, only the first one writes and comes back.

    Args:
        task: What is trained.
        folder: The run folder; by default the one that the settings name, or one that no other run has.
        replace: Whether another or a damaged run in the folder is removed instead of refused.

    Raises:
        ConfigError: A setting is out of range, or the folder holds another run.
        DataError: Something that is read, or the folder, is missing or damaged; another process is at work
            there.
        Interrupted: A signal stopped it.
    """
    config = to_dict(task.config)
    ConfigError.raise_if([*mistakes(task.config), *_not_finite(config)])
    identity = Identity.of(task, config, task.inputs())
    folder = folder or task.config.out / (
        task.config.name or f"{task.label()}-{identity.hash}-seed{task.config.seed}"
    )
    try:
        before = _finished(task, folder, identity)
    except UserError:
        if not replace:
            raise
        with locked(folder):
            shutil.rmtree(folder)
        before = None
    if before is not None:
        return Run(folder, before, trained=False)
    ConfigError.raise_if(tracking_mistakes(task.config.tracking))
    with redirect_stdout(sys.stderr):
        if _rank():
            _fit(task, folder, task.build(folder), [])
            sys.exit(0)
        with _held(folder), out_of_memory(task.advice()):
            before = _finished(task, folder, identity)  # from here on nobody else can change the answer
            if before is not None:
                return Run(folder, before, trained=False)
            return Run(folder, _run(task, folder, identity), trained=True)


def _rank() -> int:
    """Number of this process among those that train together."""
    from lightning.pytorch.utilities import rank_zero_only

    return int(getattr(rank_zero_only, "rank", 0))


def _not_finite(config: Mapping[str, Any]) -> list[str]:
    return [
        f"{key}: must be finite, got {value}"
        for key, value in _leaves(config)
        if isinstance(value, float) and not math.isfinite(value)
    ]


def _finished(task: Task, folder: Path, identity: Identity) -> Record | None:
    """The record of a finished run of this identity; None where there is something to do.

    Raises:
        ConfigError: The folder holds another run.
        DataError: What it holds cannot be read.
    """
    if not (folder / RECORD_FILE).exists():
        left = [name for name in (CONFIG_FILE, CHECKPOINTS) if (folder / name).exists()]
        if left:
            raise DataError(
                f"{folder}: has {left[0]} but no {RECORD_FILE}, so nothing says what was trained here; "
                "remove the folder or give another name"
            )
        return None
    record = Record.load(folder / RECORD_FILE)
    before = Identity.of(task, record.config, record.inputs)
    if differing := identity.differences(before):
        raise ConfigError(
            f"{folder}: holds a run with other settings ({', '.join(differing)}); "
            "give another name or remove the folder"
        )
    if record.complete and identity.extendable == before.extendable:
        return record
    if record.complete and not (folder / CHECKPOINTS / "last.ckpt").exists():
        changed = [k for k, v in identity.extendable.items() if before.extendable.get(k) != v]
        raise ConfigError(
            f"{folder}: is finished and its optimizer state is gone, so it cannot go on with another "
            f"{', '.join(changed)}; give another name"
        )
    return None


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Be alone in a run folder; a new one is removed at a mistake or stop before its first checkpoint."""
    new = not folder.exists()
    with locked(folder):
        try:
            yield
        except (UserError, OSError, Interrupted, KeyboardInterrupt):
            if new and not (folder / CHECKPOINTS / "last.ckpt").exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _run(task: Task, folder: Path, identity: Identity) -> Record:
    """Begin, fit, evaluate, finish."""
    config = task.config
    with Progress(folder.name, shown=config.fit.progress) as progress:
        progress.stage("read data, build the model")
        record = Record.start(config=config, seed=config.seed, inputs=identity.inputs, identity=identity.hash)
        keep_freed_memory()
        training = task.build(folder)
        record.parameters = training.parameters
        record.save(folder / RECORD_FILE)
        save(config, folder / CONFIG_FILE)
        return _tracked(task, folder, record, training, progress)


def _tracked(task: Task, folder: Path, record: Record, training: Training, progress: Progress) -> Record:
    """Fit, evaluate, finish, with loggers that end however this ends."""
    from common.training.tracking import close, loggers

    config = task.config
    outlets = loggers(
        folder,
        config.tracking,
        project=task.method,
        resolved=config,
        tags=[*task.tags(), f"seed-{config.seed}"],
        progress=progress if config.fit.progress else None,
        samples=task.samples,
    )
    try:
        trained = _fit(task, folder, training, outlets)
        progress.stage("evaluate")
        measured = _evaluate(task, folder)
    except BaseException:
        close(outlets, finished=False)
        raise
    record.notes |= measured.notes
    record.notes |= {
        "epochs": trained.epochs,
        "stopped_early": trained.stopped_early,
        "train_seconds": trained.wall_seconds,
        "train_samples_per_second": trained.samples_per_second,
    }
    record.finish(measured.metrics, measured.reasons)
    measured = dataclasses.replace(measured, metrics=record.metrics, reasons=record.reasons)
    close(outlets, measured, task.artifacts(folder))
    record.save(folder / RECORD_FILE)
    return record


def _fit(task: Task, folder: Path, training: Training, outlets: list[Logger]) -> FitResult:
    from common.training.fit import fit

    return fit(
        training.module,
        training.data,
        config=task.config.fit,
        run_dir=folder,
        seed=task.config.seed,
        loggers=outlets,
    )


def _evaluate(task: Task, folder: Path) -> Measured:
    try:
        return task.evaluate(folder)
    except (Interrupted, KeyboardInterrupt) as stopped:
        signum = stopped.signum if isinstance(stopped, Interrupted) else signal.SIGINT
        kept = "the training is done and saved; run the same command again to evaluate it"
        raise Interrupted(signum, kept) from None


def load_run(
    folder: Path, cls: type[C], *, method: str, renamed: Mapping[str, str] | None = None
) -> tuple[C, Record]:
    """The settings and the record of a run.

    Args:
        folder: The run folder.
        cls: The method's settings.
        method: Name of the method.
        renamed: What became of settings, by the key that they had before.

    Raises:
        ConfigError: Its config.yaml is of another version, or none.
        DataError: The folder is no run, or its record is damaged.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise DataError(f"{folder}: not a run folder (no {CONFIG_FILE}); `{method} train` makes one")
    config = load(cls, folder / CONFIG_FILE, renamed=renamed)
    record = Record.load(folder / RECORD_FILE)
    if not record.complete:
        report(f"{folder}: this run is not finished; its best weights so far are used")
    return config, record


def check_inputs(
    folder: Path, record: Record, found: Mapping[str, str], places: Mapping[str, object]
) -> None:
    """Refuse to work with a run where something that it read has another content now.

    Args:
        folder: The run folder.
        record: Its record.
        found: Fingerprints of now, by dotted key.
        places: Where that lies, by dotted key.

    Raises:
        DataError: Something has another content; one line for each.
    """
    DataError.raise_if(
        f"{places.get(key, key)}: has another content than when {folder} was trained on it "
        f"(fingerprint {fingerprint}, was {record.inputs.get(key, 'not there')})"
        for key, fingerprint in found.items()
        if record.inputs.get(key) != fingerprint
    )
