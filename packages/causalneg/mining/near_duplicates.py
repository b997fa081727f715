"""Near-duplicates: pairs of texts that share most of their five-word sequences."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float64, Int, Int64, Shaped, UInt64

from common.ragged import span_positions

SHINGLE = 5
"""Words in a row that are compared to find near-duplicates."""

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
_WORK = 1 << 20  # sequences compared at a time


class Shingles:
    """Five-word sequences of texts, to compare pairs of them.

    ``share(a, b) = |S_a and S_b| / min(|S_a|, |S_b|)``, S the set of five-word sequences (of the whole text
    where it is shorter); at least the Jaccard index. Words are in lower case, a Chinese or Japanese letter
    is a word of its own. Sequences are compared by a 64-bit hash.

    Args:
        texts: The texts.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        hashes, ends = _sequences(texts)
        text = np.repeat(np.arange(len(ends) - 1, dtype=np.int32), np.diff(ends))
        order = np.argsort(hashes, kind="stable")
        hashes, text = hashes[order], text[order]
        once = _differs(hashes) | _differs(text)  # the same sequence again in a text says nothing new
        hashes, text = hashes[once], text[once]
        self._sizes = np.bincount(text, minlength=len(ends) - 1)
        starts = np.flatnonzero(_differs(hashes))
        holders = np.diff(starts, append=len(text))
        # Nor does one that no other text has: it counts in the size alone.
        text = text[np.repeat(holders > 1, holders)]
        self._texts = scipy.sparse.csr_matrix(
            (
                np.ones(len(text), dtype=np.float32),
                text,
                np.concatenate(([0], np.cumsum(holders[holders > 1]))),
            ),
            shape=(np.count_nonzero(holders > 1), len(ends) - 1),
        )
        self._sets = self._texts.T.tocsr()

    def share(
        self, first: Int[np.ndarray, " pairs"], second: Int[np.ndarray, " pairs"]
    ) -> Float64[np.ndarray, " pairs"]:
        """Share of common sequences of pairs of texts, 0 for a text without words.

        Args:
            first: Position of one text of each pair.
            second: Position of the other.
        """
        texts = len(self._sizes)
        keys, where = np.unique(first * np.int64(texts) + second, return_inverse=True)
        one, other = np.divmod(keys, max(1, texts))
        common = np.zeros(len(keys))
        rows = np.unique(one)
        # Steps so small that what the sets have in common with all texts fits into memory.
        work = np.cumsum(self._sets[rows] @ np.diff(self._texts.indptr)) // _WORK
        for step in np.unique(work):
            some = rows[work == step]
            products = self._sets[some] @ self._texts
            products.sort_indices()
            found = np.repeat(some, np.diff(products.indptr)) * np.int64(texts) + products.indices
            part = slice(*np.searchsorted(one, (some[0], some[-1] + 1)))
            place = np.minimum(np.searchsorted(found, keys[part]), max(0, len(found) - 1))
            if len(found):
                common[part] = np.where(found[place] == keys[part], products.data[place], 0)
        shorter = np.minimum(self._sizes[one], self._sizes[other])
        common = np.where(one == other, shorter, common)  # those of one text alone are not in the sets
        return np.asarray((common / np.maximum(shorter, 1))[where])


def _sequences(
    texts: Iterable[str],
) -> tuple[UInt64[np.ndarray, " sequences"], Int64[np.ndarray, " texts_plus_one"]]:
    """Hashes of the sequences of each text, one text after the other, and where each ends."""
    known: dict[str, int] = {}
    words, ends = array("Q"), [0]
    for text in texts:
        words.extend(_word_hash(word, known) for word in _WORD.findall(text.casefold()))
        if len(words) > ends[-1]:
            words.extend([0] * (SHINGLE - (len(words) - ends[-1])))
        ends.append(len(words))
    values, begin = np.frombuffer(words, dtype=np.uint64), np.array(ends, dtype=np.int64)
    hashes = np.zeros(max(0, len(values) - SHINGLE + 1), dtype=np.uint64)
    for step in range(SHINGLE):
        hashes ^= values[step : step + len(hashes)]
        hashes = mix(hashes)
    each = np.maximum(np.diff(begin) - SHINGLE + 1, 0)
    return hashes[span_positions(begin[:-1], each)], np.concatenate(([0], np.cumsum(each)))


def _differs(values: Shaped[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Whether each value differs from the one before it; the first does."""
    return np.concatenate((np.ones(min(1, len(values)), dtype=bool), values[1:] != values[:-1]))


def _word_hash(word: str, known: dict[str, int]) -> int:
    if word not in known:
        digest = hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest()
        known[word] = int.from_bytes(digest, "little") | 1
    return known[word]


def mix(values: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """Splitmix64: a bijection of 64-bit numbers that looks random. Source: Steele et al. 2014."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values ^= values >> np.uint64(shift)
        values *= np.uint64(factor)
    values ^= values >> np.uint64(31)
    return values
