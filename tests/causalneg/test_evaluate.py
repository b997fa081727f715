"""Evaluation on BEIR folders: ranks as the search gave them, files beside the figures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from causalneg.data import Dataset, read_dataset
from causalneg.data.schema import Document, Query
from causalneg.encoders import build_encoder
from causalneg.encoders.cache import tokenize
from causalneg.evaluation.evaluate import evaluate, evaluate_bm25, evaluate_encoder, evaluate_views
from causalneg.search import SEARCHERS, Collection
from trec import read_run

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
    assert read_run(folder / "run.trec").keys() == QUERIES.keys()
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


def test_corpora_that_share_texts_are_ranked_as_if_each_were_alone() -> None:
    plain = dataset()
    styled = [
        d.model_copy(update={"text": "well, " + d.text}) if d.id == "d1" else d for d in plain.documents
    ]
    twice = [*styled, Document(id="d4", text=TEXTS["d0"])]
    twin = Dataset(plain.path, twice, plain.queries, plain.qrels, "twin")
    encoder = build_encoder("small", {"width": 16, "attention": 8, "inner": 8}, texts=list(TEXTS.values()))
    read: list[int] = []
    encoder.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(0 if kwargs["query"] else len(args[1]) - 1), with_kwargs=True
    )
    together = evaluate_views(encoder, [plain, twin], ["test"])
    assert sum(read) == 5  # four texts, and one that the twin has anew
    for (found,), data in zip(together, (plain, twin), strict=True):
        (alone,) = evaluate_encoder(encoder, data, ["test"])
        for query, scores in alone.run.items():
            assert found.run[query] == pytest.approx(scores, abs=1e-6)
    assert together[1][0].run["q0"]["d0"] == together[1][0].run["q0"]["d4"]


def test_texts_cut_are_counted_once_whether_tokens_are_made_or_read(tmp_path: Path) -> None:
    data, counts = dataset(), []
    options = {"width": 16, "attention": 8, "inner": 8, "max_tokens": 3}
    for _ in range(2):
        encoder = build_encoder("small", options, texts=list(TEXTS.values()))
        for _ in range(2):
            (found,) = evaluate_encoder(encoder, data, ["test"], cache=tmp_path)
        counts.append(found.notes["texts_cut"])
    whole = build_encoder("small", {**options, "max_tokens": 99}, texts=list(TEXTS.values()))
    long = [int((whole.tokenize(texts, query=query).lengths > 3).sum()) for texts, query in (
        ([d.content for d in data.documents], False), ([q.text for q in data.split_queries("test")], True)
    )]  # fmt: skip
    assert long[0] > 0
    assert counts == [sum(long)] * 2


def test_a_data_set_has_the_name_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    for path in (".", "../mine", str(tmp_path / "mine")):
        assert Dataset(Path(path), [], {}).name == "mine"


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


def arguments() -> Dataset:
    """Queries that are documents too, as in ArguAna: each is answered by another document."""
    texts = {
        "a1": "school uniforms make pupils equal and save money",
        "a2": "uniforms save no money and pupils dislike school uniforms",
        "b1": "cars should pay to enter the city for cleaner air",
        "b2": "cars that pay to enter the city do not clean the air",
        "c": "Cars should pay  to enter the city for cleaner air",
    }
    documents = [Document(id=id, text=text) for id, text in texts.items()]
    queries = {id: Query(id=id, text=texts[id]) for id in ("a1", "b1")}
    return Dataset(Path("arguments"), documents, queries, {"test": {"a1": {"a2": 1}, "b1": {"b2": 1}}})


def test_a_document_that_is_the_query_itself_is_no_hit() -> None:
    data, lines = arguments(), []  # type: tuple[Dataset, list[str]]
    searcher = SEARCHERS["bm25"](Collection([d.content for d in data.documents]))
    (found,) = evaluate(searcher, data, ["test"], depth=2, report=lines.append)
    assert found.metrics.mean["mrr@10"] == 1.0
    assert list(found.run["b1"]) == ["b2"]  # neither b1 nor c, which says the same
    assert found.notes["identical_left_out"] == 3
    assert lines == [
        "arguments test: 3 hits that are the query itself do not count (--keep-identical counts them)"
    ]
    (counted,) = evaluate(searcher, data, ["test"], ignore_identical=False)
    assert counted.metrics.mean["mrr@10"] < 0.6
    # Where a document with the id of the query answers it, ids coincide by accident.
    data.qrels["test"]["a1"]["a1"] = 1
    (answered,) = evaluate(searcher, data, ["test"])
    assert next(iter(answered.run["a1"])) == "a1"


def test_without_shared_ids_all_documents_count() -> None:
    data = arguments()
    queries = {f"q{id}": Query(id=f"q{id}", text=query.text) for id, query in data.queries.items()}
    other = Dataset(data.path, data.documents, queries, {"test": {"qa1": {"a2": 1}, "qb1": {"b2": 1}}})
    searcher = SEARCHERS["bm25"](Collection([d.content for d in data.documents]))
    (found,) = evaluate(searcher, other, ["test"])
    assert next(iter(found.run["qa1"])) == "a1"
    (without,) = evaluate(searcher, other, ["test"], ignore_identical=True)
    assert next(iter(without.run["qa1"])) == "a2"


def test_queries_that_match_nothing_are_reported() -> None:
    texts = ["床前明月光 疑是地上霜。", "黄山为三山五岳中三山之一。五岳归来不看山。"]
    data = Dataset(
        Path("poems"),
        [Document(id=f"d{row}", text=text) for row, text in enumerate(texts)],
        {f"q{at}": Query(id=f"q{at}", text=text) for at, text in enumerate(["明月", "爬黄山"])},
        {"test": {"q0": {"d0": 1}, "q1": {"d1": 1}}},
    )
    lines: list[str] = []
    evaluate(SEARCHERS["bm25"](Collection(texts)), data, ["test"], report=lines.append)
    assert lines == []  # by characters, as the language wants
    evaluate(SEARCHERS["bm25"](Collection(texts, language="english")), data, ["test"], report=lines.append)
    assert len(lines) == 1
    assert lines[0].startswith("poems test: 2 of 2 queries match no document at all: BM25 matches words")
    assert "--language" in lines[0]


def test_a_positive_that_the_corpus_lacks_counts_as_missed() -> None:
    data = dataset()
    missing = {"test": {"q0": {"d0": 1}, "q1": {"gone": 1}, "q2": {"d3": 1, "gone": 1}}}
    searcher = SEARCHERS["bm25"](Collection(list(TEXTS.values())))
    (found,) = evaluate(searcher, Dataset(data.path, data.documents, data.queries, missing), ["test"])
    assert found.metrics.per_query["recall@10"] == {"q0": 1.0, "q1": 0.0, "q2": 0.5}
    assert found.metrics.per_query["ndcg@10"]["q2"] == pytest.approx(1 / (1 + 1 / math.log2(3)))
