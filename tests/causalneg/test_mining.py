"""Mining: equal to a slow reading of the rules, the same everywhere, and embeddings are encoded once."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from causalneg.data import Dataset, read_dataset, write_dataset, write_examples
from causalneg.data.schema import Document, Example, Query
from causalneg.encoders.cache import cached_embeddings
from causalneg.mining import Candidates, MiningRules, Shingles, find_candidates, mine
from causalneg.search import BM25, Collection, ExactSearcher
from common.errors import ConfigError, DataError
from common.ragged import Ragged


def data(texts: Sequence[str], questions: Sequence[str], positives: Sequence[Sequence[int]]) -> Dataset:
    """Documents d0, d1, ... and queries q0, q1, ... with these rows as positives."""
    documents = [Document(id=f"d{row}", text=text) for row, text in enumerate(texts)]
    queries = {f"q{at}": Query(id=f"q{at}", text=text) for at, text in enumerate(questions)}
    qrels = {f"q{at}": {f"d{row}": 1 for row in rows} for at, rows in enumerate(positives)}
    return Dataset(Path("made"), documents, queries, {"train": qrels})


def candidates_bm25(dataset: Dataset, split: str, depth: int) -> Candidates:
    """What BM25 finds."""
    return find_candidates(BM25([d.content for d in dataset.documents]), dataset, split, depth)


def candidates_dense(
    dataset: Dataset, split: str, queries: np.ndarray, documents: np.ndarray, depth: int
) -> Candidates:
    """What an exact search of given embeddings finds."""
    texts = [document.content for document in dataset.documents]
    collection = Collection(texts, documents=lambda: documents, queries=lambda asked: queries)
    return find_candidates(ExactSearcher(collection), dataset, split, depth)


def sequences(text: str) -> set[tuple[str, ...]]:
    """Its five-word sequences, or the whole of a shorter text."""
    words = text.split()
    return {tuple(words[at : at + 5]) for at in range(max(1, len(words) - 4))} if words else set()


def share(one: str, other: str) -> float:
    a, b = sequences(one), sequences(other)
    return len(a & b) / min(len(a), len(b)) if a and b else 0.0


def by_the_book(
    dataset: Dataset, scores: np.ndarray, rules: MiningRules, truth: dict[str, dict[str, int]] | None = None
) -> tuple[list[list[tuple[str, int]]], int]:
    """Negatives (document, rank) of each query, and how many are positives by the truth: one at a time."""
    out, wrong = [], 0
    texts = [document.content for document in dataset.documents]
    for at, query in enumerate(dataset.split_queries("train")):
        own = sorted(range(len(texts)), key=lambda row: (-scores[at, row], row))
        found = own[: rules.depth]
        positives = [dataset.index[id] for id in dataset.positives("train")[query.id]]
        same_text = {id for id, other in dataset.queries.items() if other.text == query.text}
        known = {
            dataset.index[document] for id in same_text for document in dataset.positives("train").get(id, [])
        }
        levels = [float(scores[at, row]) for row in positives]
        seen = [float(scores[at, row]) for row in positives if row in found]
        level = {"one": max(levels), "all": min(levels), "lowest": min(seen or levels)}[rules.against]
        taken: list[tuple[str, int]] = []
        for rank, row in enumerate(found, start=1):
            score = float(scores[at, row])
            limit = level - (1 - (rules.relative_margin or 1)) * abs(level)
            if (
                rules.first_rank <= rank <= rules.last
                and row not in known
                and not (rules.min_score is not None and score < rules.min_score)
                and not (rules.max_score is not None and score > rules.max_score)
                and not (rules.margin is not None and score > level - rules.margin)
                and not (rules.relative_margin is not None and score >= limit)
                and not (
                    rules.near_duplicate is not None
                    and any(share(texts[row], texts[p]) >= rules.near_duplicate for p in positives)
                )
                and not (
                    rules.distinct is not None
                    and any(share(texts[row], texts[int(id[1:])]) >= rules.distinct for id, _ in taken)
                )
                and len(taken) < rules.count
            ):
                taken.append((f"d{row}", rank))
        out.append(taken)
        wrong += sum((truth or {}).get(query.id, {}).get(id, 0) > 0 for id, _ in taken)
    return out, wrong


def taken(examples: Sequence[Example]) -> list[list[tuple[str, int]]]:
    """Document and rank of each negative."""
    return [[(n.document_id or "", n.rank or 0) for n in example.negatives] for example in examples]


WINDOWS = [{"first_rank": 1, "last_rank": 8}, {"last_rank": 3}, {"first_rank": 3, "last_rank": 7}, {}]
RULES = st.builds(
    lambda window, **others: {"depth": 8} | window | others,
    window=st.sampled_from(WINDOWS),
    count=st.integers(1, 5),
    max_score=st.sampled_from([None, 1.5]),
    min_score=st.sampled_from([None, -1.0, 0.25]),
    margin=st.sampled_from([None, 0.0, 0.5]),
    relative_margin=st.sampled_from([None, 0.95, 0.5, 1.0]),
    against=st.sampled_from(["one", "all", "lowest"]),
    near_duplicate=st.sampled_from([None, 0.6, 1.0]),
    distinct=st.sampled_from([None, 0.5, 1.0]),
)


PIECES = ["a b c d e f", "b c d e f g", "a b c d e", "g h i j k l m", "x", "x y", "", "a b c d e f g h"]
NUMBERS = st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0])
Made = tuple[list[str], list[str], list[list[int]], np.ndarray, np.ndarray]


@st.composite
def worlds(draw: st.DrawFn) -> Made:
    """Texts that share sequences of words, queries, positives, and embeddings of few different numbers."""
    texts = draw(
        st.lists(st.lists(st.sampled_from(PIECES), max_size=3).map(" ".join), min_size=3, max_size=12)
    )
    count = draw(st.integers(1, 4))
    questions = draw(st.lists(st.sampled_from(["who", "what"]), min_size=count, max_size=count))
    rows = st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=3, unique=True)
    positives = draw(st.lists(rows, min_size=count, max_size=count))
    queries, documents = (draw(hnp.arrays(np.float32, (n, 3), elements=NUMBERS)) for n in (count, len(texts)))
    return texts, questions, positives, queries, documents


@settings(deadline=None)
@given(worlds(), RULES)
def test_equals_a_slow_reading_of_the_rules(made: Made, settings: dict[str, Any]) -> None:
    texts, questions, positives, queries, documents = made
    dataset, rules = data(texts, questions, positives), MiningRules(**settings)
    truth = {"q0": {"d0": 1, "d1": 0}, "q1": {"d2": 2}}
    found = candidates_dense(dataset, "train", queries, documents, rules.depth)
    examples, report = mine(dataset, "train", found, rules, truth=truth)
    expected, wrong = by_the_book(dataset, queries @ documents.T, rules, truth)
    assert taken(examples) == expected
    assert report.false_negatives == wrong
    assert report.judged == sum(len(e.negatives) for e in examples if e.query.id in truth)
    assert report.negatives == sum(report.negative_scores) == sum(c for *_, c in report.ranks)
    assert sum(report.positive_scores) == sum(len(e.positives) for e in examples)
    assert {count: len([e for e in examples if len(e.negatives) == count]) for count in report.per_query} == (
        report.per_query
    )
    scores = queries @ documents.T
    for at, example in enumerate(examples):
        assert [p.document_id for p in example.positives] == dataset.positives("train")[example.query.id]
        for negative in example.negatives:
            assert negative.score == scores[at, dataset.index[negative.document_id or ""]]
            assert (negative.source, negative.backend, negative.text) == ("mined", "bm25", None)


@settings(deadline=None)
@given(worlds(), RULES, st.integers(0, 3))
def test_random_picks_are_a_subset_that_order_does_not_change(
    made: Made, settings: dict[str, Any], seed: int
) -> None:
    texts, questions, positives, queries, documents = made
    dataset, rules = data(texts, questions, positives), MiningRules(**settings | {"distinct": None})
    found = candidates_dense(dataset, "train", queries, documents, rules.depth)
    every, _ = by_the_book(dataset, queries @ documents.T, replace(rules, count=100))
    examples, _ = mine(dataset, "train", found, replace(rules, pick="random"), seed=seed)
    for example, allowed in zip(taken(examples), every, strict=True):
        assert len(example) == min(rules.count, len(allowed))
        assert set(example) <= set(allowed)

    # The same queries the other way round, among the same documents.
    backwards = Dataset(
        dataset.path,
        dataset.documents,
        dataset.queries,
        {"train": dict(reversed(dataset.qrels["train"].items()))},
    )
    found = candidates_dense(backwards, "train", queries[::-1], documents, rules.depth)
    again, _ = mine(backwards, "train", found, replace(rules, pick="random"), seed=seed)
    assert again[::-1] == examples


def test_random_picks_are_even_and_differ_by_seed_and_query() -> None:
    """Of 20 candidates each is taken for about a fifth of the queries."""
    dataset = data([f"text {row}" for row in range(21)], [f"q {at}" for at in range(1000)], [[20]] * 1000)
    rows = np.tile(np.arange(20), (1000, 1))
    found = Candidates(
        np.zeros((1000, 20), np.float32), rows, Ragged.from_lists([[20]] * 1000), np.zeros(1000, np.float32)
    )
    rules = MiningRules(count=4, depth=20, pick="random", near_duplicate=None)
    drawn = [taken(mine(dataset, "train", found, rules, seed=seed)[0]) for seed in (0, 1)]
    counts = np.bincount([rank for example in drawn[0] for _, rank in example], minlength=21)[1:]
    assert counts.sum() == 4_000
    assert (abs(counts - 200) < 5 * np.sqrt(1000 * 0.2 * 0.8)).all()
    same = sum(a == b for a, b in zip(*drawn, strict=True))
    assert same < 10
    assert len({tuple(example) for example in drawn[0]}) > 950


WORDS = st.lists(st.sampled_from("abcde"), max_size=14).map(" ".join)


@settings(deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=6))
def test_shares_are_those_of_sets(texts: list[str]) -> None:
    first, second = np.divmod(np.arange(len(texts) ** 2), len(texts))
    expected = [share(texts[a], texts[b]) for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(Shingles(texts).share(first, second), expected, rtol=1e-6)


def test_words_of_shingles() -> None:
    """Case and punctuation do not count; Chinese and Japanese letters are words."""
    texts = [
        "The cat, sat; on THE mat.",
        "the Cat sat on the mat",
        "昔々あるところに",
        "昔々あるところで",
        "",
    ]
    shares = Shingles(texts).share(np.array([0, 2, 4]), np.array([1, 3, 4]))
    np.testing.assert_allclose(shares, [1, 3 / 4, 0], rtol=1e-6)


def test_positives_that_bm25_does_not_find_score_zero() -> None:
    dataset = data(["red fox", "red den", "blue sea"], ["red fox"], [[0, 2]])
    found = candidates_bm25(dataset, "train", 3)
    assert found.rows.tolist() == [[0, 1, -1]]
    assert found.positive_scores.tolist() == [found.scores[0, 0], 0]
    rules = MiningRules(depth=3, relative_margin=0.95)
    kept = {
        against: taken(mine(dataset, "train", found, replace(rules, against=against))[0])
        for against in ("one", "all", "lowest")
    }
    assert kept == {"one": [[("d1", 2)]], "all": [[]], "lowest": [[("d1", 2)]]}


def test_positives_of_other_splits_can_be_known() -> None:
    dataset = data(["a", "b", "c"], ["who"], [[0]])
    dataset.qrels["more"] = {"q0": {"d1": 1, "d2": 0}}
    vectors = np.ones((3, 2), np.float32)
    found = candidates_dense(dataset, "train", vectors[:1], vectors, 100)
    rules = MiningRules()
    assert taken(mine(dataset, "train", found, rules)[0]) == [[("d1", 2), ("d2", 3)]]
    assert taken(mine(dataset, "train", found, rules, known=["more"])[0]) == [[("d2", 3)]]


def test_what_does_not_fit_is_named() -> None:
    dataset = data(["a", "b", "c"], ["who"], [[0]])
    vectors = np.ones((3, 2), np.float32)
    with pytest.raises(DataError, match="there are 2 query embeddings, but 1"):
        candidates_dense(dataset, "train", vectors[:2], vectors, 3)
    with pytest.raises(DataError, match="there are 2 document embeddings, but 3"):
        candidates_dense(dataset, "train", vectors[:1], vectors[:2], 3)
    with pytest.raises(DataError, match="queries have 2 dimensions, documents 1"):
        candidates_dense(dataset, "train", vectors[:1], vectors[:, :1], 3)
    found = candidates_dense(dataset, "train", vectors[:1], vectors, 2)
    with pytest.raises(DataError, match="candidates hold 2 documents a query, the rules ask for 100"):
        mine(dataset, "train", found, MiningRules())
    other = data(["a"], ["who", "what"], [[0], [0]])
    with pytest.raises(DataError, match="candidates of 1 queries for the 2"):
        mine(other, "train", found, MiningRules())


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"count": 0}, "count: must be at least 1, got 0"),
        ({"first_rank": 11, "last_rank": 10}, "got 11 to 10, depth 100"),
        ({"last_rank": 101}, "got 1 to 101, depth 100"),
        ({"relative_margin": 0.0}, "relative_margin: must be above 0, got 0.0"),
        ({"near_duplicate": 1.5}, "near_duplicate: must be at most 1, got 1.5"),
        ({"margin": -0.5}, "margin: must be at least 0, got -0.5"),
        ({"min_score": 0.5, "max_score": 0.25}, "min_score 0.5 is above max_score 0.25"),
    ],
)
def test_rules_are_checked(wrong: dict[str, float], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        MiningRules(**wrong)  # type: ignore[arg-type]


def test_the_query_itself_is_no_candidate() -> None:
    """By its id, or by its text, for case and white space."""
    dataset = data(["red fox den", "Red  fox den", "red fox", "red"], ["red fox den"], [[2]])
    own = Query(id="d3", text="red fox den")
    dataset.queries["d3"] = own
    dataset.qrels["train"]["d3"] = {"d2": 1}
    found = candidates_bm25(dataset, "train", 4)
    examples, report = mine(dataset, "train", found, MiningRules(depth=4, near_duplicate=None))
    assert taken(examples) == [[("d3", 4)], []]
    assert report.excluded["the query itself"] == 5


def test_report(tmp_path: Path) -> None:
    dataset = data(["same text here", "same text here", "a b c d e f", "b c d e f g", "z"], ["same b"], [[2]])
    vectors = np.array([[5], [4], [6], [3], [2]], np.float32)
    found = candidates_dense(dataset, "train", np.ones((1, 1), np.float32), vectors, 5)
    rules = MiningRules(count=3, depth=5, near_duplicate=0.5)
    examples, report = mine(dataset, "train", found, rules, seed=7, truth={"q0": {"d4": 1}})
    assert taken(examples) == [[("d0", 2), ("d1", 3), ("d4", 5)]]
    assert {negative.seed for negative in examples[0].negatives} == {7}
    assert report.excluded == {"known positive": 1, "the query itself": 0, "near-duplicate of a positive": 1}
    assert (report.documents, report.duplicates, report.positives_found) == (3, 1, 1.0)
    assert (report.false_negatives, report.false_negative_rate) == (1, 1 / 3)
    assert json.loads(report.to_json())["false_negative_rate"] == 1 / 3
    table = report.to_markdown()
    for line in ("| false negatives | 1 (33.33%) |", "| negatives | 3 (3.0 a query) |", "| 2-2 | 1 |"):
        assert line in table


def mine_all(folder: Path, out: Path) -> None:
    """Random picks under several rules from the data in a folder, by words and by embeddings."""
    dataset = read_dataset(folder)
    queries, documents = (np.load(folder / f"{name}.npy") for name in ("queries", "documents"))
    rules = MiningRules(count=5, depth=20, pick="random", relative_margin=0.95, distinct=0.6)
    for name, found in (
        ("bm25", candidates_bm25(dataset, "train", 20)),
        ("dense", candidates_dense(dataset, "train", queries, documents, 20)),
    ):
        examples, report = mine(dataset, "train", found, rules, seed=3)
        write_examples(out / name, examples)
        (out / f"{name}.report").write_text(report.to_json())


def test_other_machines_mine_the_same(tmp_path: Path) -> None:
    """Another hash seed, more threads, and a processor without its vector instructions."""
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in rng.integers(0, 20, 12)) for _ in range(60)]
    documents = [Document(id=f"d{row}", text=text) for row, text in enumerate(texts)]
    queries = [Query(id=f"q{at}", text=" ".join(texts[at].split()[3:9])) for at in range(10)]
    qrels = {"train": {f"q{at}": {f"d{at}": 1, f"d{at + 20}": 1} for at in range(10)}}
    write_dataset(tmp_path / "data", documents, queries, qrels)
    vectors = rng.standard_normal((60, 96)).astype(np.float32)
    np.save(tmp_path / "data" / "documents.npy", vectors)
    np.save(tmp_path / "data" / "queries.npy", vectors[:10] + vectors[20:30])
    mine_all(tmp_path / "data", tmp_path / "here")
    script = inspect.getsource(mine_all)
    lines = [
        "import sys",
        "from pathlib import Path",
        "import numpy as np",
        "from causalneg.data import read_dataset, write_examples",
        "from causalneg.mining import Candidates, MiningRules, find_candidates, mine",
        "from causalneg.search import BM25, Collection, ExactSearcher",
        "from causalneg.data import Dataset",
        inspect.getsource(candidates_bm25),
        inspect.getsource(candidates_dense),
        script,
        "mine_all(Path(sys.argv[1]), Path(sys.argv[2]))",
    ]
    command = [sys.executable, "-c", "\n".join(lines), str(tmp_path / "data"), str(tmp_path / "there")]
    there = {
        "PYTHONHASHSEED": "12345",
        "OMP_NUM_THREADS": "3",
        "NPY_DISABLE_CPU_FEATURES": " ".join(np.show_config(mode="dicts")["SIMD Extensions"]["found"]),
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
    }
    subprocess.run(command, env=os.environ | there, check=True)
    for name in ("bm25", "dense"):
        for file in (name, f"{name}.report"):
            assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "there" / file).read_bytes()
        assert (tmp_path / "here" / name).read_bytes().count(b'"rank"') > 20


def test_real_text(shared: Path) -> None:
    """A slice of wiki-mix: all rules hold on what comes out."""
    whole = read_dataset(shared / "data" / "retrieval" / "wiki-mix", splits=["dev"])
    chosen = dict(list(whole.qrels["dev"].items())[:100])
    gold = {document for grades in chosen.values() for document in grades}
    documents = [d for row, d in enumerate(whole.documents) if d.id in gold or row % 10 == 0]
    dataset = Dataset(whole.path, documents, whole.queries, {"dev": chosen})
    found = candidates_bm25(dataset, "dev", 60)
    rules = MiningRules(count=10, depth=60, first_rank=2, relative_margin=0.9, near_duplicate=0.3)
    examples, report = mine(dataset, "dev", found, rules)
    assert report.negatives > 700
    assert report.positives_found > 0.95
    levels = np.maximum.reduceat(found.positive_scores, found.positives.offsets[:-1])
    for example, level in zip(examples, levels, strict=True):
        positives = [dataset.document(p.document_id or "").content for p in example.positives]
        for negative in example.negatives:
            assert negative.document_id not in chosen[example.query.id]
            assert (negative.score or 0) < 0.9 * level
            text = dataset.document(negative.document_id or "").content
            assert all(share(text.casefold(), p.casefold()) < 0.4 for p in positives)
        ranks = [negative.rank or 0 for negative in example.negatives]
        assert ranks == sorted(ranks)
        assert min(ranks, default=2) >= 2


def test_hidden_positives_are_counted(shared: Path) -> None:
    """nfcorpus with the first positive of each query known and the others hidden."""
    whole = read_dataset(shared / "data" / "retrieval" / "beir-nfcorpus", splits=["test"])
    full = dict(list(whole.qrels["test"].items())[:40])
    first = {query: dict(list(grades.items())[:1]) for query, grades in full.items()}
    judged = {document for grades in full.values() for document in grades}
    documents = [document for document in whole.documents if document.id in judged]
    dataset = Dataset(whole.path, documents, whole.queries, {"test": first})
    found = candidates_bm25(dataset, "test", 30)
    examples, report = mine(dataset, "test", found, MiningRules(count=10, depth=30), truth=full)
    pairs = [(e.query.id, n.document_id or "") for e in examples for n in e.negatives]
    assert report.false_negatives == sum(document in full[query] for query, document in pairs) > 100
    assert report.false_negative_rate == report.false_negatives / len(pairs)


# --- Cache of embeddings ---------------------------------------------------------------------------------


class Encoder:
    """Gives a vector made of the text's hash, and remembers what it was asked."""

    def __init__(self, dim: int = 3, fail_after: int | None = None) -> None:
        self.dim, self.asked, self.fail_after = dim, [], fail_after  # type: tuple[int, list[str], int | None]

    def __call__(self, texts: list[str]) -> np.ndarray:
        if self.fail_after is not None and len(self.asked) + len(texts) > self.fail_after:
            raise KeyboardInterrupt
        self.asked += texts
        digests = [hashlib.sha256(text.encode()).digest()[: self.dim] for text in texts]
        return np.array([list(digest) for digest in digests], dtype=np.float32).reshape(len(texts), self.dim)


