"""Checkpoints: when they are written, and reading them without trusting them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint

from common.errors import DataError, Interrupted
from common.files import atomic_path
from common.training.callbacks import Divergence, Plateau, Signals

LAST, BEST = "last.ckpt", "best.ckpt"

RESUMABLE = ("state_dict", "callbacks", "loops", "optimizer_states", "lr_schedulers", "epoch", "global_step")
"""What a checkpoint must hold for a training to go on from it."""


def checkpoints(run_dir: Path) -> Path:
    """The folder of a run's checkpoints.

    Args:
        run_dir: The run folder.
    """
    return run_dir / "checkpoints"


def best_checkpoint(run_dir: Path) -> Path:
    """The checkpoint with a run's best weights: that of the best validation, the last one without any.

    Args:
        run_dir: The run folder.
    """
    best = checkpoints(run_dir) / BEST
    return best if best.exists() else best.with_name(LAST)


def load_checkpoint(
    path: Path, module: torch.nn.Module | None = None, needed: Sequence[str] = ("state_dict",)
) -> dict[str, Any]:
    """Read a checkpoint as plain tensors and values; nothing in the file can run code.

    Args:
        path: ``last.ckpt`` or ``best.ckpt`` of a run.
        module: When given, names and shapes of its weights are compared and the weights are loaded into it.
        needed: Parts that it must hold.

    Raises:
        DataError: The file is missing, not a checkpoint, or of another model.
    """
    advice = "remove it and train again"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such checkpoint") from None
    except Exception as error:  # broken bytes raise anything: IndexError, struct.error, OSError, ...
        raise DataError(f"{path}: not a readable checkpoint; {advice}") from error
    missing = [name for name in needed if not isinstance(content, dict) or name not in content]
    if missing or not isinstance(content["state_dict"], dict):
        lacks = f" (it lacks {', '.join(missing)})" if missing else ""
        raise DataError(f"{path}: not a readable checkpoint{lacks}; {advice}")
    weights = content["state_dict"]
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
    return dict(content)


def forget_optimizer(run_dir: Path) -> None:
    """Remove what only a run that goes on needs: ``last.ckpt``, where ``best.ckpt`` holds the weights.

    Adam's two moments make it three times as large as the weights. A run without it cannot be trained
    further.

    Args:
        run_dir: Folder of a finished run.
    """
    folder = checkpoints(run_dir)
    if (folder / BEST).exists():
        (folder / LAST).unlink(missing_ok=True)


class Checkpoints(Checkpoint):
    """Keeps ``last.ckpt`` and ``best.ckpt``; Lightning calls it after every other callback.

    Inside an epoch ``last.ckpt`` is written after so many steps or minutes, and where a signal came. It is
    always written behind an optimiser step: between two steps gradients are accumulated that no checkpoint
    holds.

    Args:
        run_dir: The run folder.
        steps: Optimiser steps between two checkpoints inside an epoch; 0 for none by steps.
        minutes: Minutes between them; 0 for none by time.
        validations: Batches between two validations inside epochs; 0 where they follow epochs.
        plateau: Knows whether a validation was the best.
        divergence: Refuses to save weights that are not finite.
        signals: Knows whether a signal came.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        steps: int,
        minutes: float,
        validations: int = 0,
        plateau: Plateau,
        divergence: Divergence,
        signals: Signals,
    ) -> None:
        self.last, self.best = checkpoints(run_dir) / LAST, checkpoints(run_dir) / BEST
        self._steps, self._seconds, self._validations = steps, 60 * minutes, validations
        self._plateau, self._divergence, self._signals = plateau, divergence, signals
        self._seen = self._saved = 0
        self._stepped = False
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Count from here."""
        self._seen = self._saved = trainer.global_step
        self._saved_at = time.monotonic()
        self._signals.catch()  # Lightning has put handlers of its own in place since fit() began

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save inside the epoch where it is time, or where a signal came."""
        self._stepped = trainer.global_step > self._seen
        self._seen = trainer.global_step
        if not self._stepped or trainer.is_last_batch or trainer.should_stop:
            return  # the end of the epoch saves
        if self._validations and (trainer.fit_loop.total_batch_idx + 1) % self._validations == 0:
            return  # the end of the validation saves
        stop = self._agreed(trainer, self._signals.signum is not None)
        waited = time.monotonic() - self._saved_at
        due = 0 < self._steps <= trainer.global_step - self._saved
        if stop or due or self._agreed(trainer, 0 < self._seconds <= waited):
            self._save(trainer, module, self.last)
        if stop:
            self._interrupt(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Save the best weights, then the last: a kill in between repeats this epoch, with the same best."""
        if self._plateau.improved:
            self._save(trainer, module, self.best, weights_only=True)
        self._save(trainer, module, self.last)
        if self._agreed(trainer, self._signals.signum is not None):
            self._interrupt(trainer)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """The same where validations stand inside epochs: a kill before repeats the steps since the last."""
        if not self._validations:
            return
        if self._plateau.improved:
            self._save(trainer, module, self.best, weights_only=True)
        if self._stepped and not trainer.is_last_batch and not trainer.should_stop:
            self._save(trainer, module, self.last)
            if self._agreed(trainer, self._signals.signum is not None):
                self._interrupt(trainer)

    @staticmethod
    def _agreed(trainer: L.Trainer, wanted: bool) -> bool:
        """Whether any process wants something; all processes hear the same."""
        if trainer.world_size == 1:
            return wanted
        return trainer.strategy.reduce_boolean_decision(wanted, all=False)

    def _interrupt(self, trainer: L.Trainer) -> None:
        raise Interrupted(
            self._signals.signum or 2,
            f"step {trainer.global_step} is saved; run the same command again to go on from there",
        )

    def _save(
        self, trainer: L.Trainer, module: L.LightningModule, path: Path, weights_only: bool = False
    ) -> None:
        self._divergence.check(trainer, module)
        for logger in trainer.loggers:
            logger.save()
        if trainer.is_global_zero:
            with atomic_path(path, durable=True) as temporary:
                trainer.save_checkpoint(temporary, weights_only=weights_only)
        else:
            trainer.save_checkpoint(path, weights_only=weights_only)  # takes part; only rank zero writes
        self._saved, self._saved_at = trainer.global_step, time.monotonic()
