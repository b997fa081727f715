"""Training on Lightning, set up once for both methods: precision, resume, checkpoints, throughput."""

from __future__ import annotations

import logging
import math
import os
import pickle
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import Callback, Checkpoint, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.loggers import Logger

from common.errors import ConfigError, DataError, suggest
from common.training.tracking import MetricsFile


@dataclass(kw_only=True)
class FitConfig:
    """How a module is trained.

    Args:
        epochs: Most passes over the training rows.
        max_steps: Most optimiser steps; None for no limit.
        precision: Arithmetic of the forward and backward pass.
        accelerator: Kind of device; ``"auto"`` takes a GPU when there is one.
        devices: Number of devices.
        accumulate: Batches whose mean gradient makes one optimiser step.
        clip: Largest norm of the gradient over all parameters; 0 turns clipping off.
        patience: Validations without improvement after which training stops; 0 never stops early.
        lr_factor: Factor on all learning rates after a validation without improvement; 1 keeps them.
        monitor: The validation metric that decides on improvement.
        mode: Whether more or less of it is better.
        check_every: Epochs between validations.
        checkpoint_steps: Optimiser steps between checkpoints inside an epoch; 0 for epoch ends only.
        log_every: Batches between logged training metrics.
        progress: Whether to show a progress bar, where standard error is a terminal.
        deterministic: Whether operations without a deterministic form are refused.

    Raises:
        ConfigError: One line for each value out of range.
    """

    epochs: int = 10
    max_steps: int | None = None
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    devices: int = 1
    accumulate: int = 1
    clip: float = 0.0
    patience: int = 2
    lr_factor: float = 1.0
    monitor: str = "valid/auc"
    mode: Literal["max", "min"] = "max"
    check_every: int = 1
    checkpoint_steps: int = 0
    log_every: int = 50
    progress: bool = True
    deterministic: bool = False

    def __post_init__(self) -> None:
        """Check every range."""
        mistakes = [
            f"{name}: must be at least {low}, got {getattr(self, name)}"
            for name, low in [
                ("epochs", 1),
                ("devices", 1),
                ("accumulate", 1),
                ("patience", 0),
                ("check_every", 1),
                ("checkpoint_steps", 0),
                ("log_every", 1),
                ("clip", 0),
            ]
            if getattr(self, name) < low
        ]
        if self.max_steps is not None and self.max_steps < 1:
            mistakes.append(f"max_steps: must be at least 1 or null, got {self.max_steps}")
        if self.clip == math.inf:
            mistakes.append("clip: must be finite, got inf; 0 turns clipping off")
        if not 0 < self.lr_factor <= 1:
            mistakes.append(f"lr_factor: must be above 0 and at most 1, got {self.lr_factor}")
        ConfigError.raise_if(mistakes)


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What came of a training.

    Args:
        best_path: Weights of the best validation, already loaded into the module; the last checkpoint when
            there was no validation.
        last_path: Everything needed to go on training.
        epochs: Epochs that were run, over all resumed parts.
        stopped_early: Whether patience ran out.
        wall_seconds: Seconds spent in training and validation, over all resumed parts.
        samples_per_second: Training samples per second of training, loading included, validation not.
    """

    best_path: Path
    last_path: Path
    epochs: int
    stopped_early: bool
    wall_seconds: float
    samples_per_second: float


def batch_size(batch: Any) -> int:
    """Number of samples in a batch: its length, or that of the first tensor in a tuple, list or mapping.

    Args:
        batch: A tensor, a container of tensors, or an object whose ``len`` is its number of samples.
    """
    if isinstance(batch, dict):
        return batch_size(next(iter(batch.values())))
    if isinstance(batch, (tuple, list)):
        return batch_size(batch[0])
    return len(batch)


def position(trainer: L.Trainer) -> tuple[int, int]:
    """Epochs that are done, and batches of the current epoch that are done, whenever a checkpoint is saved.

    A data module saves this in ``state_dict`` and, after ``load_state_dict``, leaves out the first batches of
    the first epoch it is asked for; its loader's ``len`` stays that of a whole epoch.

    Args:
        trainer: The trainer, as ``datamodule.trainer``.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, _Meter):
            return callback.epochs, callback.batches
    raise RuntimeError("position: the trainer is not one that fit() made")