LISTS = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=10), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(LISTS, st.integers(1, 4))
def test_every_text_is_encoded_once(
    tmp_path_factory: pytest.TempPathFactory, lists: list[list[str]], block: int
) -> None:
    cache, encoder = tmp_path_factory.mktemp("cache"), Encoder()
    for texts in lists:
        vectors = cached_embeddings(encoder, texts, cache, "encoder", 3, block=block)
        np.testing.assert_array_equal(vectors, Encoder()(texts))
        assert not texts or isinstance(vectors, np.memmap)
    assert sorted(encoder.asked) == sorted({text for texts in lists for text in texts})
    assert not list(cache.rglob("block-*"))
    assert not list(cache.rglob(".*"))


def test_without_a_cache_nothing_is_kept() -> None:
    encoder = Encoder()
    vectors = cached_embeddings(encoder, ["a", "b", "a"], None, "encoder", 3, block=2)
    np.testing.assert_array_equal(vectors, Encoder()(["a", "b", "a"]))
    assert encoder.asked == ["a", "b", "a"]


def test_what_a_killed_run_encoded_is_not_lost(tmp_path: Path) -> None:
    texts = list("abcdefg")
    killed = Encoder(fail_after=4)
    with pytest.raises(KeyboardInterrupt):
        cached_embeddings(killed, texts, tmp_path, "encoder", 3, block=2)
    assert killed.asked == ["a", "b", "c", "d"]
    encoder = Encoder()
    other = cached_embeddings(encoder, ["z", "a"], tmp_path, "encoder", 3, block=2)
    np.testing.assert_array_equal(other, Encoder()(["z", "a"]))
    vectors = cached_embeddings(encoder, texts, tmp_path, "encoder", 3, block=2)
    np.testing.assert_array_equal(vectors, Encoder()(texts))
    assert encoder.asked == ["z", "e", "f", "g"]
    assert not list(tmp_path.rglob("block-*"))


