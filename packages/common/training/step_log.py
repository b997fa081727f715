"""What is logged and shown of the steps of a training."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from common.machine import peak_memory
from common.training.callbacks import Meter, Plateau
from common.training.tracking import Shown

GRADIENT_NORM = "train/gradient_norm"
THROUGHPUT, MEMORY, GPU_MEMORY = "system/samples_per_second", "system/memory_bytes", "system/gpu_memory_bytes"
"""Metrics that every training logs beside its own."""


class StepLog(Callback):
    """Hands training metrics to the loggers, always at the first and the last step of an epoch.

    Lightning does so behind the callbacks of a step, where a kill between checkpoint and row would lose the
    row. Beside what the module logs there are the norm of the gradient before it is clipped, the throughput
    so far and the peak of memory.

    Args:
        every: Optimiser steps between two rows.
        meter: Knows the batches of the epoch.
        max_steps: The last step of the training; None for no limit.
    """

    def __init__(self, every: int, meter: Meter, max_steps: int | None = None) -> None:
        self._every, self._meter, self._max_steps = every, meter, max_steps
        self._seen = 0
        self._norm: Tensor | None = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Count from here."""
        self._seen = trainer.global_step

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Forget the metrics of the epoch before."""
        trainer.logged_metrics.clear()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Forget those of a validation inside an epoch, too: its row is written."""
        if not trainer.is_last_batch:
            trainer.logged_metrics.clear()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Measure the gradient of a step that will be logged."""
        step = trainer.global_step + 1
        first = self._meter.batches < trainer.accumulate_grad_batches
        edge = first or trainer.is_last_batch or step == self._max_steps
        self._norm = gradient_norm(module) if edge or step % self._every == 0 else None

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, where it is time."""
        step, stepped = trainer.global_step, trainer.global_step > self._seen
        self._seen = step
        first = self._meter.batches <= trainer.accumulate_grad_batches
        edge = first or trainer.is_last_batch or trainer.should_stop
        if not stepped or not (edge or step % self._every == 0):
            return
        metrics = {name: float(value) for name, value in trainer.logged_metrics.items()}
        if not metrics:
            return
        if self._norm is not None:
            metrics[GRADIENT_NORM] = float(self._norm)
        metrics |= {THROUGHPUT: self._meter.samples_per_second, MEMORY: float(peak_memory())}
        if torch.cuda.is_available():
            metrics[GPU_MEMORY] = float(torch.cuda.max_memory_allocated())
        for logger in trainer.loggers:
            logger.log_metrics({**metrics, "epoch": trainer.current_epoch}, step=step - 1)


def gradient_norm(module: L.LightningModule) -> Tensor:
    """L2 norm of the gradient over all parameters, row-sparse ones included; the gradients stay as they are.

    Args:
        module: What is trained.
    """
    found = [p.grad.detach() for p in module.parameters() if p.grad is not None]
    values = [grad.coalesce().values() if grad.is_sparse else grad for grad in found]
    norms = [torch.linalg.vector_norm(v.float()) for v in values if v.numel()]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


class Panel(Callback):
    """Tells the panel of a run how far it is; called behind the other callbacks.

    Args:
        shown: The panel's logger.
        meter: Knows the throughput.
        plateau: Knows the best of the monitored metric.
        max_steps: Most optimiser steps; None for no limit.
        monitor: The monitored metric.
    """

    def __init__(
        self, shown: Shown, *, meter: Meter, plateau: Plateau, max_steps: int | None, monitor: str
    ) -> None:
        self._shown, self._progress, self._samples = shown, shown.progress, shown.samples
        self._meter, self._plateau = meter, plateau
        self._max_steps, self._monitor = max_steps, monitor

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Begin the stage."""
        per_epoch = math.ceil(float(trainer.num_training_batches) / trainer.accumulate_grad_batches)
        steps = per_epoch * (trainer.max_epochs or 1)
        total = steps if self._max_steps is None else min(steps, self._max_steps)
        self._progress.stage("train", total=total, unit="steps", done=trainer.global_step)
        self._best()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count."""
        self._progress.show({f"{self._samples}/s": f"{self._meter.samples_per_second:,.0f}"})
        self._best()
        self._progress.at(trainer.global_step, line=self._shown.seen)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Show the best."""
        self._best()

    def _best(self) -> None:
        if self._plateau.best is not None:
            self._progress.show({f"best {self._monitor}": f"{self._plateau.best:.4f}"})
