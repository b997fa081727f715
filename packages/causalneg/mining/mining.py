"""Hard negatives from the corpus: candidates of a search, rules, and a report; and a cache of embeddings.

A search (BM25 or dense) finds candidates for every query. Rules keep some of them: a window of ranks, bounds
on the score, a distance to the score of the positives, no known positive, no near-duplicate of one. Of what
is left the first are taken, or a random few. Everything is a function of the data, the rules and the seed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64, Shaped, UInt64

from causalneg.data.formats import Dataset
from causalneg.data.schema import Example, Negative, Passage, Query
from causalneg.search.search import BM25, Index, pair_scores, search
from common.errors import ConfigError, DataError
from common.files import atomic_path
from common.ragged import Ragged, span_positions

Pick = Literal["top", "random"]
Against = Literal["one", "all", "lowest"]

SHINGLE = 5
"""Words in a row that are compared to find near-duplicates."""

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
_WORK = 1 << 20  # sequences compared at a time
_BINS = 20
_CHECKED = 16_384  # cached embeddings in memory at a time


@dataclass(frozen=True)
class MiningRules:
    """Which candidates become negatives.

    With ``p`` the score of the positive it is compared to, a candidate of score ``s`` is kept if
    ``min_score <= s <= max_score``, ``s <= p - margin`` and ``s < p - (1 - relative_margin) |p|``.

    Source: NV-Retriever (Moreira et al. 2024) for the last, "positive-aware" rule, with 0.95.

    Args:
        count: Most negatives of a query.
        depth: How many documents a search returns for each query.
        first_rank: First rank looked at; 1 is the best document. Positives are ranked with the others.
        last_rank: Last rank looked at; None: ``depth``.
        pick: The best ranked, or any, in random order.
        max_score: Highest score.
        min_score: Lowest score.
        margin: How far below the positive's score, in units of the score.
        relative_margin: Share of the positive's score to stay below, such as 0.95. (sentence-transformers
            counts from the other end: its 0.05 is 0.95 here.)
        against: The positive that both margins mean, where a query has several. ``one``: it is enough that
            they hold against one, so the highest counts. ``all``: they must hold against every one, so the
            lowest counts. ``lowest``: the lowest of those that the search found within its depth, since a
            positive that the search does not see says nothing of what it ranks high; all, if it found none.
        near_duplicate: Share of common five-word sequences, of the shorter text's, from which on a candidate
            is the same text as a positive and left out; None: none is.
        distinct: The same between the negatives of one query; None: they may be alike.

    Raises:
        ConfigError: A rule is out of range.
    """

    count: int = 15
    depth: int = 100
    first_rank: int = 1
    last_rank: int | None = None
    pick: Pick = "top"
    max_score: float | None = None
    min_score: float | None = None
    margin: float | None = None
    relative_margin: float | None = None
    against: Against = "one"
    near_duplicate: float | None = 0.6
    distinct: float | None = None

    def __post_init__(self) -> None:
        """Check every rule."""
        found = [
            f"{name} must be 1 or more, got {value}"
            for name, value in (("count", self.count), ("depth", self.depth), ("first_rank", self.first_rank))
            if value < 1
        ]
        if not self.first_rank <= self.last <= self.depth:
            found.append(
                f"ranks must lie within the depth, first to last: got {self.first_rank} to {self.last}, "
                f"depth {self.depth}"
            )
        for name, chosen, choices in (
            ("pick", self.pick, get_args(Pick)),
            ("against", self.against, get_args(Against)),
        ):
            if chosen not in choices:
                found.append(f"{name} must be one of {', '.join(choices)}, got '{chosen}'")
        for name, share in (
            ("relative_margin", self.relative_margin),
            ("near_duplicate", self.near_duplicate),
            ("distinct", self.distinct),
        ):
            if share is not None and not 0 < share <= 1:
                found.append(f"{name} must be above 0 and at most 1, got {share}")
        if self.margin is not None and self.margin < 0:
            found.append(f"margin must not be negative, got {self.margin}")
        if self.min_score is not None and self.max_score is not None and self.min_score > self.max_score:
            found.append(f"min_score {self.min_score} is above max_score {self.max_score}")
        ConfigError.raise_if(found)

    @property
    def last(self) -> int:
        """Last rank looked at."""
        return self.depth if self.last_rank is None else self.last_rank


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


def _positives(dataset: Dataset, split: str) -> tuple[Ragged, Int64[np.ndarray, " positives"]]:
    """Rows of the positives of each query, and the position of the query of each."""
    rows = [[dataset.index[id] for id in ids] for ids in dataset.positives(split).values()]
    ragged = Ragged.from_lists(rows)
    return ragged, np.repeat(np.arange(len(ragged)), ragged.lengths)


def candidates_bm25(dataset: Dataset, split: str, depth: int, *, index: BM25 | None = None) -> Candidates:
    """What BM25 finds for the queries of a split.

    Args:
        dataset: The data.
        split: Its queries.
        depth: Documents for each query.
        index: BM25 over the documents; None: with its defaults.
    """
    if index is None:
        index = BM25([document.content for document in dataset.documents])
    texts = [query.text for query in dataset.split_queries(split)]
    positives, query = _positives(dataset, split)
    scores, rows = index.search(texts, depth)
    return Candidates(scores, rows, positives, index.score(texts, query, positives.values))


def candidates_dense(
    dataset: Dataset,
    split: str,
    query_embeddings: Float[np.ndarray, "queries dim"],
    document_embeddings: Float[np.ndarray, "documents dim_too"],
    depth: int,
    *,
    index: Index = "exact",
    devices: Sequence[str] = (),
    block: int = 16_384,
) -> Candidates:
    """What inner products of embeddings find for the queries of a split.

    Args:
        dataset: The data.
        split: Its queries.
        query_embeddings: One row for each of ``dataset.split_queries(split)``.
        document_embeddings: One row for each document; may be memory-mapped.
        depth: Documents for each query.
        index: As for :func:`causalneg.search.search.search`.
        devices: As for :func:`causalneg.search.search.search`.
        block: As for :func:`causalneg.search.search.search`.

    Raises:
        DataError: The numbers of rows or dimensions do not fit, or an embedding is not finite.
    """
    positives, query = _positives(dataset, split)
    for name, found, wanted in (
        ("query", len(query_embeddings), len(positives)),
        ("document", len(document_embeddings), len(dataset.documents)),
    ):
        if found != wanted:
            raise DataError(
                f"there are {found} {name} embeddings, but {wanted} in {dataset.path}; encode again"
            )
    scores, rows = search(
        query_embeddings, document_embeddings, depth, index=index, devices=devices, block=block
    )
    own = pair_scores(query_embeddings, document_embeddings, query, positives.values)
    return Candidates(scores, rows, positives, own)


# --- Near-duplicates ------------------------------------------------------------------------------------


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
        hashes = _mix(hashes)
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


def _mix(values: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """Splitmix64: a bijection of 64-bit numbers that looks random. Source: Steele et al. 2014."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values ^= values >> np.uint64(shift)
        values *= np.uint64(factor)
    values ^= values >> np.uint64(31)
    return values