class _Reseed(Callback):
    """Seeds torch before every batch from the run's seed and the batch's number, for an exact resume."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        number = trainer.fit_loop.total_batch_idx * trainer.world_size + trainer.global_rank
        torch.manual_seed((self._seed * 1_000_003 + number) % 2**63)


class _Meter(Callback):
    """Counts epochs, batches of the epoch, samples and seconds; asks to stop at the last step."""

    def __init__(self, max_steps: int | None) -> None:
        self._max_steps = max_steps
        self.epochs = 0
        self.batches = 0
        self._samples = 0
        self._train_seconds = 0.0
        self._wall_before = 0.0
        self._begun = time.perf_counter()
        self._last: float | None = None

    @property
    def wall_seconds(self) -> float:
        return self._wall_before + time.perf_counter() - self._begun

    @property
    def samples_per_second(self) -> float:
        return self._samples / self._train_seconds if self._train_seconds > 0 else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "epochs": self.epochs,
            "batches": self.batches,
            "samples": self._samples,
            "train_seconds": self._train_seconds,
            "wall_seconds": self.wall_seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = state_dict["epochs"]
        self.batches = state_dict["batches"]
        self._samples = state_dict["samples"]
        self._train_seconds = state_dict["train_seconds"]
        self._wall_before = state_dict["wall_seconds"]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._begun = self._last = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self._train_seconds += now - (now if self._last is None else self._last)
        self._samples += batch_size(batch) * trainer.world_size
        self._last = now
        self.batches += 1
        if self._max_steps is not None and trainer.global_step >= self._max_steps:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.epochs, self.batches = self.epochs + 1, 0


class _Plateau(Callback):
    """Judges every validation: cuts the learning rates, stops when patience runs out."""

    def __init__(self, config: FitConfig) -> None:
        self._config = config
        self.best: float | None = None
        self.waited = 0
        self.improved = False
        self._validated = False

    @property
    def stopped(self) -> bool:
        return 0 < self._config.patience <= self.waited

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
        self.waited = state_dict["waited"]

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.improved = False
        if not self._validated:
            return
        self._validated = False
        value = self._value(trainer)
        if math.isnan(value):
            # No verdict. Until there is one, the latest weights are the best known.
            self.improved = self.best is None
            return
        sign = 1 if self._config.mode == "max" else -1
        self.improved = self.best is None or sign * value > sign * self.best
        if self.improved:
            self.best, self.waited = value, 0
            return
        self.waited += 1
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= self._config.lr_factor
        if self.stopped:
            trainer.should_stop = True

    def _value(self, trainer: L.Trainer) -> float:
        name = self._config.monitor
        metrics = trainer.callback_metrics
        if name not in metrics:
            there = ", ".join(sorted(metrics)) or "nothing"
            raise ConfigError(
                f"monitor: validation did not log '{name}'{suggest(name, metrics)} (logged: {there})"
            )
        return float(trainer.strategy.broadcast(float(metrics[name])))


class _Checkpoints(Checkpoint):
    """Keeps ``last.ckpt`` and ``best.ckpt``; Lightning calls it after every other callback."""

    def __init__(self, folder: Path, every: int, plateau: _Plateau) -> None:
        self.last, self.best = folder / "last.ckpt", folder / "best.ckpt"
        self._every = every
        self._plateau = plateau
        self._seen = self._saved = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._seen = self._saved = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Between two steps, gradients are accumulated that no checkpoint holds.
        stepped = trainer.global_step > self._seen
        self._seen = trainer.global_step
        due = 0 < self._every <= trainer.global_step - self._saved
        if stepped and due and not trainer.is_last_batch and not trainer.should_stop:
            self._save(trainer, self.last)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # The best first: a kill in between repeats this epoch and finds the same best again.
        if self._plateau.improved:
            self._save(trainer, self.best, weights_only=True)
        self._save(trainer, self.last)

    def _save(self, trainer: L.Trainer, path: Path, weights_only: bool = False) -> None:
        temporary = path.with_name(f".{path.name}.tmp")
        trainer.save_checkpoint(temporary, weights_only=weights_only)
        if trainer.is_global_zero:
            os.replace(temporary, path)
        self._saved = trainer.global_step


class _Bar(TQDMProgressBar):
    """One bar for the training batches; validation shows its metrics as a line instead."""

    def init_validation_tqdm(self) -> Tqdm:
        return Tqdm(disable=True)

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        return {
            name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"
        }


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's hints on hardware, loaders and products; its errors stay."""
    names = ("lightning.pytorch", "lightning.fabric")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=PossibleUserWarning)
            # Lightning 2.6 still asks torch for a name that torch is about to drop.
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def load_checkpoint(path: Path, module: torch.nn.Module | None = None) -> dict[str, Any]:
    """Read a checkpoint as plain tensors and values; nothing in the file can run code.

    Args:
        path: ``last.ckpt`` or ``best.ckpt`` of a run.
        module: When given, names and shapes of its weights are compared and the weights are loaded into it.

    Raises:
        DataError: The file is missing, not a checkpoint, or of another model.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        weights = content["state_dict"]
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such checkpoint") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a readable checkpoint; remove it and train again") from error
    if module is not None:
        own = module.state_dict()
        differing = [name for name in own if name not in weights or own[name].shape != weights[name].shape]
        differing += [name for name in weights if name not in own]
        if differing:
            raise DataError(
                f"{path}: the checkpoint is of another model ('{differing[0]}' differs);"
                " remove it or choose another run folder"
            )
        module.load_state_dict(weights)
    return content


def forget_optimizer(run_dir: Path) -> None:
    """Remove what only a run that goes on needs: ``last.ckpt``, where ``best.ckpt`` holds the weights.

    Adam's two moments make it three times as large as the weights. A run without it is trained from the
    start when it is asked for again.

    Args:
        run_dir: Folder of a finished run.
    """
    folder = run_dir / "checkpoints"
    if (folder / "best.ckpt").exists():
        (folder / "last.ckpt").unlink(missing_ok=True)


def _trainer(
    config: FitConfig, run_dir: Path, callbacks: list[Callback], loggers: Sequence[Logger]
) -> L.Trainer:
    try:
        return L.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            precision=config.precision,
            max_epochs=config.epochs,
            accumulate_grad_batches=config.accumulate,
            gradient_clip_val=config.clip or None,
            check_val_every_n_epoch=config.check_every,
            log_every_n_steps=config.log_every,
            deterministic=config.deterministic,
            num_sanity_val_steps=0,
            enable_progress_bar=config.progress,
            enable_model_summary=False,
            enable_checkpointing=True,
            use_distributed_sampler=False,
            default_root_dir=run_dir,
            callbacks=callbacks,
            logger=list(loggers) or False,
        )
    except (MisconfigurationException, ValueError) as error:
        raise ConfigError(f"the trainer refuses this config: {' '.join(str(error).split())}") from error


def fit(
    module: L.LightningModule,
    datamodule: L.LightningDataModule,
    *,
    config: FitConfig,
    run_dir: Path,
    seed: int,
    loggers: Sequence[Logger] = (),
    resume: bool = True,
    callbacks: Sequence[Callback] = (),
) -> FitResult:
    """Train a module; the best weights are loaded into it at the end.

    A run that was stopped at any moment and is called again with the same arguments ends with the very
    weights of a run that was not, as far as the operations are deterministic: torch is seeded before every
    batch from ``seed`` and the batch's number, and the data module keeps its own place (see
    :func:`position`). A run that is already complete is not trained again.

    Args:
        module: Logs its validation metrics, such as ``valid/auc``, when a validation ends; NaN where a
            metric has no value, which counts neither for nor against the epoch.
        datamodule: Gives batches whose length is their number of samples; saves its place in ``state_dict``.
        config: How to train.
        run_dir: The run folder; ``checkpoints/last.ckpt`` and ``checkpoints/best.ckpt`` go there.
        seed: Seed of the run.
        loggers: From :func:`common.training.tracking.loggers`.
        resume: Whether to go on from ``last.ckpt``; False starts again and removes what was there.
        callbacks: Further Lightning callbacks; called before the checkpoint is written.

    Raises:
        ConfigError: The trainer refuses the config, or the monitored metric was not logged.
        DataError: The checkpoint to resume from is of another model or not readable.
        KeyboardInterrupt: The user stopped the run; the last checkpoint stays.
    """
    folder = run_dir / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    meter, plateau = _Meter(config.max_steps), _Plateau(config)
    checkpoints = _Checkpoints(folder, config.checkpoint_steps, plateau)
    last, best = checkpoints.last, checkpoints.best
    if not resume:
        last.unlink(missing_ok=True)
        best.unlink(missing_ok=True)
        for logger in loggers:
            if isinstance(logger, MetricsFile):
                logger.clear()
    resuming = last.exists()
    complete = False
    if resuming:
        content = load_checkpoint(last, module)
        meter.load_state_dict(content["callbacks"][meter.state_key])
        plateau.load_state_dict(content["callbacks"][plateau.state_key])
        enough_steps = config.max_steps is not None and content["global_step"] >= config.max_steps
        complete = meter.epochs >= config.epochs or plateau.stopped or enough_steps
        wall_seconds = content["callbacks"][meter.state_key]["wall_seconds"]
        del content
    if not complete:
        own: list[Callback] = [_Reseed(seed), meter, plateau, checkpoints]
        bar: list[Callback] = [_Bar(leave=False)] if config.progress and sys.stderr.isatty() else []
        with _quiet():
            trainer = _trainer(config, run_dir, [*own, *bar, *callbacks], loggers)
            L.seed_everything(seed, verbose=False)
            handler = signal.getsignal(signal.SIGINT)
            try:
                trainer.fit(
                    module, datamodule=datamodule, ckpt_path=last if resuming else None, weights_only=True
                )
            except SystemExit:
                if trainer.interrupted:
                    signal.signal(signal.SIGINT, handler)
                    raise KeyboardInterrupt from None
                raise
        wall_seconds = meter.wall_seconds
    best_path = best if best.exists() else last
    load_checkpoint(best_path, module)
    return FitResult(
        best_path=best_path,
        last_path=last,
        epochs=meter.epochs,
        stopped_early=plateau.stopped,
        wall_seconds=wall_seconds,
        samples_per_second=meter.samples_per_second,
    )
