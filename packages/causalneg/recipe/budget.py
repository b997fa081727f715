"""How much is read and trained within some minutes, from the speed of the encoder on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from causalneg.encoders import Encoder, encode

READ = (256, 128, 64)
"""Tokens of a text that may be read, the most first."""

ENCODING, LEAST_ENCODING, TRAINING = 0.5, 0.75, 0.3
"""Shares of the time: for encoding the corpus twice, for that where little is read, for training."""

BATCH, NEGATIVES = 32, 1
_PASSES = 3.0  # forward and backward, in forward passes
_SAMPLE = 24


@dataclass(frozen=True)
class Plan:
    """What is done within the time.

    Args:
        pretrained: Whether a pretrained encoder is trained; else one of learned words, from scratch.
        max_tokens: Tokens of a text that are read.
        steps: Optimiser steps.
        words: What was decided, for the user.
    """

    pretrained: bool
    max_tokens: int
    steps: int
    words: str


def measure(encoder: Encoder, texts: Sequence[str]) -> float:
    """Documents that an encoder encodes in a second, on a sample of a corpus.

    Args:
        encoder: The encoder.
        texts: The corpus.
    """
    some = list(texts[:: max(1, len(texts) // _SAMPLE)][:_SAMPLE])
    encode(encoder, encoder.tokenize(some[:2], query=False), query=False)  # the first call is slow
    begun = time.perf_counter()
    encode(encoder, encoder.tokenize(some, query=False), query=False)
    return len(some) / max(time.perf_counter() - begun, 1e-9)


def make_plan(speeds: Mapping[int, float], *, documents: int, queries: int, minutes: float) -> Plan:
    """Decide how much is read and trained.

    The corpus is encoded twice, by the start encoder and by the trained one, which takes half of the time at
    most; training gets :data:`TRAINING` of it, one epoch at most.

    Args:
        speeds: Documents a second by the tokens that are read.
        documents: Documents of the corpus.
        queries: Queries that are trained on.
        minutes: The time.

    Raises:
        ValueError: ``minutes`` is not positive.
    """
    if minutes <= 0:
        raise ValueError(f"minutes must be above 0, got {minutes}")
    seconds = 60 * minutes
    taken = {tokens: 2 * documents / speed for tokens, speed in speeds.items()}
    chosen = next(
        (tokens for tokens in sorted(speeds, reverse=True) if taken[tokens] <= ENCODING * seconds), None
    )
    least = min(speeds)
    if chosen is None and taken[least] <= LEAST_ENCODING * seconds:
        chosen = least
    if chosen is None:
        needed = taken[least] / LEAST_ENCODING / 60
        words = (
            f"{minutes:g} minutes do not suffice to encode {documents} documents twice with the pretrained "
            f"encoder on this machine (--minutes {needed:.0f} would); an encoder of learned words is trained "
            "from scratch instead, which on small data stays below BM25"
        )
        return Plan(False, least, 0, words)
    step = BATCH * (2 + NEGATIVES) * _PASSES / speeds[chosen]
    steps = min(max(4, int(TRAINING * seconds / step)), max(1, queries // BATCH))
    words = (
        f"{chosen} tokens of a text are read, {speeds[chosen]:.0f} documents a second; {steps} steps of "
        f"{BATCH} queries, {min(1.0, steps * BATCH / max(queries, 1)):.0%} of an epoch"
    )
    return Plan(True, chosen, steps, words)
