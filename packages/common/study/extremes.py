"""Who gained and who lost most between two arms: queries, users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Extremes:
    """What changed between two arms, unit by unit.

    Args:
        gained: Change of the units that gained most, the most first.
        lost: Change of the units that lost most, the most first.
        up: How many gained.
        down: How many lost.
        same: How many stayed the same.
    """

    gained: dict[str, float]
    lost: dict[str, float]
    up: int
    down: int
    same: int

    @property
    def change(self) -> dict[str, float]:
        """Change of every unit that is named."""
        return self.gained | self.lost

    def counts(self, units: str) -> str:
        """In words: how many gained, lost and stayed.

        Args:
            units: What a unit is, in the plural.
        """
        every = self.up + self.down + self.same
        return f"Of {every} {units} {self.up} gain, {self.down} lose and {self.same} stay the same."


def extremes(units: Sequence[str], change: Float[np.ndarray, " units"], count: int) -> Extremes:
    """The units that gained and lost most; of equal changes, those that come first.

    Args:
        units: Name of each.
        change: Arm minus reference of each; above 0 is better.
        count: Units of each kind, at most.
    """
    up, down = change > 0, change < 0
    rising = np.argsort(change, kind="stable")
    falling = np.argsort(-change, kind="stable")
    return Extremes(
        {units[place]: float(change[place]) for place in falling[: min(count, int(up.sum()))]},
        {units[place]: float(change[place]) for place in rising[: min(count, int(down.sum()))]},
        int(up.sum()),
        int(down.sum()),
        int((change == 0).sum()),
    )


def mean_by_unit(seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over seeds of each unit that all of them measured.

    Args:
        seeds: Value of each unit, a mapping a seed.
    """
    if not seeds:
        return {}
    shared = [unit for unit in seeds[0] if all(unit in one for one in seeds)]
    return {unit: sum(one[unit] for one in seeds) / len(seeds) for unit in shared}
