"""Training on Lightning, set up once for both methods: precision, resume, checkpoints, throughput."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from common.cli import report
from common.errors import ConfigError, DataError
from common.training.callbacks import Divergence, Meter, Plateau, Reseed, Signals
from common.training.checkpoint import RESUMABLE, Checkpoints, best_checkpoint, checkpoints, load_checkpoint
from common.training.config import FitConfig
from common.training.step_log import Panel, StepLog
from common.training.tracking import Shown, begin_at


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


def position(trainer: L.Trainer) -> tuple[int, int]:
    """Epochs that are done, and batches of the current epoch that are done, whenever a checkpoint is saved.

    A data module saves this in ``state_dict`` and, after ``load_state_dict``, leaves out the first batches of
    the first epoch it is asked for; its loader's ``len`` stays that of a whole epoch.

    Args:
        trainer: The trainer, as ``datamodule.trainer``.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Meter):
            return callback.epochs, callback.batches
    raise RuntimeError("position: the trainer is not one that fit() made")


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
            check_val_every_n_epoch=None if config.check_steps else config.check_every,
            val_check_interval=config.check_steps * config.accumulate or None,
            log_every_n_steps=0,
            deterministic=config.deterministic,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=True,
            use_distributed_sampler=False,
            default_root_dir=run_dir,
            callbacks=callbacks,
            logger=list(loggers) or False,
        )
    except (MisconfigurationException, ValueError) as error:
        raise ConfigError(f"the trainer refuses this config: {' '.join(str(error).split())}") from error


def _restore(content: dict[str, Any], path: Path, *callbacks: Callback) -> None:
    """Give callbacks the state that they have in a checkpoint."""
    for callback in callbacks:
        try:
            callback.load_state_dict(content["callbacks"][callback.state_key])
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: not a readable checkpoint; remove it and train again") from error


def fit(
    module: L.LightningModule,
    datamodule: L.LightningDataModule,
    *,
    config: FitConfig,
    run_dir: Path,
    seed: int,
    loggers: Sequence[Logger] = (),
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
        callbacks: Further Lightning callbacks; called before the checkpoint is written.

    Raises:
        ConfigError: The trainer refuses the config, or the monitored metric was not logged.
        DataError: The checkpoint to resume from is of another model or not readable.
        DivergedError: The loss or the weights are not finite; the last good checkpoint stays.
        Interrupted: A signal stopped the run; a checkpoint of the step that was under way is saved.
    """
    checkpoints(run_dir).mkdir(parents=True, exist_ok=True)
    meter = Meter(config.max_steps)
    plateau = Plateau(
        config.monitor, patience=config.patience, lr_factor=config.lr_factor, report=report,
        by_steps=config.check_steps > 0,
    )  # fmt: skip
    signals = Signals()
    divergence = Divergence(config.log_every, lambda: _kept(run_dir))
    saving = Checkpoints(
        run_dir,
        steps=config.checkpoint_steps,
        minutes=config.checkpoint_minutes,
        validations=config.check_steps * config.accumulate,
        plateau=plateau,
        divergence=divergence,
        signals=signals,
    )
    resuming = saving.last.exists()
    complete, step = False, 0
    if resuming:
        content = load_checkpoint(saving.last, module, RESUMABLE)
        _restore(content, saving.last, meter, plateau)
        step = int(content["global_step"])
        if meter.epochs > config.epochs:
            done = f"{run_dir} has {meter.epochs} epochs behind it"
            raise ConfigError(f"fit.epochs: {done}, got {config.epochs}; give another name")
        enough_steps = config.max_steps is not None and step >= config.max_steps
        complete = meter.epochs >= config.epochs or plateau.stopped or enough_steps
        wall_seconds = content["callbacks"][meter.state_key]["wall_seconds"]
        del content
    begin_at(loggers, step)
    if not complete:
        own: list[Callback] = [
            Reseed(seed),
            meter,
            StepLog(config.log_every, meter, config.max_steps),
            divergence,
            plateau,
            saving,
        ]
        panels: list[Callback] = [
            Panel(logger, meter=meter, plateau=plateau, max_steps=config.max_steps, monitor=config.monitor)
            for logger in loggers
            if isinstance(logger, Shown)
        ]
        with _quiet(), signals:
            trainer = _trainer(config, run_dir, [*own, *panels, *callbacks], loggers)
            L.seed_everything(seed, verbose=False)
            trainer.fit(
                module,
                datamodule=datamodule,
                ckpt_path=saving.last if resuming else None,
                weights_only=True,
            )
        wall_seconds = meter.wall_seconds
    best = best_checkpoint(run_dir)
    load_checkpoint(best, module)
    return FitResult(
        best_path=best,
        last_path=saving.last,
        epochs=meter.epochs,
        stopped_early=plateau.stopped,
        wall_seconds=wall_seconds,
        samples_per_second=meter.samples_per_second,
    )


def _kept(run_dir: Path) -> str:
    """Which checkpoint a diverged run leaves."""
    last = checkpoints(run_dir) / "last.ckpt"
    if not last.exists():
        return "no checkpoint was written before"
    step = load_checkpoint(last).get("global_step")
    return f"{last}, of step {step}, is kept; a new start needs another name or the folder removed"
