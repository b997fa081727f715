"""Retrieval metrics per query, and run files, both as trec_eval has them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytrec_eval

from common.errors import ConfigError, DataError
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


def retrieval_metrics(
    run: Run,
    qrels: Mapping[str, Mapping[str, int]],
    *,
    ndcg: Sequence[int] = (10,),
    recall: Sequence[int] = (10, 100),
    mrr: Sequence[int] = (10,),
) -> RetrievalMetrics:
    """nDCG, recall and reciprocal rank at cut-offs k, per query and on average; computed by pytrec_eval.

    - ``ndcg@k``: ``DCG / ideal DCG``, ``DCG = sum_{rank <= k} grade / log2(rank + 1)``.
    - ``recall@k``: share of the positives among the first k.
    - ``mrr@k``: ``1 / rank`` of the first positive, 0 if it is not among the first k.

    A grade above 0 is positive; a negative grade counts as 0. Documents without a grade count 0. Documents
    are put in order by score, rounded to 32 bits; equal ones by document id, the LAST in byte order first:
    trec_eval's rule, whatever order the run is in. So a system that gives equal scores is measured at an
    arbitrary, but fixed, order.

    Args:
        run: Scores; queries that the qrels lack are ignored.
        qrels: Grades.
        ndcg: Cut-offs of nDCG.
        recall: Cut-offs of recall.
        mrr: Cut-offs of the reciprocal rank.

    Raises:
        ConfigError: A cut-off is below 1.
        DataError: No query has a positive, or a score is not finite.
    """
    for name, cuts in (("ndcg", ndcg), ("recall", recall), ("mrr", mrr)):
        for cut in cuts:
            if cut < 1:
                raise ConfigError(f"cut-offs of {name} must be 1 or more, got {cut}")
    judged = {
        query: {document: max(int(grade), 0) for document, grade in grades.items()}
        for query, grades in qrels.items()
        if any(grade > 0 for grade in grades.values())
    }
    if not judged:
        raise DataError(f"none of the {len(qrels)} queries of the qrels has a positive")
    found = _checked({query: run[query] for query in judged if query in run})
    names = {f"ndcg@{cut}": f"ndcg_cut_{cut}" for cut in ndcg} | {
        f"recall@{cut}": f"recall_{cut}" for cut in recall
    }
    measures = {f"{kind}.{cut}" for kind, cuts in (("ndcg_cut", ndcg), ("recall", recall)) for cut in cuts}
    values = pytrec_eval.RelevanceEvaluator(judged, measures | {"recip_rank"}).evaluate(found)
    per_query = {
        name: {query: float(values[query][measure]) if query in found else 0.0 for query in judged}
        for name, measure in names.items()
    }
    for cut in mrr:
        rank = {query: float(values[query]["recip_rank"]) if query in found else 0.0 for query in judged}
        per_query[f"mrr@{cut}"] = {query: value if value >= 1 / cut else 0.0 for query, value in rank.items()}
    return RetrievalMetrics(
        per_query=per_query,
        mean={name: math.fsum(of.values()) / len(of) for name, of in per_query.items()},
        missing=len(judged) - len(found),
        without_positive=len(qrels) - len(judged),
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
            documents = sorted(scores, key=lambda document: document.encode(), reverse=True)
            values = np.array([scores[document] for document in documents]).astype(np.float32)
            for rank, at in enumerate(np.argsort(-values, kind="stable"), start=1):
                document = _word(documents[at], "document id")
                file.write(f"{query} Q0 {document} {rank} {scores[document]!r} {tag}\n")


def read_trec(path: Path) -> dict[str, dict[str, float]]:
    """Read a run file; ranks and tags are not looked at, as in trec_eval.

    Args:
        path: The file.

    Returns:
        Scores.

    Raises:
        DataError: The file is missing, or a line is not ``query Q0 document rank score tag``, or has a
            document twice.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: missing; give a run file with lines 'query Q0 document rank score tag'")
    run: dict[str, dict[str, float]] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                query, _, document, _, written, _ = line.decode().split()
                score = float(written)
            except ValueError:
                shown = line.decode(errors="replace").strip()[:80]
                raise DataError(
                    f"{path}:{number}: must be 'query Q0 document rank score tag', got '{shown}'"
                ) from None
            if not math.isfinite(score):
                raise DataError(f"{path}:{number}: score {written} is not finite")
            if document in run.setdefault(query, {}):
                raise DataError(f"{path}:{number}: query '{query}' has document '{document}' twice")
            run[query][document] = score
    return run
