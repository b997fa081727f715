"""Who writes negatives: one interface for rules and language models, two calls per query and positive.

``analyse`` says what a passage must do to answer the query; ``write`` breaks one of these requirements per
negative. Source: CausalNeg (arXiv 2606.01304), the two-call generation. Both take batches, for a model is
fast in batches only; what comes back for a pair depends on that pair, the writer and its seed, never on the
batch.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from causalneg.data.schema import Analysis, Document, Negative, Passage, Query

MAX_NEGATIVES = 3
"""Negatives that a writer gives for a pair, at most."""


@dataclass(frozen=True)
class Pair:
    """A query, one passage that answers it, and mined passages to rewrite or to take the style from.

    Args:
        query: The query.
        positive: A passage that answers it.
        candidates: Mined negatives, best first; may be empty.
    """

    query: Query
    positive: Document
    candidates: Sequence[Document] = field(default_factory=tuple)


@dataclass(frozen=True)
class Failure:
    """Why a writer has nothing for a pair or passage.

    Args:
        reason: Kind of failure, a few words that can be counted.
        detail: What happened, for readers.
        tokens: Tokens read and written in vain; 0 without a model.
    """

    reason: str
    detail: str = ""
    tokens: int = 0


@runtime_checkable
class Writer(Protocol):
    """Writes negatives, and the same things in other words.

    Every method gives one result per input, in order; a failure is a result.

    Args:
        name: What wrote, for provenance: ``"rules"``, ``"naive"``, ...
        model: Name of the model behind it; empty without one.
        prompt_version: Version of prompts and profile; empty without a model.
        seed: Decides every draw.
        settings: Whatever else decides the text, in one line; texts of equal settings may be mixed.
    """

    name: str
    model: str
    prompt_version: str
    seed: int
    settings: str

    def analyse(self, pairs: Sequence[Pair]) -> list[Analysis | Failure]:
        """Say why each positive answers its query.

        Args:
            pairs: What to analyse.
        """
        ...

    def write(self, pairs: Sequence[Pair], analyses: Sequence[Analysis]) -> list[list[Negative] | Failure]:
        """Write up to three negatives a pair, the most diagnostic first, each violating one requirement.

        Args:
            pairs: What to write for.
            analyses: Their analyses, in the same order.
        """
        ...

    def rewrite(self, documents: Sequence[Document]) -> list[Passage | Failure]:
        """Say the same in the writer's own voice.

        Args:
            documents: Texts to rewrite, with their titles.

        Returns:
            For each a passage with its own text, ``document_id`` and ``voice``.
        """
        ...


def draws(seed: int, *names: str) -> random.Random:
    """A source of draws that depends on a seed and on names alone, the same on every machine.

    Args:
        seed: The writer's seed.
        names: Ids of what is drawn for.
    """
    return random.Random(zlib.crc32("\t".join((str(seed), *names)).encode()))
