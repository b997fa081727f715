"""What exact and approximate searches of embeddings share: checks, blocks, and scores of chosen pairs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int

from causalneg.search.base import Collection, Found, Searcher
from common.errors import BackendError, ConfigError, DataError

QUERIES = 256
"""Queries whose scores with one block of documents are in memory at a time."""

NUMBERS = 1 << 20
"""Numbers of gathered embeddings in memory at a time."""


def blocks(
    documents: Float[np.ndarray, "documents dim"], first: int, last: int, block: int
) -> Iterator[tuple[int, Float32[np.ndarray, "block dim"], float]]:
    """Copies of consecutive rows as float32: first row, rows, largest norm. Checks that they are finite."""
    for start in range(first, last, block):
        rows = np.array(documents[start : min(start + block, last)], dtype=np.float32)
        yield start, rows, float(norms_of(rows, "document", start).max())


def norms_of(
    rows: Float32[np.ndarray, "rows dim"], what: str, first: int = 0
) -> Float64[np.ndarray, " rows"]:
    """Euclidean norms; checks that every number is finite."""
    squares = np.einsum("nd,nd->n", rows, rows).astype(np.float64)
    if not np.isfinite(squares).all():
        bad = ~np.isfinite(rows)
        if bad.any():
            row = int(np.argmax(bad.any(axis=1)))
            raise DataError(
                f"{what} embedding in row {first + row} is not finite ({rows[row][bad[row]][0]}); "
                "encode it again"
            )
        squares = np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
    return np.asarray(np.sqrt(squares))


def check_vectors(queries: np.ndarray, documents: np.ndarray, **numbers: int) -> None:
    """Refuse numbers below 1, and arrays that cannot be searched."""
    for name, value in numbers.items():
        if value < 1:
            raise ConfigError(f"{name} must be 1 or more, got {value}")
    for name, array in (("queries", queries), ("documents", documents)):
        if array.ndim != 2:
            raise DataError(f"{name} must have one row for each embedding, got shape {array.shape}")
    if queries.shape[1] != documents.shape[1]:
        raise DataError(
            f"queries have {queries.shape[1]} dimensions, documents {documents.shape[1]}; "
            "encode both with the same encoder"
        )
    if not len(documents):
        raise DataError("there are no documents to search")


def check_device(name: str) -> torch.device:
    """A device by the name that torch has for it, such as ``cuda:0``.

    Raises:
        ConfigError: There is no such kind of device.
        BackendError: This machine lacks it.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device '{name}' is not known; give cpu, cuda:0, ...") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendError(f"device '{name}': this machine has {torch.cuda.device_count()} GPUs for torch")
    return device


def pair_scores(
    queries: Float[np.ndarray, "queries dim"],
    documents: Float[np.ndarray, "documents dim"],
    query: Int[np.ndarray, " pairs"],
    row: Int[np.ndarray, " pairs"],
) -> Float32[np.ndarray, " pairs"]:
    """Inner products of chosen pairs, exactly as a search scores them.

    Args:
        queries: Query embeddings.
        documents: Document embeddings; may be memory-mapped.
        query: Row of the query of each pair.
        row: Row of the document of each pair.
    """
    out = np.empty(len(query), dtype=np.float32)
    step = max(1, NUMBERS // queries.shape[1])
    for start in range(0, len(query), step):
        part = slice(start, start + step)
        out[part] = chosen_scores(queries[query[part]], documents, row[part, None])[:, 0]
    return out


def chosen_scores(
    queries: Float[np.ndarray, "queries dim"],
    documents: Float[np.ndarray, "documents dim"],
    rows: Int[np.ndarray, "queries chosen"],
) -> Float32[np.ndarray, "queries chosen"]:
    """Inner products of each query with documents chosen for it; -inf for row -1.

    Summed in 64 bits and rounded to 32, so that equal embeddings have equal scores, wherever they stand.
    """
    count, chosen = rows.shape
    out = np.empty((count, chosen), dtype=np.float32)
    step = max(1, NUMBERS // max(1, chosen * queries.shape[1]))
    for start in range(0, count, step):
        part = rows[start : start + step]
        flat, where = np.unique(part, return_inverse=True)
        texts = torch.from_numpy(np.array(documents[np.maximum(flat, 0)], dtype=np.float32)).double()
        query = torch.from_numpy(np.array(queries[start : start + step], dtype=np.float32)).double()
        gathered = texts[torch.from_numpy(where.reshape(-1))].view(*part.shape, -1)
        out[start : start + step] = torch.bmm(gathered, query.unsqueeze(2)).squeeze(2).float().numpy()
    out[rows < 0] = -np.inf
    return out


class DenseSearcher(Searcher):
    """Ranks documents by the inner product of their embeddings with a query's.

    Args:
        collection: The documents.
    """

    backend = "dense"

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self._asked: tuple[list[str], Float[np.ndarray, "queries dim"]] | None = None

    @abstractmethod
    def find(self, queries: Float[np.ndarray, "queries dim"], k: int) -> Found:
        """The k best documents of every query embedding."""

    def search(self, queries: Sequence[str], k: int) -> Found:
        """The k best documents of every query; see :meth:`Searcher.search`."""
        return self.find(self._embedded(queries), k)

    def score(
        self, queries: Sequence[str], query: Int[np.ndarray, " pairs"], row: Int[np.ndarray, " pairs"]
    ) -> Float32[np.ndarray, " pairs"]:
        """Scores of chosen pairs; see :meth:`Searcher.score`."""
        return pair_scores(self._embedded(queries), self.collection.embeddings, query, row)

    def _embedded(self, queries: Sequence[str]) -> Float[np.ndarray, "queries dim"]:
        """Embeddings of queries; those of the last call are kept, since it is asked for their pairs next."""
        texts = list(queries)
        if self._asked is None or self._asked[0] != texts:
            self._asked = texts, self.collection.embed(texts)
        return self._asked[1]
