"""What a search is: the best documents of a corpus for queries given as texts.

All searches return ``scores [queries, k]`` and ``rows [queries, k]``, the best first; of equal scores the
lower row comes first. Where fewer than k documents are found, row -1 with score -inf fills up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int64

from causalneg.encoders.base import Encoder, encode
from causalneg.encoders.cache import corpus_embeddings
from causalneg.text.language import Language, detect_language, find_language
from common.errors import DataError

Found = tuple[Float32[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]
"""Scores and rows of the k best documents of each query."""

Embed = Callable[[Sequence[str]], Float[np.ndarray, "texts dim"]]
"""Gives the embeddings of some texts, in their order."""


class Collection:
    """The documents that are searched, as texts and, where there is an encoder, as embeddings.

    Args:
        texts: Title and text of each document, in the order of the corpus.
        documents: Gives the embeddings of all documents; called once, when a search first needs them.
        queries: Gives the embeddings of queries.
        devices: Names of devices as torch has them that a search may be spread over; empty: the CPU.
        language: Name or code of the texts' language; None detects it when a search first asks.
    """

    def __init__(
        self,
        texts: Sequence[str],
        *,
        documents: Callable[[], Float[np.ndarray, "documents dim"]] | None = None,
        queries: Embed | None = None,
        devices: Sequence[str] = (),
        language: str | None = None,
    ) -> None:
        self.texts, self.devices = texts, tuple(devices)
        self._language = None if language is None else find_language(language)
        self._documents, self._queries = documents, queries

    @classmethod
    def encoded(
        cls,
        texts: Sequence[str],
        encoder: Encoder | None,
        *,
        cache: Path | None = None,
        devices: Sequence[str] = (),
        progress: bool = False,
        batch_tokens: int | None = None,
        block: int = 16_384,
    ) -> Collection:
        """Documents whose embeddings an encoder makes.

        Args:
            texts: The documents.
            encoder: The encoder; None leaves the embeddings out.
            cache: Folder in which embeddings are kept, by text and encoder.
            devices: As for the class.
            progress: Whether to show a progress bar.
            batch_tokens: Tokens per forward pass; None takes the encoder's own number.
            block: Texts encoded and written into the cache at a time.
        """
        if encoder is None:
            return cls(texts, devices=devices)
        chosen = encoder

        def documents() -> Float32[np.ndarray, "documents dim"]:
            return corpus_embeddings(
                chosen, texts, cache=cache, progress=progress, batch_tokens=batch_tokens, block=block
            )

        def queries(asked: Sequence[str]) -> Float32[np.ndarray, "queries dim"]:
            return encode(chosen, chosen.tokenize(asked, query=True), query=True)

        return cls(texts, documents=documents, queries=queries, devices=devices)

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.texts)

    @cached_property
    def language(self) -> Language:
        """The language of the texts."""
        return self._language or detect_language(self.texts).language

    @cached_property
    def embeddings(self) -> Float[np.ndarray, "documents dim"]:
        """The embeddings of all documents; may be memory-mapped.

        Raises:
            DataError: There is no encoder, or not one embedding a document.
        """
        if self._documents is None:
            raise DataError("this search needs embeddings; name an encoder")
        return self._checked(self._documents(), len(self.texts), "document")

    def embed(self, queries: Sequence[str]) -> Float[np.ndarray, "queries dim"]:
        """The embeddings of queries.

        Raises:
            DataError: There is no encoder, or not one embedding a query.
        """
        if self._queries is None:
            raise DataError("this search needs embeddings; name an encoder")
        return self._checked(self._queries(queries), len(queries), "query")

    @staticmethod
    def _checked(found: Float[np.ndarray, "texts dim"], wanted: int, what: str) -> np.ndarray:
        if len(found) != wanted:
            raise DataError(f"there are {len(found)} {what} embeddings, but {wanted} texts; encode again")
        return found


class Searcher(ABC):
    """Ranks the documents of a collection for queries given as texts; exact, approximate and BM25 alike."""

    backend: ClassVar[str]
    """What found a negative, in the record of each: ``"bm25"``, ``"dense"``."""

    advice: ClassVar[str] = ""
    """What to do where most queries match no document."""

    @abstractmethod
    def search(self, queries: Sequence[str], k: int) -> Found:
        """The k best documents of every query.

        Args:
            queries: The queries.
            k: How many documents; cut to the number of documents there are.

        Returns:
            Scores and rows, see the module.

        Raises:
            ConfigError: k is below 1.
        """

    @abstractmethod
    def score(
        self, queries: Sequence[str], query: Int[np.ndarray, " pairs"], row: Int[np.ndarray, " pairs"]
    ) -> Float32[np.ndarray, " pairs"]:
        """Scores of chosen pairs, exactly as :meth:`search` gives them.

        Args:
            queries: The queries.
            query: Position of the query of each pair.
            row: Row of the document of each pair.
        """


def unmatched_warning(searcher: Searcher, rows: Int[np.ndarray, "queries k"]) -> str | None:
    """A line where a search found no document at all for more than half of the queries; else None.

    Args:
        searcher: What searched.
        rows: Rows that it found.
    """
    nothing = int((rows < 0).all(axis=1).sum())
    if not 2 * nothing > len(rows):
        return None
    return f"{nothing} of {len(rows)} queries match no document at all" + (
        f": {searcher.advice}" if searcher.advice else ""
    )


def ordered(
    scores: Float32[np.ndarray, "queries found"], rows: Int[np.ndarray, "queries found"], k: int
) -> Found:
    """The first k by falling score, then rising row."""
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1).astype(np.int64)


def highest(values: Float32[np.ndarray, "rows n"], k: int) -> Int[np.ndarray, "rows k"]:
    """Columns of the k highest values of each row, in rising order; of equal ones the first."""
    if values.shape[1] <= k:
        return np.broadcast_to(np.arange(values.shape[1]), values.shape)
    last = np.partition(values, values.shape[1] - k, axis=1)[:, -k, None]
    above, level = values > last, values == last
    room = k - above.sum(axis=1, keepdims=True)
    chosen: Bool[np.ndarray, "rows n"] = above | (level & (np.cumsum(level, axis=1) <= room))
    return np.nonzero(chosen)[1].reshape(len(values), k)


def as_run(
    query_ids: Sequence[str],
    document_ids: Sequence[str],
    scores: Float[np.ndarray, "queries k"],
    rows: Int[np.ndarray, "queries k"],
) -> dict[str, dict[str, float]]:
    """What a search found, by ids: what :func:`common.metrics.retrieval.retrieval_metrics` measures.

    Args:
        query_ids: Ids of the queries.
        document_ids: Ids of all documents.
        scores: Scores.
        rows: Rows of documents; -1 for none.
    """
    return {
        query: {document_ids[row]: score for row, score in zip(*pair, strict=True) if row >= 0}
        for query, *pair in zip(query_ids, rows.tolist(), scores.tolist(), strict=True)
    }