# --- Rules ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MiningReport:
    """What was mined, and why not more.

    Args:
        split: Queries mined for.
        backend: What found the candidates.
        seed: Seed of the random picks.
        rules: The rules.
        queries: Number of queries.
        negatives: Number of negatives.
        documents: Number of different documents among them.
        per_query: Number of queries by number of negatives.
        ranks: Number of negatives by first and last rank of a range.
        score_edges: Ends of the ranges of score.
        negative_scores: Number of negatives by range of score.
        positive_scores: Number of positives by range of score.
        positives_found: Share of the positives within the depth of the search.
        excluded: Number of candidates in the window by the first rule that left them out.
        duplicates: Negatives whose content another negative of the same query has, letter by letter.
        false_negatives: Negatives that are positives by the truth; None where none is known.
        judged: Negatives of the queries that the truth knows.
        texts_cut: Queries and documents longer than the encoder takes; their ends were not read.
    """

    split: str
    backend: str
    seed: int
    rules: dict[str, Any]
    queries: int
    negatives: int
    documents: int
    per_query: dict[int, int]
    ranks: list[tuple[int, int, int]]
    score_edges: list[float]
    negative_scores: list[int]
    positive_scores: list[int]
    positives_found: float
    excluded: dict[str, int]
    duplicates: int
    false_negatives: int | None = None
    judged: int = 0
    texts_cut: int = 0

    @property
    def false_negative_rate(self) -> float | None:
        """Share of false negatives among the negatives whose truth is known; None where none is."""
        return None if self.false_negatives is None or not self.judged else self.false_negatives / self.judged

    def to_json(self) -> str:
        """The report as a JSON object."""
        values = dataclasses.asdict(self) | {"false_negative_rate": self.false_negative_rate}
        return json.dumps(values, indent=2, ensure_ascii=False)

    def to_markdown(self) -> str:
        """The report as tables."""
        few = sum(queries for count, queries in self.per_query.items() if count < self.rules["count"])
        rows = {
            "queries": f"{self.queries:,}",
            "negatives": f"{self.negatives:,} ({self.negatives / max(1, self.queries):.1f} a query)",
            "queries with fewer than asked for": f"{few:,} ({self.per_query.get(0, 0):,} with none)",
            "different documents": f"{self.documents:,}",
            "same text twice for one query": f"{self.duplicates:,}",
            "positives that the search found": f"{self.positives_found:.1%}",
        }
        if self.false_negative_rate is not None:
            rows["false negatives"] = f"{self.false_negatives:,} ({self.false_negative_rate:.2%})"
        if self.texts_cut:
            rows["texts longer than the encoder takes"] = f"{self.texts_cut:,}"
        lines = [f"Mined for {self.split} with {self.backend}, seed {self.seed}", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in rows.items()]
        lines += ["", "| left out | candidates |", "|---|---:|"]
        lines += [f"| {name} | {count:,} |" for name, count in self.excluded.items()]
        lines += ["", "| ranks | negatives |", "|---|---:|"]
        lines += [f"| {first}-{last} | {count:,} |" for first, last, count in self.ranks]
        lines += ["", "| score | negatives | positives |", "|---|---:|---:|"]
        for at, (negatives, positives) in enumerate(
            zip(self.negative_scores, self.positive_scores, strict=True)
        ):
            low, high = self.score_edges[at : at + 2]
            lines.append(f"| {low:.3g} to {high:.3g} | {negatives:,} | {positives:,} |")
        return "\n".join(lines) + "\n"


