"""Candidates: what a search finds for the queries of a split, and how their positives score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64

from causalneg.data import Dataset
from causalneg.search import Searcher
from common.ragged import Ragged


@dataclass(frozen=True, eq=False)
class Candidates:
    """What a search found for the queries of a split, and how their positives score.

    Args:
        scores: Score of each document found, falling.
        rows: Row of each document found in the corpus, -1 for none.
        positives: Rows of the positives of each query.
        positive_scores: Scores of ``positives.values``, whether found or not.
    """

    scores: Float32[np.ndarray, "queries depth"]
    rows: Int64[np.ndarray, "queries depth"]
    positives: Ragged
    positive_scores: Float32[np.ndarray, " positives"]

    @property
    def found(self) -> Bool[np.ndarray, " positives"]:
        """Which positives are among the candidates of their query."""
        largest = 1 + max(self.rows.max(initial=0), self.positives.values.max(initial=0))
        query = np.repeat(np.arange(len(self.positives)), self.positives.lengths)
        keys = np.arange(len(self.rows))[:, None] * largest + self.rows
        return within(query * largest + self.positives.values, keys[self.rows >= 0])


def find_candidates(searcher: Searcher, dataset: Dataset, split: str, depth: int) -> Candidates:
    """What a search finds for the queries of a split.

    Args:
        searcher: A search over the documents of the data set, in their order.
        dataset: The data.
        split: Its queries.
        depth: Documents for each query.

    Raises:
        DataError: Embeddings do not fit the data, or are not finite.
    """
    positives = Ragged.from_lists(
        [[dataset.index[id] for id in ids] for ids in dataset.positives(split).values()]
    )
    query = np.repeat(np.arange(len(positives)), positives.lengths)
    texts = [query.text for query in dataset.split_queries(split)]
    scores, rows = searcher.search(texts, depth)
    return Candidates(scores, rows, positives, searcher.score(texts, query, positives.values))


def among(
    rows: Int64[np.ndarray, "queries window"], sets: Ragged, documents: int
) -> Bool[np.ndarray, "queries window"]:
    """Which rows are in the set of their query.

    Args:
        rows: Rows of documents for each query; -1 for none.
        sets: Rows of documents for each query.
        documents: Number of all documents.
    """
    owner = np.repeat(np.arange(len(sets)), sets.lengths)
    keys = np.arange(len(rows))[:, None] * documents + rows
    return np.asarray(within(keys, owner * documents + sets.values) & (rows >= 0))


def within(values: Int64[np.ndarray, "..."], known: Int64[np.ndarray, " known"]) -> Bool[np.ndarray, "..."]:
    """Which values are among the known ones; as numpy's isin, which takes seven times the arrays' memory."""
    if not len(known):
        return np.zeros(values.shape, dtype=bool)
    known = np.sort(known)
    place = np.searchsorted(known, values)
    np.minimum(place, len(known) - 1, out=place)
    return np.asarray(known[place] == values)
