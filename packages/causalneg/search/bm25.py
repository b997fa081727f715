"""BM25 over texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import scipy.sparse
import Stemmer
from annotated_types import Ge, Le
from jaxtyping import Float32, Int

from causalneg.search.base import Collection, Found, Searcher, highest
from causalneg.text.language import find_language, split_signs
from common.errors import ConfigError, DataError, suggest

_NUMBERS = 1 << 20  # scores in memory at a time
_PAIRS = 16_384  # pairs of a query and a text that are scored at a time


class BM25(Searcher):
    """BM25 over texts, Lucene's variant.

    ``score(q, d) = sum_{t in q} idf(t) f(t, d) / (f(t, d) + k1 (1 - b + b |d| / mean |d|))`` with
    ``idf(t) = ln(1 + (N - n(t) + 0.5) / (n(t) + 0.5))``; f counts t in d, |d| is the number of words of d.
    A word that is twice in the query counts twice.

    Source: Robertson and Zaragoza 2009; the index is bm25s's. The defaults are those of the published
    Pyserini baselines. Words are runs of two or more letters or digits in lower case; in languages written
    without blanks, characters and pairs of characters (:func:`causalneg.text.language.split_signs`).

    Args:
        texts: The documents.
        k1: How slowly a word that is repeated saturates.
        b: How much long documents are held back, 0 to 1.
        stem: Language of the Snowball stemmer; None for none.
        stopwords: Language of the list of words that are left out, or the words; None for none.
        signs: Whether texts are split by characters.
        pattern: What a word is; None: two or more letters or digits.

    Raises:
        ConfigError: A setting is out of range or unknown.
        DataError: There are no texts, or no words in them.
    """

    backend = "bm25"
    advice = (
        "BM25 matches words, so it finds nothing across languages, and little where it takes a corpus for "
        "another language than its own (--language); search with an encoder (--encoder)"
    )

    @classmethod
    def build(
        cls,
        collection: Collection,
        *,
        k1: Annotated[float, Ge(0)] = 0.9,
        b: Annotated[float, Ge(0), Le(1)] = 0.4,
        language: str | None = None,
    ) -> BM25:
        """BM25 over a collection, with what there is for its language.

        Args:
            collection: The documents.
            k1: How slowly a word that is repeated saturates.
            b: How much long documents are held back.
            language: Name or code of the language; null takes the collection's own.
        """
        chosen = collection.language if language is None else find_language(language)
        return cls(
            collection.texts, k1=k1, b=b, stem=chosen.stemmer,
            stopwords=chosen.name if chosen.stopwords else None, signs=chosen.signs, pattern=chosen.pattern,
        )  # fmt: skip

    def __init__(
        self,
        texts: Sequence[str],
        *,
        k1: float = 0.9,
        b: float = 0.4,
        stem: str | None = "english",
        stopwords: str | Sequence[str] | None = "english",
        signs: bool = False,
        pattern: str | None = None,
    ) -> None:
        # Here, since it brings numba and llvmlite along, which vLLM's engine processes cannot start beside.
        import bm25s

        if k1 < 0 or not 0 <= b <= 1:
            raise ConfigError(f"BM25 needs k1 >= 0 and b in [0, 1], got k1 = {k1}, b = {b}")
        if stem is not None and stem not in Stemmer.algorithms():
            raise ConfigError(f"there is no stemmer for '{stem}'{suggest(stem, Stemmer.algorithms())}")
        self._stemmer = None if stem is None else Stemmer.Stemmer(stem)
        self._signs, self._pattern = signs, {} if pattern is None else {"token_pattern": pattern}
        self._stopwords = stopwords if isinstance(stopwords, str) else list(stopwords or ())
        try:
            words = self._words(texts, return_ids=True)
        except ValueError as error:
            raise ConfigError(f"stopwords: {error}") from None
        if not any(len(ids) for ids in words.ids):
            raise DataError(f"none of the {len(texts)} texts has a word to search for")
        built = bm25s.BM25(k1=k1, b=b, method="lucene")
        built.index(words, show_progress=False)
        self._vocabulary: dict[str, int] = built.vocab_dict
        kept = built.scores
        self._weights = scipy.sparse.csr_matrix(
            (kept["data"].astype(np.float64), kept["indices"], kept["indptr"]),
            shape=(len(kept["indptr"]) - 1, len(texts)),
        )

    def _words(self, texts: Sequence[str], *, return_ids: bool) -> Any:
        import bm25s

        if self._signs:
            return _tokenized([split_signs(text) for text in texts], return_ids=return_ids)
        return bm25s.tokenize(
            list(texts),
            stopwords=self._stopwords,
            stemmer=self._stemmer,
            return_ids=return_ids,
            show_progress=False,
            **self._pattern,
        )

    def __len__(self) -> int:
        """Number of documents."""
        return int(self._weights.shape[1])

    def _counts(self, queries: Sequence[str]) -> Any:
        """Sparse counts of the vocabulary's words in each query."""
        known = [
            [self._vocabulary[word] for word in words if word in self._vocabulary]
            for words in self._words(queries, return_ids=False)
        ]
        ends = np.cumsum([0, *map(len, known)])
        ids = np.array([id for row in known for id in row], dtype=np.int64)
        return scipy.sparse.csr_matrix(
            (np.ones(len(ids)), ids, ends), shape=(len(queries), self._weights.shape[0])
        )

    def search(self, queries: Sequence[str], k: int) -> Found:
        """The k best documents that share a word with each query; see :meth:`Searcher.search`."""
        if k < 1:
            raise ConfigError(f"k must be 1 or more, got {k}")
        k = min(k, len(self))
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        step = max(1, _NUMBERS // len(self))
        for start in range(0, len(queries), step):
            found = self._counts(queries[start : start + step]) @ self._weights
            found.sort_indices()
            for at, (first, last) in enumerate(zip(found.indptr[:-1], found.indptr[1:], strict=True), start):
                values = found.data[first:last].astype(np.float32)
                keep = highest(values[None], k)[0]
                order = keep[np.argsort(-values[keep], kind="stable")]
                scores[at, : len(order)] = values[order]
                rows[at, : len(order)] = found.indices[first:last][order]
        return scores, rows

    def score(
        self, queries: Sequence[str], query: Int[np.ndarray, " pairs"], row: Int[np.ndarray, " pairs"]
    ) -> Float32[np.ndarray, " pairs"]:
        """Scores of chosen pairs, 0 for one without a shared word; see :meth:`Searcher.score`."""
        counts, out = self._counts(queries), np.empty(len(query), dtype=np.float32)
        for start in range(0, len(query), _PAIRS):
            part = slice(start, start + _PAIRS)
            chosen, where = np.unique(row[part], return_inverse=True)
            texts = self._weights[:, chosen].T.tocsr()[where.reshape(-1)]
            out[part] = np.asarray(counts[query[part]].multiply(texts).sum(axis=1)).reshape(-1)
        return out


def _tokenized(terms: list[list[str]], *, return_ids: bool) -> Any:
    """Terms of texts in the form that bm25s's own splitting gives."""
    from bm25s.tokenization import Tokenized

    if not return_ids:
        return terms
    vocabulary: dict[str, int] = {}
    ids = [[vocabulary.setdefault(term, len(vocabulary)) for term in text] for text in terms]
    return Tokenized(ids=ids, vocab=vocabulary)