class _Selection:
    """The candidates of a window of ranks while rule after rule leaves some out."""

    def __init__(self, rows: Int64[np.ndarray, "queries window"]) -> None:
        self.rows = rows
        self.keep: Bool[np.ndarray, "queries window"] = rows >= 0
        self.excluded: dict[str, int] = {}

    def exclude(self, rule: str, bad: Bool[np.ndarray, "queries window"]) -> None:
        """Leave out what a rule finds bad, and count what no rule before left out."""
        self.excluded[rule] = int(np.count_nonzero(self.keep & bad))
        self.keep = self.keep & ~bad


def mine(
    dataset: Dataset,
    split: str,
    candidates: Candidates,
    rules: MiningRules,
    *,
    backend: str = "bm25",
    model: str = "",
    seed: int = 0,
    known: Sequence[str] = (),
    truth: Mapping[str, Mapping[str, int]] | None = None,
) -> tuple[list[Example], MiningReport]:
    """Choose negatives for every query of a split.

    Known positives of a query are never chosen: those of ``split`` and of the splits in ``known``, and those
    of every query there with the same text. Random picks depend on the seed, the query's id and the
    documents' ids alone: not on the order of queries, on other candidates, or on the machine.

    Args:
        dataset: The data.
        split: Its queries; each becomes an example, with negatives or without.
        candidates: What a search found for them.
        rules: What is kept.
        backend: Name of the search, for the record of each negative.
        model: Name of the encoder behind it, likewise.
        seed: Decides random picks.
        known: Further splits whose positives are known.
        truth: Grades that the rules must not see, to count the false negatives with.

    Returns:
        The examples, which name documents by id, in the order of the queries; and the report.

    Raises:
        DataError: The candidates are not of these queries, or not as deep as the rules.
    """
    queries = dataset.split_queries(split)
    if not queries:
        raise DataError(f"{dataset.path}: split '{split}' has no query with a positive")
    if len(candidates.rows) != len(queries):
        raise DataError(f"candidates of {len(candidates.rows)} queries for the {len(queries)} of '{split}'")
    depth = candidates.rows.shape[1]
    if depth < min(rules.depth, len(dataset.documents)):
        raise DataError(f"candidates hold {depth} documents a query, the rules ask for {rules.depth}")
    window = slice(rules.first_rank - 1, rules.last)
    rows, scores = candidates.rows[:, window], candidates.scores[:, window].astype(np.float64)
    chosen = _Selection(rows)
    chosen.exclude("known positive", _known(dataset, queries, [split, *known], rows))
    _exclude_by_score(chosen, scores, candidates, rules)
    order = _order(dataset, queries, rows, rules.pick, seed)
    if rules.near_duplicate is not None or rules.distinct is not None:
        used = np.unique(np.concatenate((rows[chosen.keep], candidates.positives.values)))
        shingles = Shingles(dataset.documents[row].content for row in used)
        if rules.near_duplicate is not None:
            bad = _near_positive(shingles, used, chosen, candidates.positives, rules.near_duplicate)
            chosen.exclude("near-duplicate of a positive", bad)
        if rules.distinct is not None:
            _exclude_alike(shingles, used, chosen, order, rules.count, rules.distinct)
    picked = _picked(chosen.keep, order, rules.count)
    examples = [
        Example(
            query=query,
            positives=[Passage(document_id=dataset.documents[row].id) for row in candidates.positives[at]],
            negatives=[
                Negative(
                    document_id=dataset.documents[rows[at, place]].id,
                    source="mined",
                    backend=backend,
                    model=model,
                    seed=seed,
                    rank=rules.first_rank + int(place),
                    score=float(scores[at, place]),
                )
                for place in places[places >= 0]
            ],
        )
        for at, (query, places) in enumerate(zip(queries, picked, strict=True))
    ]
    return examples, _report(
        dataset, split, candidates, rules, chosen.excluded, examples, backend, seed, truth
    )


