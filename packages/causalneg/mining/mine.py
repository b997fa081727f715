"""Hard negatives from the corpus: candidates of a search, rules, and a report.

Any search finds candidates for every query. Rules keep some of them: a window of ranks, bounds on the score,
a distance to the score of the positives, no known positive, not the query itself, no near-duplicate of a
positive. Of what is left the first are taken, or a random few. Everything is a function of the data, the
rules and the seed.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64

from causalneg.data import Dataset
from causalneg.data.schema import Example, Negative, Passage, Query
from causalneg.mining.candidates import Candidates, among
from causalneg.mining.near_duplicates import Shingles, mix
from causalneg.mining.report import MiningReport
from causalneg.mining.rules import Against, MiningRules, Pick
from common.errors import DataError
from common.ragged import Ragged

_BINS = 20


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
    of every query there with the same text; nor is the query itself, where it is a document too. Random picks
    depend on the seed, the query's id and the documents' ids alone: not on the order of queries, on other
    candidates, or on the machine.

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
    itself = Ragged.from_lists(dataset.identical(split, queries))
    chosen.exclude("the query itself", among(rows, itself, len(dataset.documents)))
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
    return among(rows, ragged, len(dataset.documents))


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
    seen = np.where(candidates.found, scores, np.inf)
    among = np.minimum.reduceat(seen, first)
    return np.where(np.isfinite(among), among, lowest)


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
    key = mix(mix(seeded ^ (asked << np.uint64(32)))[:, None] ^ documents[np.maximum(rows, 0)])
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
        positives_found=float(candidates.found.mean()),
        excluded=excluded,
        duplicates=len(negatives) - different,
        false_negatives=None if truth is None else wrong,
        judged=len(judged),
    )
