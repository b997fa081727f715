"""Retrieval metrics against hand arithmetic and a slow reference; run files there and back."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError, DataError
from common.metrics.retrieval import retrieval_metrics, write_trec
from trec import read_run


def reference(scores: dict[str, float], grades: dict[str, int], metric: str, cut: int) -> float:
    """One metric of one query, as its definition reads."""
    order = sorted(scores, key=lambda d: (np.float32(scores[d]), d.encode()), reverse=True)[:cut]
    gain = [max(grades.get(document, 0), 0) for document in order]
    positive = sorted((grade for grade in grades.values() if grade > 0), reverse=True)
    if metric == "recall":
        return sum(g > 0 for g in gain) / len(positive)
    if metric == "precision":
        return sum(g > 0 for g in gain) / cut
    if metric == "success":
        return float(any(g > 0 for g in gain))
    if metric == "map":
        hits = [rank for rank, g in enumerate(gain, start=1) if g > 0]
        return sum(number / rank for number, rank in enumerate(hits, start=1)) / len(positive)
    if metric == "mrr":
        return next((1 / rank for rank, g in enumerate(gain, start=1) if g > 0), 0.0)
    ideal = sum(grade / math.log2(rank + 1) for rank, grade in enumerate(positive[:cut], start=1))
    return sum(g / math.log2(rank + 1) for rank, g in enumerate(gain, start=1)) / ideal


def test_by_hand() -> None:
    qrels = {
        "graded": {"a": 2, "b": 1, "c": 0, "d": -1},
        "missing": {"a": 1},
        "late": {"z": 1},
        "none": {"a": 0},
    }
    run = {
        "graded": {"c": 4.0, "b": 3.0, "d": 2.5, "a": 2.0},
        "late": {str(i): float(20 - i) for i in range(10)} | {"z": 1.0},
        "none": {"a": 1.0},
        "unknown": {"a": 1.0},
    }
    names = ["ndcg@3", "ndcg@10", "recall@1", "recall@10", "recall@100", "mrr@1", "mrr@10", "mrr@11"]
    metrics = retrieval_metrics(run, qrels, names)
    second, fourth = 1 / math.log2(3), 1 / math.log2(5)
    ideal = 2 + second
    assert metrics.per_query["ndcg@10"] == pytest.approx(
        {"graded": (second + 2 * fourth) / ideal, "missing": 0, "late": 0}
    )
    assert metrics.per_query["ndcg@3"]["graded"] == pytest.approx(second / ideal)
    assert metrics.per_query["recall@1"] == {"graded": 0, "missing": 0, "late": 0}
    assert metrics.per_query["recall@10"] == {"graded": 1, "missing": 0, "late": 0}
    assert metrics.per_query["recall@100"] == {"graded": 1, "missing": 0, "late": 1}
    assert metrics.per_query["mrr@1"]["graded"] == 0
    assert metrics.per_query["mrr@10"] == {"graded": 0.5, "missing": 0, "late": 0}
    assert metrics.per_query["mrr@11"]["late"] == pytest.approx(1 / 11)
    assert metrics.mean["mrr@10"] == pytest.approx(0.5 / 3)
    assert (metrics.queries, metrics.missing, metrics.without_positive) == (3, 1, 1)


def test_equal_scores_stand_in_reverse_order_of_ids() -> None:
    """And scores that differ only beyond 32 bits are equal."""
    for low, high in ((1.0, 1.0), (1.0, 1.0 + 1e-9)):
        metrics = retrieval_metrics({"q": {"a": high, "b": low}}, {"q": {"a": 1}})
        assert metrics.mean["mrr@10"] == 0.5
    assert retrieval_metrics({"q": {"a": 1.0, "b": 1.0}}, {"q": {"b": 1}}).mean["mrr@10"] == 1


@pytest.mark.parametrize("run", [{}, {"q": {}}, {"other": {"a": 1.0}}])
def test_an_empty_run_counts_zero(run: dict[str, dict[str, float]]) -> None:
    metrics = retrieval_metrics(run, {"q": {"a": 1}})
    assert set(metrics.mean.values()) == {0.0}
    assert metrics.missing == 1


IDS = [f"d{i}" for i in range(12)] + ["é", "Z", "z"]
RUNS = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3"]),
    st.dictionaries(st.sampled_from(IDS), st.sampled_from([-1.5, 0.0, 0.25, 0.3, 0.30000001, 7.0])),
)
QRELS = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3"]), st.dictionaries(st.sampled_from(IDS), st.integers(-2, 3))
)


@settings(deadline=None)
@given(RUNS, QRELS)
def test_equals_the_reference(run: dict[str, dict[str, float]], qrels: dict[str, dict[str, int]]) -> None:
    answerable = {query for query, grades in qrels.items() if max(grades.values(), default=0) > 0}
    if not answerable:
        with pytest.raises(DataError, match="none of the"):
            retrieval_metrics(run, qrels)
        return
    names = ["ndcg@1", "ndcg@3", "ndcg@10", "recall@1", "recall@4", "mrr@1", "mrr@3", "mrr@10"]
    names += ["precision@4", "success@3", "map@4"]
    metrics = retrieval_metrics(run, qrels, names)
    assert list(metrics.mean) == names
    for name, values in metrics.per_query.items():
        metric, cut = name.split("@")
        assert values == pytest.approx(
            {query: reference(run.get(query, {}), qrels[query], metric, int(cut)) for query in answerable}
        )
        assert metrics.mean[name] == pytest.approx(np.mean(list(values.values())))
    assert metrics.missing == sum(not run.get(query) for query in answerable)


@settings(deadline=None)
@given(RUNS, QRELS)
def test_a_run_file_gives_the_same_metrics(
    tmp_path_factory: pytest.TempPathFactory,
    run: dict[str, dict[str, float]],
    qrels: dict[str, dict[str, int]],
) -> None:
    path = tmp_path_factory.mktemp("run") / "run.trec"
    write_trec(path, run, "system")
    back = read_run(path)
    assert back == {query: scores for query, scores in run.items() if scores}
    if any(grade > 0 for grades in qrels.values() for grade in grades.values()):
        assert retrieval_metrics(back, qrels) == retrieval_metrics(run, qrels)


def test_run_file_lines(tmp_path: Path) -> None:
    write_trec(tmp_path / "run.trec", {"q": {"a": 0.1, "b": 0.1, "c": 2.0}}, "ours")
    assert (tmp_path / "run.trec").read_text() == "q Q0 c 1 2.0 ours\nq Q0 b 2 0.1 ours\nq Q0 a 3 0.1 ours\n"


def test_what_cannot_be_measured_or_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="query 'q', document 'a': score nan"):
        retrieval_metrics({"q": {"a": math.nan}}, {"q": {"a": 1}})
    for name, line in (
        ("mrr@0", "measure 'mrr@0': the cut-off behind @ must be a whole number of 1 or more"),
        ("ndgc@10", "there is no measure 'ndgc@10'; did you mean 'ndcg'"),
        ("recall", "measure 'recall' needs a cut-off, such as recall@10"),
    ):
        with pytest.raises(ConfigError, match=line):
            retrieval_metrics({}, {"q": {"a": 1}}, [name])
    for run, tag in (({"a b": {"a": 1.0}}, "t"), ({"q": {"a b": 1.0}}, "t"), ({}, "a tag")):
        with pytest.raises(DataError, match="one word"):
            write_trec(tmp_path / "run.trec", run, tag)
    assert list(tmp_path.iterdir()) == []
