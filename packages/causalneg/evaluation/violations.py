"""Does a retriever rank an answer above a text that violates one requirement, and that above one of two?

On the embedded world every text is read back and its violations are counted exactly. On real text the ones
are the verified written negatives of a set; nothing there violates two by construction.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from jaxtyping import Float

from causalneg.data import Dataset, resolve_passage
from causalneg.data.schema import Example, Query
from causalneg.search import Collection, Search, make_searcher
from causalneg.world import World
from causalneg.world.edits import EditStrategy
from common.errors import DataError
from common.report.tables import markdown_table
from common.stats.bootstrap import MeanBootstrap

PAIRS = ("positive > 1", "1 > 2", "positive > 2", "positive > 1 > 2")
"""What is measured: pairs, or triples, in the right order; of equal scores half counts."""

Score = Callable[[Sequence[str], Sequence[Sequence[str]]], list[np.ndarray]]
"""Gives, for queries and the texts of each, the scores of these texts."""


@dataclass(frozen=True)
class Graded:
    """A query with texts by the number of requirements that they violate.

    Args:
        query: The query.
        positive: A text that answers.
        ones: Texts that violate exactly one requirement.
        twos: Texts that violate exactly two.
    """

    query: Query
    positive: str
    ones: tuple[str, ...]
    twos: tuple[str, ...] = ()

    @property
    def texts(self) -> list[str]:
        """All texts, the positive first."""
        return [self.positive, *self.ones, *self.twos]


def world_violations(
    world: World, dataset: Dataset, split: str, *, limit: int | None = None, seed: int = 0
) -> list[Graded]:
    """Texts of a world: an answer of each query, rewritten by every strategy that applies, once and twice.

    Args:
        world: The world.
        dataset: Its data set.
        split: The queries.
        limit: Only the first so many; None: all.
        seed: Of the rewriting.
    """
    found = []
    positives = dataset.positives(split)
    for query in dataset.split_queries(split)[:limit]:
        rng = random.Random(f"{seed} {query.id}")
        positive = dataset.document(positives[query.id][0]).content
        edits = [world.edit(query.id, positive, strategy, rng) for strategy in get_args(EditStrategy)]
        ones = [edit.text for edit in edits if edit is not None]
        again = [world.violate_another(query.id, edit.text, rng) for edit in edits if edit is not None]
        twos = [text for text in again if text is not None]
        ones, twos = list(dict.fromkeys(ones)), list(dict.fromkeys(twos))
        if ones:
            found.append(Graded(query, positive, tuple(ones), tuple(twos)))
    if not found:
        raise DataError(f"{dataset.path} {split}: no answer could be rewritten")
    return found


def set_violations(examples: Sequence[Example], dataset: Dataset) -> list[Graded]:
    """The verified written negatives of a set, each of which violates one requirement.

    Args:
        examples: The set.
        dataset: The corpus that its documents are read from.

    Raises:
        DataError: There is no written negative.
    """
    found = []
    for example in examples:
        written = [n for n in example.negatives if n.source == "generated" and n.requirement]
        ones = dict.fromkeys(resolve_passage(n, dataset) for n in written)
        if ones:
            positive = resolve_passage(example.positives[0], dataset)
            found.append(Graded(example.query, positive, tuple(ones)))
    if not found:
        raise DataError("the set has no written negative that names the requirement it violates")
    return found


@dataclass(frozen=True)
class Measured:
    """Shares in the right order.

    Args:
        shares: By name of :data:`PAIRS`, then query.
        queries: How many queries.
    """

    shares: Mapping[str, Mapping[str, float]]
    queries: int

    def cells(self, name: str, *, resamples: int = 1000, seed: int = 0) -> list[str]:
        """A row of the table: means over queries with 95 % intervals.

        Args:
            name: Name of the retriever.
            resamples: Number of resamples of the queries.
            seed: Seed of the resamples.
        """
        cells = [name]
        for pair in PAIRS:
            values = self.shares[pair]
            if not values:
                cells.append("")
                continue
            means = MeanBootstrap(values, resamples=resamples, seed=seed).mean(values)
            low, high = np.quantile(means[1:], [0.025, 0.975])
            cells.append(f"{means[0]:.3f} ({low:.3f} to {high:.3f})")
        return cells


def measure_violations(graded: Sequence[Graded], score: Score) -> Measured:
    """Measure a retriever.

    Args:
        graded: Queries with their texts.
        score: Scores texts for their queries.
    """
    shares: dict[str, dict[str, float]] = {pair: {} for pair in PAIRS}
    scores = score([one.query.text for one in graded], [one.texts for one in graded])
    for one, found in zip(graded, scores, strict=True):
        best, ones, twos = np.split(np.asarray(found, dtype=np.float64), [1, 1 + len(one.ones)])
        first, second = _above(best, ones), _above(ones, twos)
        shares["positive > 1"][one.query.id] = float(first.mean())
        if len(twos):
            shares["1 > 2"][one.query.id] = float(second.mean())
            shares["positive > 2"][one.query.id] = float(_above(best, twos).mean())
            shares["positive > 1 > 2"][one.query.id] = float((first.T * second).mean())
    return Measured(shares, len(graded))


def _above(high: Float[np.ndarray, " high"], low: Float[np.ndarray, " low"]) -> Float[np.ndarray, "high low"]:
    """1 where one is above the other, a half where they are level."""
    difference = high[:, None] - low[None, :]
    return np.asarray((np.sign(difference) + 1) / 2)


def retriever_score(
    search: Search, corpus: Sequence[str], collect: Callable[[list[str]], Collection]
) -> Score:
    """Scores by a search over the texts, in the company of a corpus (for its word statistics).

    Args:
        search: The search.
        corpus: Texts that are searched beside those that are scored.
        collect: Makes the collection of texts.
    """

    def score(queries: Sequence[str], texts: Sequence[Sequence[str]]) -> list[np.ndarray]:
        flat = [text for several in texts for text in several]
        searcher = make_searcher(search, collect([*corpus, *flat]))
        of_query = np.repeat(np.arange(len(queries)), [len(several) for several in texts])
        found = searcher.score(list(queries), of_query, len(corpus) + np.arange(len(flat)))
        ends = np.cumsum([len(several) for several in texts])
        return np.split(found, ends[:-1])

    return score


def violations_table(title: str, found: Mapping[str, Measured]) -> str:
    """A row for each retriever.

    Args:
        title: Data set and split.
        found: What was measured, by name of the retriever.
    """
    queries = next(iter(found.values())).queries
    head = [f"{title}, {queries} queries", *PAIRS]
    return markdown_table(head, [measured.cells(name) for name, measured in found.items()])
