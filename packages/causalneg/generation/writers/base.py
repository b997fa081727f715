"""Who writes negatives: one interface for rules and language models, one job for each pair.

A job first says what a passage must do to answer the query, then breaks one of these requirements per
negative. Source: CausalNeg (arXiv 2606.01304), the two-call generation.
"""

from __future__ import annotations

import random
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from causalneg.data.schema import Analysis, Document, Negative, Passage, Query
from causalneg.generation.jobs import Failure, Job
from causalneg.llm.chat import ChatBackend

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
class Written:
    """What came of a pair.

    Args:
        analysis: Why the positive answers; None if nobody said.
        negatives: The negatives, the most decisive requirement first; none if the job failed.
        failure: Why there are none.
        cut: Whether the positive was too long for the writer and was cut.
        dropped: Orders without a usable negative, by reason.
    """

    analysis: Analysis | None = None
    negatives: tuple[Negative, ...] = ()
    failure: Failure | None = None
    cut: bool = False
    dropped: dict[str, int] = field(default_factory=dict)


class Writer(ABC):
    """Writes negatives, and the same in other words. A new one is one file and one line in ``WRITERS``.

    What it makes of a pair depends on that pair, its settings and its seed alone. A job of it may ask the
    model behind :attr:`backend`; a writer by rule asks nothing.

    Args:
        name: What wrote, for provenance: ``"rules"``, ``"naive"``, ``"openai"``, ...
        backend: Where the model runs that its jobs ask; None if they ask none.
        candidates: Mined passages of each pair that it looks at.
    """

    name: str
    backend: ChatBackend | None = None
    candidates: int = 5

    @property
    @abstractmethod
    def identity(self) -> dict[str, str]:
        """What decides its texts; those of equal identity may be mixed."""

    @abstractmethod
    def write(self, pair: Pair) -> Job[Written]:
        """An analysis, then up to three negatives, the most decisive first; each breaks one requirement.

        Args:
            pair: What to write for.
        """

    @abstractmethod
    def rewrite(self, document: Document) -> Job[Passage | Failure]:
        """The same in the writer's own voice: a passage with its own text, ``document_id`` and ``voice``.

        Args:
            document: What to rewrite; its title stays.
        """

    def preview(self, pair: Pair) -> str:
        """What it makes of a pair, in words, with nothing kept and no model asked.

        Args:
            pair: The pair.
        """
        try:
            next(self.write(pair))
        except StopIteration as stop:
            return shown(pair, stop.value)
        return f"query: {pair.query.text}\npositive: {pair.positive.content}"


def shown(pair: Pair, written: Written) -> str:
    """A pair and what came of it, in words.

    Args:
        pair: The pair.
        written: What came of it.
    """
    lines = [f"query: {pair.query.text}", f"positive: {pair.positive.content}"]
    lines += [f"candidate: {candidate.content}" for candidate in pair.candidates]
    if written.analysis is not None:
        lines.append(f"core need: {written.analysis.core_need}")
        for requirement in written.analysis.requirements:
            ways = ", ".join(d.kind for d in requirement.disruptions)
            lines.append(
                f"requirement ({requirement.facet}): {requirement.text}" + (f" [{ways}]" if ways else "")
            )
    if written.failure is not None:
        lines.append(f"no negatives: {written.failure.kind} ({written.failure.detail})")
    for negative in written.negatives:
        lines.append(f"negative ({negative.strategy or 'no strategy'}): {negative.title} {negative.text}")
    return "\n".join(lines)


def draws(seed: int, *names: str) -> random.Random:
    """A source of draws that depends on a seed and on names alone, the same on every machine.

    Args:
        seed: The writer's seed.
        names: Ids of what is drawn for.
    """
    return random.Random(zlib.crc32("\t".join((str(seed), *names)).encode()))
