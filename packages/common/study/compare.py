"""The arms of a study against each other: paired differences with intervals, tests corrected after Holm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from common.errors import DataError
from common.stats.bootstrap import Difference, paired_difference
from common.stats.crossed import crossed_difference
from common.stats.multiple import holm
from common.stats.spread import Spread, spread
from common.study.collect import Measure, Run

Vector = Float[np.ndarray, " resamples_plus_one"]

INTERVALS: dict[str, Callable[[Sequence[Vector], Sequence[Vector]], Difference | None]] = {
    "units": paired_difference,
    "crossed": crossed_difference,
}
"""What an interval may speak about: new users (queries) alone, or crossed with new seeds."""


class Resampler(ABC):
    """Measures runs on the test rows and on the same resamples of them, so that any two can be compared."""

    resamples: int
    """Number of resamples."""

    @abstractmethod
    def __call__(self, run: Run, measure: Measure) -> Vector | None:
        """A metric on the rows as they are, then on every resample; None where it was not measured."""


class Contrast(NamedTuple):
    """A difference between two arms.

    Args:
        measure: What is compared.
        backbone: Of which backbone.
        arm: Which arm ...
        reference: ... minus which other arm.
    """

    measure: Measure
    backbone: str
    arm: str
    reference: str


@dataclass(frozen=True)
class Tested:
    """A difference and its p, corrected within the family that it was tested in."""

    difference: Difference
    p: float

    @property
    def significant(self) -> bool:
        """Whether the corrected p is below .05."""
        return self.p < 0.05


class Comparison:
    """Compares the arms of finished runs, seed by seed.

    Args:
        runs: Finished runs of one tag; no two of the same backbone, arm and seed.
        resampler: Measures them.
        intervals: What intervals speak about, a key of :data:`INTERVALS`.

    Raises:
        DataError: There is no run.
    """

    def __init__(self, runs: Sequence[Run], resampler: Resampler, *, intervals: str = "units") -> None:
        if not runs:
            raise DataError("no run of the study has finished, so there is nothing to compare")
        self.runs, self.resampler = list(runs), resampler
        self._difference = INTERVALS[intervals]

    @property
    def backbones(self) -> list[str]:
        """Backbones in the order of the plan."""
        return list(dict.fromkeys(run.spec.backbone for run in self.runs))

    def arms(self, backbone: str) -> list[str]:
        """Arms of a backbone in the order of the plan."""
        return list(dict.fromkeys(run.spec.arm for run in self.runs if run.spec.backbone == backbone))

    def of(self, backbone: str, arm: str) -> list[Run]:
        """The runs of an arm, one per seed."""
        return [run for run in self.runs if (run.spec.backbone, run.spec.arm) == (backbone, arm)]

    def _seeds(self, measure: Measure, backbone: str, arm: str) -> dict[int, Vector]:
        found = ((run.spec.seed, self.resampler(run, measure)) for run in self.of(backbone, arm))
        return {seed: vector for seed, vector in found if vector is not None}

    def spread(self, measure: Measure, backbone: str, arm: str) -> Spread | None:
        """Mean and standard deviation of a metric over seeds; None where it is not defined."""
        values = [float(vector[0]) for vector in self._seeds(measure, backbone, arm).values()]
        return spread(values) if values and np.isfinite(values).all() else None

    def level(self, measure: Measure, backbone: str, arm: str) -> Difference | None:
        """A metric of one arm with its interval over users or queries; None where it is not defined."""
        vectors = list(self._seeds(measure, backbone, arm).values())
        return paired_difference(vectors, [np.zeros_like(vector) for vector in vectors]) if vectors else None

    def difference(self, test: Contrast) -> Difference | None:
        """Arm minus reference, over the seeds that both have; None where it is not defined."""
        treated = self._seeds(test.measure, test.backbone, test.arm)
        reference = self._seeds(test.measure, test.backbone, test.reference)
        both = [seed for seed in treated if seed in reference]
        if not both:
            return None
        return self._difference([treated[seed] for seed in both], [reference[seed] for seed in both])

    def family(self, tests: Sequence[Contrast]) -> dict[Contrast, Tested]:
        """Differences that are tested together, their p corrected after Holm.

        Args:
            tests: What is tested.

        Returns:
            The tests whose difference is defined.
        """
        found = {test: difference for test in tests if (difference := self.difference(test)) is not None}
        corrected = holm([difference.p for difference in found.values()])
        tested = [Tested(difference, p) for difference, p in zip(found.values(), corrected, strict=True)]
        return dict(zip(found, tested, strict=True))