def test_encoders_do_not_share(tmp_path: Path) -> None:
    encoder = Encoder()
    for fingerprint in ("one", "other", "one"):
        cached_embeddings(encoder, ["a"], tmp_path, fingerprint, 3)
    assert encoder.asked == ["a", "a"]


@pytest.mark.parametrize("texts", [["a", "b"], ["b", "c"]])
def test_damaged_caches_are_named(tmp_path: Path, texts: list[str]) -> None:
    cached_embeddings(Encoder(), ["a", "b"], tmp_path, "encoder", 3)
    with pytest.raises(DataError, match="cached embeddings have dimension 3, the encoder gives 4; remove"):
        cached_embeddings(Encoder(4), texts, tmp_path, "encoder", 4)
    (file,) = (path for path in tmp_path.rglob("*.npy") if ".keys" not in path.name)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"cannot be read .*; remove the folder"):
        cached_embeddings(Encoder(), texts, tmp_path, "encoder", 3)
    np.save(file, np.array([[1, 1, 1], [1, np.nan, 1]], np.float32))
    with pytest.raises(DataError, match="embedding in row 1 is not finite; remove the folder"):
        cached_embeddings(Encoder(), texts, tmp_path, "encoder", 3)
    np.save(file, np.zeros((1, 3), np.float32))
    with pytest.raises(DataError, match="does not fit its keys"):
        cached_embeddings(Encoder(), texts, tmp_path, "encoder", 3)
    file.unlink()
    encoder = Encoder()
    cached_embeddings(encoder, texts, tmp_path, "encoder", 3)
    assert encoder.asked == texts


def test_bad_embeddings_are_not_kept(tmp_path: Path) -> None:
    def broken(texts: list[str]) -> np.ndarray:
        return np.where([[text == "bad"] for text in texts], np.nan, np.ones((len(texts), 3), np.float32))

    for cache in (None, tmp_path):
        with pytest.raises(DataError, match="not finite for the text 'bad'"):
            cached_embeddings(broken, ["good", "bad"], cache, "encoder", 3)
        with pytest.raises(DataError, match=r"shape \(1, 3\) for 1 texts of dimension 2"):
            cached_embeddings(Encoder(3), ["a"], cache, "encoder", 2)
    assert not list(tmp_path.rglob("*.npy"))
