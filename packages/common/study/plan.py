"""What a study file says: a matrix of runs, and every run with its settings."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from common import config
from common.errors import ConfigError, suggest


@dataclass
class Extra:
    """Runs beside the main matrix: more arms for one backbone, or a sweep.

    Args:
        backbones: Which backbones.
        arms: Which arms.
        seeds: Which seeds; those of the study by default.
        overrides: Settings of these runs, by dotted key.
        vary: Lists of values by dotted key; every combination is a run.
        tag: Name of the sweep; runs without one join the main table.
    """

    backbones: list[str]
    arms: list[str]
    seeds: list[int] | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    vary: dict[str, list[Any]] = field(default_factory=dict)
    tag: str = ""


@dataclass(frozen=True)
class RunSpec:
    """One run of a study.

    Args:
        key: Name of its folder.
        backbone: Backbone.
        arm: Arm.
        seed: Seed.
        tag: ``""`` in the main matrix, otherwise the sweep and its values: ``"sweep:max_length=20"``.
        config: The settings it is run with, nested.
        study: Name of the study.
    """

    key: str
    backbone: str
    arm: str
    seed: int
    tag: str
    config: dict[str, Any]
    study: str = ""

    @property
    def hash(self) -> str:
        """Hash of everything that decides the result; a finished run with another hash is run again."""
        names = {"backbone": self.backbone, "arm": self.arm, "seed": self.seed}
        decides = {key: value for key, value in self.config.items() if key != "tracking"}
        return config.config_hash({**names, "config": decides})


@dataclass
class Study:
    """What a study file holds: backbones x arms x seeds, and what goes beside them.

    Args:
        name: Name of the study.
        description: One sentence for the head of the table.
        data: Where the data comes from; the method that the study is of reads it.
        base: Settings that all runs share, nested or by dotted key.
        backbones: Backbones of the main matrix.
        arms: Settings of each arm, by dotted key.
        seeds: Seeds of the main matrix.
        main: Arms of the main matrix; all of ``arms`` when empty.
        per_backbone: Settings of single backbones, by dotted key.
        extra: Runs beside the main matrix.
        tune: Grids that the settings in ``base`` and the form of the arms were chosen from, on validation
            rows; never part of the study's own runs.
        intervals: What intervals and tests speak about: ``units``, new users (queries) for these very seeds;
            ``crossed``, new users (queries) and new seeds.
    """

    name: str
    backbones: list[str]
    arms: dict[str, dict[str, Any]]
    seeds: list[int]
    base: dict[str, Any] = field(default_factory=dict)
    description: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    main: list[str] = field(default_factory=list)
    per_backbone: dict[str, dict[str, Any]] = field(default_factory=dict)
    extra: list[Extra] = field(default_factory=list)
    tune: list[Extra] = field(default_factory=list)
    intervals: Literal["units", "crossed"] = "units"

    def __post_init__(self) -> None:
        """Check that every name that is used is defined."""
        beside = [(f"extra[{place}]", extra) for place, extra in enumerate(self.extra)]
        beside += [(f"tune[{place}]", extra) for place, extra in enumerate(self.tune)]
        used = {*self.backbones, *(name for _, extra in beside for name in extra.backbones)}
        wanted = [("main", arm) for arm in self.main]
        for place, extra in beside:
            wanted += [(f"{place}.arms", arm) for arm in extra.arms]
        unknown = [(where, arm) for where, arm in wanted if arm not in self.arms]
        mistakes = [f"{where}: no arm {arm!r}{suggest(arm, self.arms)}" for where, arm in unknown]
        mistakes += [
            f"per_backbone: no backbone {name!r} in this study{suggest(name, used)}"
            for name in self.per_backbone
            if name not in used
        ]
        for name in ("backbones", "arms", "seeds"):
            if not getattr(self, name):
                mistakes.append(f"{name}: must not be empty")
        if self.seeds:
            mistakes += self._too_few_seeds(len(self.seeds))
        ConfigError.raise_if(mistakes)

    def _too_few_seeds(self, seeds: int) -> list[str]:
        crossed = self.intervals == "crossed"
        return [f"intervals: crossed needs at least 2 seeds, got {seeds}"] if crossed and seeds < 2 else []

    def plan(self, seeds: int | None = None) -> list[RunSpec]:
        """All runs, the main matrix first.

        A run of a sweep that has exactly the settings of an earlier run shares its key, so that it is
        trained once.

        Args:
            seeds: Use seeds 0 .. ``seeds - 1`` instead of those in the file.

        Raises:
            ConfigError: Two different runs would share a folder, or seeds are too few for the intervals.
        """
        if seeds is not None:
            ConfigError.raise_if(self._too_few_seeds(seeds))
        main = Extra(self.backbones, self.main or list(self.arms))
        return self._plan([main, *self.extra], seeds)

    def tuning(self) -> list[RunSpec]:
        """The runs of the grids that the settings were chosen from.

        Raises:
            ConfigError: The study has none.
        """
        if not self.tune:
            raise ConfigError(f"study {self.name}: has no grid (tune) to choose its settings from")
        return self._plan([dataclasses.replace(grid, tag=grid.tag or "tune") for grid in self.tune], None)

    def _plan(self, extras: Sequence[Extra], seeds: int | None) -> list[RunSpec]:
        own = list(range(seeds)) if seeds is not None else self.seeds
        plan: list[RunSpec] = []
        keys: dict[str, str] = {}
        for extra in extras:
            chosen = own if seeds is not None or extra.seeds is None else extra.seeds
            for backbone, arm in itertools.product(extra.backbones, extra.arms):
                for values in itertools.product(*extra.vary.values()):
                    varied = dict(zip(extra.vary, values, strict=True))
                    for seed in chosen:
                        spec = self._spec(backbone, arm, seed, extra, varied)
                        spec = RunSpec(**{**vars(spec), "key": keys.get(spec.hash, spec.key)})
                        if any(other.key == spec.key and other.hash != spec.hash for other in plan):
                            raise ConfigError(f"study {self.name}: two different runs are called {spec.key}")
                        keys.setdefault(spec.hash, spec.key)
                        if spec not in plan:
                            plan.append(spec)
        return plan

    def _spec(self, backbone: str, arm: str, seed: int, extra: Extra, varied: Mapping[str, Any]) -> RunSpec:
        short = {key.rsplit(".", 1)[-1]: value for key, value in varied.items()}
        values = ",".join(f"{key}={value}" for key, value in short.items())
        tag = ":".join(part for part in (extra.tag, values) if part)
        key = "-".join([backbone, arm, *([tag.replace(":", "-")] if tag else []), str(seed)])
        settings = nested(
            self.base, self.per_backbone.get(backbone, {}), self.arms[arm], extra.overrides, varied
        )
        return RunSpec(key, backbone, arm, seed, tag, settings, self.name)


def nested(*settings: Mapping[str, Any]) -> dict[str, Any]:
    """One nested dict from several, with or without dotted keys; the later one wins."""
    out: dict[str, Any] = {}
    for layer in settings:
        for key, value in layer.items():
            at = out
            *parents, last = str(key).split(".")
            for parent in parents:
                at = at.setdefault(parent, {})
            if isinstance(value, Mapping):
                at[last] = nested(at.get(last) or {}, value)
            else:
                at[last] = value
    return out
