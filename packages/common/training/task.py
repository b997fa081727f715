"""What a method gives the lifecycle of a run: its task, and what comes of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from common.training.config import RunSettings

if TYPE_CHECKING:  # Lightning takes seconds to import, and a finished run is shown without it
    import lightning as L

ArtifactType = Literal["dataset", "mined", "generated", "training-set", "model"]
"""What W&B's lineage is made of: data, sets of negatives, what is trained on, what comes out."""


@dataclass(frozen=True)
class Artifact:
    """Files that a run read or made, as a tracker keeps them: where they lie, and their checksums.

    Args:
        name: Its name; versions of it are told apart by content.
        type: What it is.
        paths: Files, or folders of which every file counts.
        made: Whether the run made it; else it read it.
        facts: What else is known of it: a fingerprint, a number of queries.
    """

    name: str
    type: ArtifactType
    paths: tuple[Path, ...]
    made: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """What is trained.

    Args:
        module: The Lightning module, its weights drawn.
        data: The data module.
        parameters: Trainable parameters.
    """

    module: L.LightningModule
    data: L.LightningDataModule
    parameters: int


@dataclass
class Measured:
    """What an evaluation found.

    Args:
        metrics: Every metric; None where it has no value.
        reasons: Why a metric has no value, by its name.
        notes: Anything else worth keeping, as JSON values.
        figures: What stands in files of its own in the run folder, by the name that trackers keep it under.
        histograms: The same for counts: those of the bins, and the ends of the bins, one more.
    """

    metrics: dict[str, float | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, tuple[Sequence[int], Sequence[float]]] = field(default_factory=dict)


class Task(ABC):
    """A training of one method, as the lifecycle sees it.

    A task opens nothing before :meth:`build` is called; the lifecycle asks for :meth:`inputs` first, and
    where the run is finished for nothing else.
    """

    method: str
    """Name of the method: its command, and its W&B project."""

    samples: str = "samples"
    """What a batch has."""

    display: tuple[str, ...] = ()
    """Settings of the method that decide no result, by dotted key, beside those that all methods have."""

    extendable: tuple[str, ...] = ()
    """Settings that a run may be gone on with in another form; they are no part of its identity."""

    @property
    @abstractmethod
    def config(self) -> RunSettings:
        """The settings."""

    @abstractmethod
    def inputs(self) -> dict[str, str]:
        """Fingerprint of the content of everything that the run reads, by the dotted key that names it.

        Must not take much longer than reading the files once.

        Raises:
            DataError: Something is missing.
        """

    @abstractmethod
    def label(self) -> str:
        """The readable part of the name of a run that the settings do not name."""

    @abstractmethod
    def build(self, run_dir: Path) -> Training:
        """Open the data and make the module, its weights drawn from the seed.

        Args:
            run_dir: The run folder.
        """

    @abstractmethod
    def evaluate(self, run_dir: Path) -> Measured:
        """Measure the trained module that :meth:`build` made, and leave what belongs to it in the run folder.

        Args:
            run_dir: The run folder.
        """

    def tags(self) -> list[str]:
        """What a tracker finds the run by; by default its label."""
        return [self.label()]

    def artifacts(self, run_dir: Path) -> list[Artifact]:
        """What the run read and what it left, for a tracker's lineage; by default nothing.

        Args:
            run_dir: The run folder of the finished run.
        """
        return []

    def advice(self) -> str:
        """What to do where memory does not suffice."""
        return "lower train.batch_size"
