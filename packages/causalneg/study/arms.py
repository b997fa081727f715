"""Whether the arms of a study can be compared: they differ in negatives and regulariser, in nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from causalneg.training.config import TrainConfig
from common.config import to_dict
from common.errors import ConfigError

FREE = (
    "sets",
    "voices",
    "voice_share",
    "loss.terms",
    "seed",
    "name",
    "out",
    "cache",
    "tracking",
    "fit.progress",
    "fit.log_every",
)
"""Settings in which arms may differ: their negatives, their regulariser, and what changes no figure."""


def check_arms(arms: Mapping[str, TrainConfig]) -> None:
    """Refuse arms that differ in more than their negatives and their regulariser.

    Equal temperature, batch size and accumulation make equal loss scales; equal ``candidates`` make equal
    numbers of texts that a positive is compared with, as ``combine`` of the training data sees to. Two
    exceptions: an arm with ``candidates: 0`` (generation only) may have a number of its own; if it takes no
    negatives either (in-batch only), it compares with the batch.

    Args:
        arms: The config of each arm; the first that asks for candidates is what the others are held against.

    Raises:
        ConfigError: Arms differ; every difference is named.
    """
    flat = {name: _flat(to_dict(config)) for name, config in arms.items()}
    reference = next((name for name, config in arms.items() if config.candidates), next(iter(arms), ""))
    found = []
    for name, config in arms.items():
        free = list(FREE)
        if not config.candidates:
            free.append("candidates")
            if not any(entry.count for entry in config.sets):
                free.append("loss.in_batch")
        for key in dict.fromkeys([*flat[reference], *flat[name]]):
            value, other = flat[name].get(key), flat[reference].get(key)
            if value != other and not any(key == own or key.startswith(f"{own}.") for own in free):
                found.append(
                    f"arm {name}: {key} is {value!r}, but {other!r} in arm {reference}; arms may differ in "
                    "their negatives and their regulariser only"
                )
    ConfigError.raise_if(found)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found.update(_flat(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value
    return found
