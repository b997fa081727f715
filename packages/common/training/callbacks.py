"""What happens around each step of a training: seeds, counts, verdicts, signals."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from common.errors import ConfigError, DivergedError, Interrupted, suggest
from common.metrics.direction import direction


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


class Signals:
    """Notes Ctrl-C and SIGTERM, so that a training stops at its next safe point.

    The second signal stops it at once.

    A signal that this process ignores stays ignored, and outside the main thread nothing is caught.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        """Catch from here on."""
        if threading.current_thread() is threading.main_thread():
            handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
            self._before = {s: handler for s, handler in handlers.items() if handler is not signal.SIG_IGN}
        self.catch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the handlers back that were there before."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def catch(self) -> None:
        """Put the handlers in place, also where another library has put its own since."""
        for signum in self._before:
            signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise Interrupted(
                signum, "stopped at once; the run goes on from its last checkpoint, if it has one"
            )
        self.signum = signum


class Reseed(Callback):
    """Seeds torch before every batch from the run's seed and the batch's number, for an exact resume."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Seed."""
        number = trainer.fit_loop.total_batch_idx * trainer.world_size + trainer.global_rank
        torch.manual_seed((self._seed * 1_000_003 + number) % 2**63)


class Meter(Callback):
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
        """Seconds of training and validation, over all resumed parts."""
        return self._wall_before + time.perf_counter() - self._begun

    @property
    def samples_per_second(self) -> float:
        """Training samples per second of training."""
        return self._samples / self._train_seconds if self._train_seconds > 0 else 0.0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on counting from."""
        return {
            "epochs": self.epochs,
            "batches": self.batches,
            "samples": self._samples,
            "train_seconds": self._train_seconds,
            "wall_seconds": self.wall_seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.epochs = state_dict["epochs"]
        self.batches = state_dict["batches"]
        self._samples = state_dict["samples"]
        self._train_seconds = state_dict["train_seconds"]
        self._wall_before = state_dict["wall_seconds"]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Start the clocks."""
        self._begun = self._last = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Leave out what validation took."""
        self._last = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Leave out what a validation inside an epoch took."""
        self._last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch."""
        now = time.perf_counter()
        self._train_seconds += now - (now if self._last is None else self._last)
        self._samples += batch_size(batch) * trainer.world_size
        self._last = now
        self.batches += 1
        if self._max_steps is not None and trainer.global_step >= self._max_steps:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Count an epoch."""
        self.epochs, self.batches = self.epochs + 1, 0


class Divergence(Callback):
    """Stops a training whose loss or weights are not finite, before a checkpoint holds such weights.

    On a GPU the step is noted there and looked up where metrics or a checkpoint are written anyway, so that
    no step waits for it.

    Args:
        every: Optimiser steps between two looks.
        kept: Says which checkpoint is kept.
    """

    def __init__(self, every: int, kept: Callable[[], str]) -> None:
        self._every, self._kept = every, kept
        self._since: Tensor | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss of a batch."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor):
            return
        loss = loss.detach()
        if self._since is None:
            self._since = torch.zeros((), dtype=torch.long, device=loss.device)
        fresh = ~torch.isfinite(loss) & (self._since == 0)
        self._since = torch.where(fresh, max(trainer.global_step, 1), self._since)
        if loss.device.type == "cpu" or trainer.global_step % self._every == 0:
            self._check_loss()

    def _check_loss(self) -> None:
        step = 0 if self._since is None else int(self._since)
        if step:
            self._fail(f"the loss is not finite from step {step} on")

    def check(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Refuse to go on where the loss was, or a weight is, not finite.

        Args:
            trainer: The trainer.
            module: What is trained.

        Raises:
            DivergedError: Something is not finite.
        """
        self._check_loss()
        for name, weight in module.named_parameters():
            if not bool(torch.isfinite(weight).all()):
                self._fail(f"the weights '{name}' are not finite at step {trainer.global_step}")

    def _fail(self, what: str) -> None:
        raise DivergedError(
            f"training diverged: {what}; lower train.learning_rate or set fit.clip ({self._kept()})"
        )


class Plateau(Callback):
    """Judges every validation: keeps the best, cuts the learning rates, stops when patience runs out.

    Args:
        monitor: The metric; its name says whether more or less is better.
        patience: Validations without improvement after which training stops; 0 never stops it.
        lr_factor: Factor on the learning rates after a validation without improvement.
        report: Called with one line where the metric has no value.
        by_steps: Whether every validation is judged when it ends; else when its epoch ends.
    """

    def __init__(
        self,
        monitor: str,
        *,
        patience: int,
        lr_factor: float,
        report: Callable[[str], None],
        by_steps: bool = False,
    ) -> None:
        self._monitor, self._patience, self._lr_factor = monitor, patience, lr_factor
        self._sign = 1 if direction(monitor) == "max" else -1
        self._report, self._by_steps = report, by_steps
        self.best: float | None = None
        self.waited = 0
        self.improved = False
        self._validated = False
        self._reported = False

    @property
    def stopped(self) -> bool:
        """Whether patience ran out."""
        return 0 < self._patience <= self.waited

    def state_dict(self) -> dict[str, Any]:
        """The best value, and validations since."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.best = state_dict["best"]
        self.waited = state_dict["waited"]

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Note that there is something to judge, or judge it."""
        if self._by_steps:
            self._judge(trainer)
        else:
            self._validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Judge."""
        self.improved = False
        if self._validated:
            self._validated = False
            self._judge(trainer)

    def _judge(self, trainer: L.Trainer) -> None:
        value = self._value(trainer)
        if math.isnan(value):
            # No verdict. Until there is one, the latest weights are the best known.
            self.improved = self.best is None
            self._report_undefined()
            return
        self.improved = self.best is None or self._sign * value > self._sign * self.best
        if self.improved:
            self.best, self.waited = value, 0
            return
        self.waited += 1
        self._cut_rates(trainer)
        if self.stopped:
            trainer.should_stop = True

    def _report_undefined(self) -> None:
        if not self._reported:
            self._reported = True
            self._report(
                f"{self._monitor} has no value on these validation rows (one class only?); "
                "it neither picks the best weights nor stops the training"
            )

    def _cut_rates(self, trainer: L.Trainer) -> None:
        """Multiply the rates of now, and those that a schedule multiplies."""
        if self._lr_factor == 1:
            return
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= self._lr_factor
        for scheduled in trainer.lr_scheduler_configs:
            base = scheduled.scheduler.base_lrs
            scheduled.scheduler.base_lrs = [rate * self._lr_factor for rate in base]

    def _value(self, trainer: L.Trainer) -> float:
        name, metrics = self._monitor, trainer.callback_metrics
        if name not in metrics:
            there = ", ".join(sorted(metrics)) or "nothing"
            raise ConfigError(
                f"monitor: validation did not log '{name}'{suggest(name, metrics)} (logged: {there})"
            )
        return float(trainer.strategy.broadcast(float(metrics[name])))
