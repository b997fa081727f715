"""From settings to a model, refused before it is made where this machine cannot hold it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
from torch import nn

from common.errors import ConfigError
from common.machine import check_fits
from lain.data.schema import Feature
from lain.layers.embedding import FeatureEmbedding, module_key
from lain.model import CTRModel
from lain.training.config import TrainConfig

ADAM_MOMENTS = 2
"""Numbers that Adam keeps beside each weight."""


def build_model(config: TrainConfig, features: Iterable[Feature], *, copies: int = 1) -> CTRModel:
    """The model for a data set's features.

    Args:
        config: The settings.
        features: The features.
        copies: Numbers that this machine's memory has to hold for each weight.

    Raises:
        ConfigError: The parts do not fit together, or the model does not fit into memory.
    """
    known = list(features)
    embedding = config.embedding

    def make() -> CTRModel:
        return CTRModel(
            features=known,
            embedding=partial(
                FeatureEmbedding,
                dim=embedding.dim,
                id_std=embedding.id_std,
                feature_std=embedding.feature_std,
                sparse=embedding.sparse,
            ),
            backbone=config.model.build,
            head=config.head.build,
            length=config.length.resolve(),
            columns=config.history.columns,
        )

    try:
        check_fits(make, copies=copies, advice=lambda model: _advice(config, known, model))
        return make()
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error


def _advice(config: TrainConfig, features: list[Feature], model: nn.Module | None) -> str:
    """What to do about a model that is too large."""
    if model is not None:
        name, largest = max(model.state_dict().items(), key=lambda named: named[1].nbytes)
        parts = {"item": "items", "user": "context", "context": "context", "behaviour": "columns"}
        for f in features:
            is_table = f.size > 0 and name == f"{parts[f.source]}.layers.{module_key(f.name)}.weight"
            if is_table and len(largest) > largest.shape[1]:
                return (
                    f"{f.source} feature '{f.name}' has too large a vocabulary, {f.size:,} values; prepare "
                    "the data with them renumbered from 1 without gaps, hashed into fewer, or without it"
                )
    return f"lower its sizes: {largest_sizes(config)}"


def largest_sizes(config: TrainConfig) -> str:
    """The three largest of the settings that decide how large the model is, and their values."""
    sizes = {"embedding.dim": config.embedding.dim}
    for group, component in (("model", config.model), ("head", config.head)):
        sizes |= {
            f"{group}.{name}": value
            for name, value in component.options.items()
            if name not in HOW_MUCH_IS_READ and _is_size(value)
        }
    options = config.length.resolve()
    if options.encoded:
        sizes |= {f"length.{name}": getattr(options, name) for name in ("hidden", "frequencies", "prompts")}
    largest = sorted(sizes, key=lambda name: np.max(sizes[name]), reverse=True)[:3]
    return ", ".join(f"{name}={_shown(sizes[name])}" for name in largest)


HOW_MUCH_IS_READ = ("short_length", "top_k")
"""Settings of backbones that count behaviours, not weights."""


def _is_size(value: object) -> bool:
    values = value if isinstance(value, (list, tuple)) else [value]
    return bool(values) and all(isinstance(v, int) and not isinstance(v, bool) for v in values)


def _shown(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