def _known(
    dataset: Dataset,
    queries: Sequence[Query],
    splits: Sequence[str],
    rows: Int64[np.ndarray, "queries window"],
) -> Bool[np.ndarray, "queries window"]:
    """Which candidates are known positives of their query, or of one with the same text."""
    by_text: dict[str, set[int]] = {}
    for split in splits:
        for id, documents in dataset.positives(split).items():
            text = dataset.queries[id].text.strip().casefold()
            by_text.setdefault(text, set()).update(dataset.index[document] for document in documents)
    known = [sorted(by_text[query.text.strip().casefold()]) for query in queries]
    ragged = Ragged.from_lists(known)
    return _among(rows, ragged, len(dataset.documents))


def _among(
    rows: Int64[np.ndarray, "queries window"], sets: Ragged, documents: int
) -> Bool[np.ndarray, "queries window"]:
    """Which rows are in the set of their query."""
    owner = np.repeat(np.arange(len(sets)), sets.lengths)
    keys = np.arange(len(rows))[:, None] * documents + rows
    return np.asarray(_within(keys, owner * documents + sets.values) & (rows >= 0))


def _within(values: Int64[np.ndarray, "..."], known: Int64[np.ndarray, " known"]) -> Bool[np.ndarray, "..."]:
    """Which values are among the known ones; as numpy's isin, which takes seven times the arrays' memory."""
    if not len(known):
        return np.zeros(values.shape, dtype=bool)
    known = np.sort(known)
    place = np.searchsorted(known, values)
    np.minimum(place, len(known) - 1, out=place)
    return np.asarray(known[place] == values)


def _exclude_by_score(
    chosen: _Selection,
    scores: Float64[np.ndarray, "queries window"],
    candidates: Candidates,
    rules: MiningRules,
) -> None:
    if rules.min_score is not None:
        chosen.exclude("below the minimum score", scores < rules.min_score)
    if rules.max_score is not None:
        chosen.exclude("above the maximum score", scores > rules.max_score)
    if rules.margin is None and rules.relative_margin is None:
        return
    positive = _compared(candidates, rules.against)[:, None]
    if rules.margin is not None:
        chosen.exclude("within the margin of the positive", scores > positive - rules.margin)
    if rules.relative_margin is not None:
        limit = positive - (1 - rules.relative_margin) * np.abs(positive)
        chosen.exclude("within the relative margin of the positive", scores >= limit)


def _compared(candidates: Candidates, against: Against) -> Float64[np.ndarray, " queries"]:
    """The positive score of each query that margins mean."""
    scores, first = candidates.positive_scores.astype(np.float64), candidates.positives.offsets[:-1]
    if against == "one":
        return np.asarray(np.maximum.reduceat(scores, first))
    lowest = np.minimum.reduceat(scores, first)
    if against == "all":
        return np.asarray(lowest)
    seen = np.where(_found(candidates), scores, np.inf)
    among = np.minimum.reduceat(seen, first)
    return np.where(np.isfinite(among), among, lowest)


