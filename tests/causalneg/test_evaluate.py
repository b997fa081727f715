"""Evaluation on BEIR folders: ranks as the search gave them, files beside the figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from causalneg.encoders import build_encoder
from causalneg.evaluate import evaluate_bm25, evaluate_encoder, tokenize
from causalneg.formats import Dataset, read_dataset
from causalneg.schema import Document, Query
from common.retrieval_metrics import read_trec

TEXTS = {
    "d0": "the red sun over the hill",
    "d1": "a green moon above the sea",
    "d2": "blue water in the deep sea",
    "d3": "one hill and two valleys",
}
QUERIES = {"q0": "red sun", "q1": "moon sea", "q2": "valleys"}
QRELS = {"test": {"q0": {"d0": 2}, "q1": {"d1": 1, "d2": 1}, "q2": {"d3": 1, "d0": 0}}}


def dataset() -> Dataset:
    return Dataset(
        path=Path("tiny"),
        documents=[Document(id=i, text=t) for i, t in TEXTS.items()],
        queries={i: Query(id=i, text=t) for i, t in QUERIES.items()},
        qrels=QRELS,
        fingerprint="f",
    )


def test_bm25_finds_what_shares_words(tmp_path: Path) -> None:
    (found,) = evaluate_bm25(dataset(), ["test"], depth=4)
    assert found.metrics.mean["mrr@10"] == 1.0
    assert found.metrics.queries == 3
    folder = found.save(tmp_path)
    assert folder.name == "tiny-test"
    assert read_trec(folder / "run.trec").keys() == QUERIES.keys()
    content = json.loads((folder / "metrics.json").read_text())
    assert content["metrics"] == found.metrics.mean
    per_query = json.loads((folder / "per_query.json").read_text())
    assert np.mean(list(per_query["ndcg@10"].values())) == pytest.approx(found.metrics.mean["ndcg@10"])


def test_an_encoder_is_evaluated_on_all_splits_with_one_encoding(tmp_path: Path) -> None:
    data = dataset()
    encoder = build_encoder("static", {"dim": 64}, texts=list(TEXTS.values())).eval()
    whole = Dataset(
        data.path, data.documents, data.queries, {"test": QRELS["test"], "again": QRELS["test"]}, "g"
    )
    first, second = evaluate_encoder(encoder, whole, ["test", "again"], cache=tmp_path)
    assert first.run == second.run
    assert first.run["q0"]["d0"] == pytest.approx(max(first.run["q0"].values()))
    (plain,) = evaluate_encoder(encoder, whole, ["test"])
    assert plain.run == first.run


def test_tokens_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    encoder = build_encoder("static", {"dim": 8}, texts=list(TEXTS.values()))
    made = tokenize(encoder, list(TEXTS.values()), query=False, cache=tmp_path, key="k")
    again = tokenize(encoder, list(TEXTS.values()), query=False, cache=tmp_path, key="k")
    assert np.array_equal(made.values, again.values)
    assert np.array_equal(made.offsets, again.offsets)


def test_bm25_on_real_text(shared: Path) -> None:
    """The corpus's README says that plain BM25 reaches .305 nDCG@10 on NFCorpus."""
    data = read_dataset(shared / "data" / "retrieval" / "beir-nfcorpus", splits=["test"])
    (found,) = evaluate_bm25(data, ["test"])
    assert found.metrics.mean["ndcg@10"] > 0.30
