"""Retrieval metrics per query, and run files, both as trec_eval has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytrec_eval

from common.errors import ConfigError, DataError, suggest
from common.files import atomic_path

Run = Mapping[str, Mapping[str, float]]
"""Score by query id, then document id."""


@dataclass(frozen=True)
class RetrievalMetrics:
    """Metrics of one run.

    Args:
        per_query: Value by metric (``"ndcg@10"``), then query id, in the order of the qrels.
        mean: Mean of each metric over these queries.
        missing: How many of these queries the run lacks or has nothing for; they count 0.
        without_positive: How many queries of the qrels have no positive and are left out.
    """

    per_query: dict[str, dict[str, float]]
    mean: dict[str, float]
    missing: int
    without_positive: int

    @property
    def queries(self) -> int:
        """Number of queries in every mean."""
        return len(next(iter(self.per_query.values()), {}))


def _checked(run: Run) -> dict[str, dict[str, float]]:
    """The run as trec_eval takes it; queries without documents are left out."""
    out = {
        query: {document: float(score) for document, score in scores.items()}
        for query, scores in run.items()
        if scores
    }
    for query, scores in out.items():
        if not all(map(math.isfinite, scores.values())):
            document = next(document for document, score in scores.items() if not math.isfinite(score))
            raise DataError(
                f"run: query '{query}', document '{document}': score {scores[document]} is not finite"
            )
    return out


class JudgedRun:
    """A run with the judgements that it is measured by: what a measure is given.

    Args:
        run: Scores by query id, then document id; finite.
        qrels: Grades of the queries that are measured, none negative; each query has a positive.
    """

    def __init__(self, run: Mapping[str, dict[str, float]], qrels: Mapping[str, dict[str, int]]) -> None:
        self.qrels = qrels
        self.run = {query: run[query] for query in qrels if query in run}
        self._trec: dict[str, dict[str, float]] = {}

    def ranking(self, query: str) -> list[str]:
        """Documents of a query, best first; equal scores (32 bits) by id, the last in byte order first."""
        return _ranked(self.run.get(query, {}))

    def trec(self, measure: str) -> dict[str, float]:
        """A measure of trec_eval by query, such as ``"ndcg_cut.10"``; 0 for queries without documents."""
        if measure not in self._trec:
            values = pytrec_eval.RelevanceEvaluator(self.qrels, {measure}).evaluate(self.run)
            key = measure.replace(".", "_")
            self._trec[measure] = {
                query: float(values[query][key]) if query in self.run else 0.0 for query in self.qrels
            }
        return self._trec[measure]


Measure = Callable[[JudgedRun, int | None], Mapping[str, float]]
"""Gives the value of every query of a run at a cut-off; None: of the whole run."""


def _trec(name: str) -> Measure:
    """A measure of trec_eval, with a cut-off where one is given."""
    return lambda judged, cut: judged.trec(name if cut is None else f"{name}.{cut}")


def ndcg(judged: JudgedRun, cut: int | None) -> Mapping[str, float]:
    """``DCG / ideal DCG``, ``DCG = sum_{rank <= k} grade / log2(rank + 1)``.

    Source: Järvelin and Kekäläinen 2002, with the grade itself as the gain, as trec_eval has it.
    """
    return judged.trec("ndcg" if cut is None else f"ndcg_cut.{cut}")


def mrr(judged: JudgedRun, cut: int | None) -> Mapping[str, float]:
    """``1 / rank`` of the first positive, 0 if it is not among the first k."""
    values = judged.trec("recip_rank")
    return {query: value if cut is None or value >= 1 / cut else 0.0 for query, value in values.items()}


def average_precision(judged: JudgedRun, cut: int | None) -> Mapping[str, float]:
    """Mean over the positives of the precision at the rank of each, 0 for one beyond the first k."""
    return judged.trec("map" if cut is None else f"map_cut.{cut}")


RETRIEVAL_MEASURES: dict[str, Measure] = {
    "ndcg": ndcg,
    "recall": _trec("recall"),
    "mrr": mrr,
    "map": average_precision,
    "precision": _trec("P"),
    "success": _trec("success"),
}
"""Measures by name: share of the positives among the first k (recall), share of the first k that are positive
(precision), whether any is (success). A new one is a function and a line here."""

MEASURES = ("ndcg@10", "recall@10", "recall@100", "mrr@10")
"""What is measured where nothing else is asked for."""


def parse_measure(name: str) -> tuple[str, int | None]:
    """Family and cut-off of a measure: ``"ndcg@10"`` is nDCG of the first ten.

    Raises:
        ConfigError: There is no such measure, or the cut-off is no number above 0.
    """
    family, at, cut = name.partition("@")
    if family not in RETRIEVAL_MEASURES:
        there = ", ".join(RETRIEVAL_MEASURES)
        raise ConfigError(
            f"there is no measure '{name}'{suggest(family, RETRIEVAL_MEASURES) or f'; there are {there}'}"
        )
    if at and not (cut.isascii() and cut.isdecimal() and int(cut) >= 1):
        raise ConfigError(f"measure '{name}': the cut-off behind @ must be a whole number of 1 or more")
    if not at and family in ("recall", "precision", "success"):
        raise ConfigError(f"measure '{name}' needs a cut-off, such as {name}@10")
    return family, int(cut) if at else None


def retrieval_metrics(
    run: Run, qrels: Mapping[str, Mapping[str, int]], measures: Sequence[str] = MEASURES
) -> RetrievalMetrics:
    """Measures of a run, per query and on average; see :data:`RETRIEVAL_MEASURES`.

    A grade above 0 is positive; a negative grade counts as 0. Documents without a grade count 0. Documents
    are put in order by score, rounded to 32 bits; equal ones by document id, the LAST in byte order first:
    trec_eval's rule, whatever order the run is in. So a system that gives equal scores is measured at an
    arbitrary, but fixed, order.

    Args:
        run: Scores; queries that the qrels lack are ignored.
        qrels: Grades.
        measures: Names, such as ``"ndcg@10"``.

    Raises:
        ConfigError: There is no such measure.
        DataError: No query has a positive, or a score is not finite.
    """
    chosen = {name: parse_measure(name) for name in measures}
    positive = {
        query: {document: max(int(grade), 0) for document, grade in grades.items()}
        for query, grades in qrels.items()
        if any(grade > 0 for grade in grades.values())
    }
    if not positive:
        raise DataError(f"none of the {len(qrels)} queries of the qrels has a positive")
    judged = JudgedRun(_checked({query: run[query] for query in positive if query in run}), positive)
    per_query = {
        name: dict(RETRIEVAL_MEASURES[family](judged, cut)) for name, (family, cut) in chosen.items()
    }
    return RetrievalMetrics(
        per_query=per_query,
        mean={name: math.fsum(of.values()) / len(of) for name, of in per_query.items()},
        missing=len(positive) - len(judged.run),
        without_positive=len(qrels) - len(positive),
    )


def _word(text: str, what: str) -> str:
    if not text or text.split() != [text]:
        raise DataError(f"{what} {text!r} cannot stand in a TREC file: it must be one word without spaces")
    return text


def write_trec(path: Path, run: Run, tag: str) -> None:
    """Write a run file, whole or not at all: ``query Q0 document rank score tag``, rank 1 first.

    The order within a query is the one that :func:`retrieval_metrics` measures; scores keep every digit.

    Args:
        path: The file; one already there is replaced.
        run: Scores.
        tag: Name of the system, one word.

    Raises:
        DataError: An id or the tag is not one word, or a score is not finite.
    """
    _word(tag, "tag")
    with atomic_path(Path(path)) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for query, scores in _checked(run).items():
            _word(query, "query id")
            for rank, document in enumerate(_ranked(scores), start=1):
                _word(document, "document id")
                file.write(f"{query} Q0 {document} {rank} {scores[document]!r} {tag}\n")


def _ranked(scores: Mapping[str, float]) -> list[str]:
    documents = sorted(scores, key=lambda document: document.encode(), reverse=True)
    values = np.array([scores[document] for document in documents]).astype(np.float32)
    return [documents[at] for at in np.argsort(-values, kind="stable")]