def _found(candidates: Candidates) -> Bool[np.ndarray, " positives"]:
    """Which positives are among the candidates of their query."""
    largest = 1 + max(candidates.rows.max(initial=0), candidates.positives.values.max(initial=0))
    query = np.repeat(np.arange(len(candidates.positives)), candidates.positives.lengths)
    keys = np.arange(len(candidates.rows))[:, None] * largest + candidates.rows
    return _within(query * largest + candidates.positives.values, keys[candidates.rows >= 0])


def _near_positive(
    shingles: Shingles,
    used: Int64[np.ndarray, " texts"],
    chosen: _Selection,
    positives: Ragged,
    least: float,
) -> Bool[np.ndarray, "queries window"]:
    """Which of the candidates left are the same text as a positive of their query.

    ``used`` are the rows, in rising order, whose sequences ``shingles`` has.
    """
    query, place = np.nonzero(chosen.keep)
    each = positives.lengths[query]
    candidate = np.repeat(chosen.rows[query, place], each)
    positive = positives.gather(query).values
    share = shingles.share(np.searchsorted(used, candidate), np.searchsorted(used, positive))
    bad = np.zeros_like(chosen.keep)
    hit = np.repeat(np.arange(len(query)), each)[share >= least]
    bad[query[hit], place[hit]] = True
    return bad


def _order(
    dataset: Dataset,
    queries: Sequence[Query],
    rows: Int64[np.ndarray, "queries window"],
    pick: Pick,
    seed: int,
) -> Int64[np.ndarray, "queries window"]:
    """Places of the window in the order in which they are taken."""
    if pick == "top":
        return np.tile(np.arange(rows.shape[1]), (len(rows), 1))
    documents = np.array(
        [zlib.crc32(document.id.encode()) for document in dataset.documents], dtype=np.uint64
    )
    asked = np.array([zlib.crc32(query.id.encode()) for query in queries], dtype=np.uint64)
    seeded = np.array([zlib.crc32(str(seed).encode())], dtype=np.uint64)
    key = _mix(_mix(seeded ^ (asked << np.uint64(32)))[:, None] ^ documents[np.maximum(rows, 0)])
    return np.argsort(key, axis=1, kind="stable")


def _picked(
    keep: Bool[np.ndarray, "queries window"], order: Int64[np.ndarray, "queries window"], count: int
) -> Int64[np.ndarray, "queries chosen"]:
    """The first places in this order that are kept; -1 where there are no more."""
    kept = np.take_along_axis(keep, order, 1)
    first = np.argsort(~kept, axis=1, kind="stable")[:, :count]
    places = np.take_along_axis(order, first, 1)
    return np.where(np.take_along_axis(kept, first, 1), places, -1)


def _exclude_alike(
    shingles: Shingles,
    used: Int64[np.ndarray, " texts"],
    chosen: _Selection,
    order: Int64[np.ndarray, "queries window"],
    count: int,
    least: float,
) -> None:
    """Leave out whatever is the same text as a negative taken before it, until nothing is."""
    total = 0
    while True:
        places = _picked(chosen.keep, order, count)
        earlier, later = np.triu_indices(places.shape[1], 1)
        at, pair = np.nonzero((places[:, earlier] >= 0) & (places[:, later] >= 0))
        texts = np.searchsorted(used, np.take_along_axis(chosen.rows, np.maximum(places, 0), 1))
        share = shingles.share(texts[at, earlier[pair]], texts[at, later[pair]])
        same = np.zeros((len(places), places.shape[1], places.shape[1]), dtype=bool)
        same[at, earlier[pair], later[pair]] = share >= least
        alike = np.zeros(places.shape, dtype=bool)
        for new in range(1, places.shape[1]):
            alike[:, new] = (same[:, :new, new] & ~alike[:, :new]).any(axis=1)
        if not alike.any():
            chosen.excluded["near-duplicate of a negative"] = total
            return
        total += int(np.count_nonzero(alike))
        at, column = np.nonzero(alike)
        chosen.keep[at, places[at, column]] = False


