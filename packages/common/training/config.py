"""Settings of training that both methods share. Nothing here imports Lightning: it takes seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Protocol, runtime_checkable

from annotated_types import Ge, Gt, Le

from common.errors import ConfigError
from common.metrics.direction import direction

WandbMode = Literal["auto", "offline", "online", "disabled"]

RENAMED = {
    "fit.mode": "gone: the metric that fit.monitor names decides whether more or less of it is better",
}
"""What became of settings of ``fit`` and ``tracking``, by the dotted key that they had before."""


@dataclass(kw_only=True)
class FitConfig:
    """How a module is trained.

    Args:
        epochs: Most passes over the training rows.
        max_steps: Most optimiser steps; null for no limit.
        precision: Arithmetic of the forward and backward pass.
        accelerator: Kind of device; ``auto`` takes a GPU when there is one.
        devices: Number of devices.
        accumulate: Batches whose mean gradient makes one optimiser step.
        clip: Largest norm of the gradient over all parameters; 0 turns clipping off.
        patience: Validations without improvement after which training stops; 0 never stops early.
        lr_factor: Factor on all learning rates after a validation without improvement; 1 keeps them.
        monitor: The metric that decides on improvement; its name says whether more or less is better.
        check_every: Epochs between validations.
        check_steps: Optimiser steps between validations, in place of epochs; 0 validates after epochs. What
            is trained behind the last one is not judged.
        checkpoint_steps: Optimiser steps between checkpoints inside an epoch; 0 for none by steps.
        checkpoint_minutes: Minutes between checkpoints inside an epoch; 0 for none by time.
        log_every: Optimiser steps between logged training metrics; the first and the last of an epoch always
            are.
        progress: Whether to show how far it is: a panel on a terminal, elsewhere lines.
        deterministic: Whether operations without a deterministic form are refused.

    Raises:
        ConfigError: The monitored metric has no known direction, ``clip`` is infinite, or validations are
            asked for both by epochs and by steps.
    """

    epochs: Annotated[int, Ge(1)] = 10
    max_steps: Annotated[int, Ge(1)] | None = None
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    devices: Annotated[int, Ge(1)] = 1
    accumulate: Annotated[int, Ge(1)] = 1
    clip: Annotated[float, Ge(0)] = 0.0
    patience: Annotated[int, Ge(0)] = 2
    lr_factor: Annotated[float, Gt(0), Le(1)] = 1.0
    monitor: str = "valid/auc"
    check_every: Annotated[int, Ge(1)] = 1
    check_steps: Annotated[int, Ge(0)] = 0
    checkpoint_steps: Annotated[int, Ge(0)] = 0
    checkpoint_minutes: Annotated[float, Ge(0)] = 5.0
    log_every: Annotated[int, Ge(1)] = 50
    progress: bool = True
    deterministic: bool = False

    def __post_init__(self) -> None:
        """Refuse what no single range refuses."""
        if self.clip == math.inf:
            raise ConfigError("clip: must be finite, got inf; 0 turns clipping off")
        if self.check_steps and self.check_every != 1:
            raise ConfigError(
                f"check_steps: validates by steps, and check_every={self.check_every} by epochs; "
                "set one of them"
            )
        direction(self.monitor)


@dataclass(kw_only=True)
class TrackingConfig:
    """Where the metrics of a run go besides its folder.

    Args:
        wandb: W&B ``offline`` (files in the run folder), ``online``, ``disabled``, or ``auto``: online where
            WANDB_API_KEY is set, else offline.
        project: W&B project; null takes the name of the method.
        entity: W&B user or team that the project belongs to; null takes the one that the key is of.
        group: W&B group; the runs of a study take its name.
        job_type: W&B job type.
        tags: W&B tags beside those that every run has: what it trains, and its seed.
        upload: Whether models and data are sent, too; else W&B keeps where they lie and their checksums.
    """

    wandb: WandbMode = "auto"
    project: str | None = None
    entity: str | None = None
    group: str | None = None
    job_type: str = "train"
    tags: list[str] = field(default_factory=list)
    upload: bool = False


@runtime_checkable
class RunSettings(Protocol):
    """What every method's settings have, and the lifecycle of a run reads."""

    @property
    def out(self) -> Path:
        """Folder in which the run folder is made."""
        ...

    @property
    def name(self) -> str | None:
        """Name of the run folder."""
        ...

    @property
    def seed(self) -> int:
        """Seed of the run."""
        ...

    @property
    def fit(self) -> FitConfig:
        """How the module is trained."""
        ...

    @property
    def tracking(self) -> TrackingConfig:
        """Where metrics go besides the run folder."""
        ...


def mistakes(config: RunSettings) -> list[str]:
    """What is wrong with the settings that every method has; empty where nothing is.

    Args:
        config: A method's settings.
    """
    wrong = []
    if not 0 <= config.seed < 2**32:
        wrong.append(f"seed: must be from 0 to {2**32 - 1}, got {config.seed}")
    parts = set() if config.name is None else set(config.name.split("/"))
    if parts & {"", ".", ".."}:
        wrong.append(f"name: must be the name of a new folder, got '{config.name}'")
    return wrong
