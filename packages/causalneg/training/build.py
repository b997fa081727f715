"""From settings to the parts of a run: its encoder and its Lightning module."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from causalneg.encoders import Encoder
from causalneg.encoders.registry import encoder_class
from causalneg.training.config import TrainConfig
from causalneg.training.module import Measure, RetrievalModule


def make_encoder(config: TrainConfig, texts: Sequence[str]) -> Encoder:
    """The encoder as it starts: loaded, or made for a corpus, its weights drawn from the seed.

    Args:
        config: The settings.
        texts: The corpus, for encoders that make their vocabulary from it.
    """
    torch.manual_seed(config.seed)
    encoder = config.encoder.build(texts=texts, seed=config.seed)
    if encoder_class(encoder.kind) is not type(encoder):
        raise TypeError(
            f"{type(encoder)!r}: kind is {encoder.kind!r}, which is registered for another encoder"
        )
    return encoder


def make_module(
    config: TrainConfig,
    encoder: Encoder,
    *,
    steps: int,
    validation: Measure | None = None,
    probe: Measure | None = None,
    untrained: dict[str, float] | None = None,
) -> RetrievalModule:
    """The Lightning module of a run.

    Args:
        config: The settings.
        encoder: The encoder.
        steps: Optimiser steps of the whole training.
        validation: As for :class:`RetrievalModule`.
        probe: As for :class:`RetrievalModule`; left out where ``diagnose.every`` is 0.
        untrained: As for :class:`RetrievalModule`.
    """
    loss, train = config.loss, config.train
    return RetrievalModule(
        encoder,
        temperature=loss.temperature,
        in_batch=loss.in_batch,
        terms=loss.build_terms(),
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        warmup=train.warmup,
        decay=train.decay,
        cached=train.cached,
        chunk_tokens=train.chunk_tokens,
        steps=steps,
        validation=validation,
        probe=probe if config.diagnose.every else None,
        probe_every=config.diagnose.every,
        untrained=untrained,
    )