def _report(
    dataset: Dataset,
    split: str,
    candidates: Candidates,
    rules: MiningRules,
    excluded: dict[str, int],
    examples: Sequence[Example],
    backend: str,
    seed: int,
    truth: Mapping[str, Mapping[str, int]] | None,
) -> MiningReport:
    negatives = [(example.query.id, negative) for example in examples for negative in example.negatives]
    edges = np.unique(np.linspace(rules.first_rank, rules.last + 1, 11).round().astype(int))
    rank_counts = np.histogram([negative.rank or 0 for _, negative in negatives], bins=edges)[0]
    scores = np.array([negative.score for _, negative in negatives], dtype=np.float64)
    both = np.concatenate((scores, candidates.positive_scores.astype(np.float64)))
    score_edges = np.histogram_bin_edges(both, bins=_BINS)
    different = sum(
        len({dataset.document(negative.document_id or "").content for negative in example.negatives})
        for example in examples
    )
    judged = [
        (truth[query], negative.document_id) for query, negative in negatives if truth and query in truth
    ]
    wrong = sum(grades.get(document or "", 0) > 0 for grades, document in judged)
    counts = Counter(len(example.negatives) for example in examples)
    return MiningReport(
        split=split,
        backend=backend,
        seed=seed,
        rules=dataclasses.asdict(rules),
        queries=len(examples),
        negatives=len(negatives),
        documents=len({negative.document_id for _, negative in negatives}),
        per_query=dict(sorted(counts.items())),
        ranks=[
            (int(first), int(after) - 1, int(count))
            for first, after, count in zip(edges[:-1], edges[1:], rank_counts, strict=True)
        ],
        score_edges=score_edges.tolist(),
        negative_scores=np.histogram(scores, bins=score_edges)[0].tolist(),
        positive_scores=np.histogram(candidates.positive_scores, bins=score_edges)[0].tolist(),
        positives_found=float(_found(candidates).mean()),
        excluded=excluded,
        duplicates=len(negatives) - different,
        false_negatives=None if truth is None else wrong,
        judged=len(judged),
    )


# --- Cache of embeddings --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """A file of embeddings and the file of their keys, which is written last."""

    folder: Path
    name: str

    @property
    def vectors(self) -> Path:
        return self.folder / f"{self.name}.npy"

    @property
    def keys(self) -> Path:
        return self.folder / f"{self.name}.keys.npy"

    def open(self, dim: int) -> tuple[np.ndarray, Float32[np.ndarray, "texts dim"]]:
        """Keys and embeddings; the latter memory-mapped."""
        keys, vectors = _load(self.keys), _load(self.vectors, mapped=True)
        if vectors.ndim != 2 or vectors.shape[1] != dim:
            found = vectors.shape[1] if vectors.ndim == 2 else f"shape {vectors.shape}"
            raise DataError(
                f"{self.vectors}: cached embeddings have dimension {found}, the encoder gives {dim}; "
                f"remove the folder {self.folder}"
            )
        if len(vectors) != len(keys) or vectors.dtype != np.float32:
            raise DataError(f"{self.vectors}: does not fit its keys; remove the folder {self.folder}")
        for start in range(0, len(vectors), _CHECKED):
            bad = ~np.isfinite(vectors[start : start + _CHECKED]).all(axis=1)
            if bad.any():
                row = start + int(np.argmax(bad))
                raise DataError(
                    f"{self.vectors}: the cached embedding in row {row} is not finite; "
                    f"remove the folder {self.folder}"
                )
        return keys, vectors

    def write(self, keys: np.ndarray, fill: Callable[[np.ndarray], None], dim: int) -> None:
        with atomic_path(self.vectors) as temporary:
            array = np.lib.format.open_memmap(temporary, "w+", np.float32, (len(keys), dim))
            fill(array)
            array.flush()
        with atomic_path(self.keys) as temporary, temporary.open("wb") as file:
            np.save(file, keys, allow_pickle=False)


def _load(path: Path, *, mapped: bool = False) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove the folder {path.parent}") from error
    return array


def _text_keys(texts: Sequence[str]) -> np.ndarray:
    """A hash of each text, 16 bytes."""
    digests = (
        hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest() for text in texts
    )
    return np.frombuffer(b"".join(digests), dtype="S16")


def cached_embeddings(
    encode: Callable[[list[str]], Float[np.ndarray, "some dim"]],
    texts: Sequence[str],
    cache: Path | None,
    fingerprint: str,
    dim: int,
    *,
    block: int = 16_384,
) -> Float[np.ndarray, "texts dim"]:
    """Embeddings of texts; a text that this encoder has encoded before is read, not encoded.

    The folder of an encoder holds one pair of files for each list of texts: ``NAME.npy`` with the embeddings
    and ``NAME.keys.npy`` with the hashes of the texts. New texts are encoded in blocks, each written at once,
    so a run that is killed loses one block. Runs may share a cache at the same time.

    Args:
        encode: Gives the embeddings of some texts, in their order.
        texts: The texts.
        cache: Folder of the cache; None: nothing is kept, and the result is in memory.
        fingerprint: Identity of the encoder, weights and settings.
        dim: Dimension of its embeddings.
        block: Texts encoded and written at a time.

    Returns:
        One row for each text; memory-mapped and read-only with a cache.

    Raises:
        DataError: Embeddings have the wrong shape or are not finite, or a cached file is damaged or has
            another dimension.
    """
    if cache is None:
        out = np.empty((len(texts), dim), dtype=np.float32)
        for start in range(0, len(texts), block):
            out[start : start + block] = _encoded(encode, list(texts[start : start + block]), dim)
        return out
    if not len(texts):
        return np.zeros((0, dim), dtype=np.float32)
    folder = Path(cache) / hashlib.blake2b(fingerprint.encode(), digest_size=12).hexdigest()
    keys = _text_keys(texts)
    whole = _Part(folder, hashlib.blake2b(keys.tobytes(), digest_size=12).hexdigest())
    if whole.keys.is_file() and whole.vectors.is_file():
        return whole.open(dim)[1]
    store = _Store(folder, dim)
    different, first = np.unique(keys, return_index=True)
    missing = np.sort(first[~np.isin(different, store.keys())])
    for start in range(0, len(missing), block):
        chosen = missing[start : start + block]
        store.add(keys[chosen], _encoded(encode, [texts[at] for at in chosen], dim))
    whole.write(keys, lambda out: store.copy(keys, out, block), dim)
    store.remove_blocks(keys)
    return whole.open(dim)[1]


def _encoded(
    encode: Callable[[list[str]], Float[np.ndarray, "some dim"]], texts: list[str], dim: int
) -> Float32[np.ndarray, "some dim"]:
    vectors = np.asarray(encode(texts), dtype=np.float32)
    if vectors.shape != (len(texts), dim):
        raise DataError(
            f"the encoder gave embeddings of shape {vectors.shape} for {len(texts)} texts of dimension {dim}"
        )
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        text = texts[int(np.argmax(bad))]
        raise DataError(f"the encoder gave an embedding that is not finite for the text '{text[:60]}'")
    return vectors


class _Store:
    """All embeddings that an encoder's folder holds, by key; files once open stay readable when removed."""

    def __init__(self, folder: Path, dim: int) -> None:
        self._folder, self._dim = folder, dim
        self._parts: list[tuple[_Part, np.ndarray, np.ndarray]] = []
        for path in sorted(folder.glob("*.keys.npy")):
            part = _Part(folder, path.name.removesuffix(".keys.npy"))
            try:
                self._parts.append((part, *part.open(dim)))
            except FileNotFoundError:  # another run has just put this block into its whole list
                continue

    def keys(self) -> np.ndarray:
        """Keys of all embeddings."""
        return np.concatenate([np.zeros(0, dtype="S16"), *(keys for _, keys, _ in self._parts)])

    def add(self, keys: np.ndarray, vectors: Float32[np.ndarray, "texts dim"]) -> None:
        """Write a block."""
        part = _Part(self._folder, f"block-{hashlib.blake2b(keys.tobytes(), digest_size=12).hexdigest()}")

        def fill(out: np.ndarray) -> None:
            out[:] = vectors

        part.write(keys, fill, self._dim)
        self._parts.append((part, *part.open(self._dim)))

    def copy(self, keys: np.ndarray, out: np.ndarray, block: int) -> None:
        """Copy the embeddings of keys, in their order."""
        for _, own, vectors in self._parts:
            order = np.argsort(own, kind="stable")
            place = np.searchsorted(own, keys, sorter=order)
            row = order[np.minimum(place, len(own) - 1)]
            wanted = np.flatnonzero(own[row] == keys)
            for start in range(0, len(wanted), block):
                some = wanted[start : start + block]
                out[some] = vectors[row[some]]

    def remove_blocks(self, keys: np.ndarray) -> None:
        """Remove the blocks that hold nothing but these keys."""
        for part, own, _ in self._parts:
            if part.name.startswith("block-") and np.isin(own, keys).all():
                part.keys.unlink(missing_ok=True)
                part.vectors.unlink(missing_ok=True)
