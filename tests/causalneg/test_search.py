"""Search: equal to brute force, ties and all, within bounded memory; BM25 by its formula and on real text."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from causalneg.data import read_dataset
from causalneg.search import BM25, approximate_search, as_run, exact_search, pair_scores
from common.errors import BackendError, ConfigError, DataError
from common.metrics.retrieval import retrieval_metrics


def brute(queries: np.ndarray, documents: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Every product in 64 bits, sorted in Python."""
    scores, rows = [], []
    for query in queries.astype(np.float32).astype(np.float64):
        products = np.array(
            [query @ text for text in documents.astype(np.float32).astype(np.float64)], dtype=np.float32
        )
        order = sorted(range(len(documents)), key=lambda row: (-products[row], row))[:k]
        scores.append(products[order])
        rows.append(order)
    return np.array(scores), np.array(rows)


def unit(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    """Random vectors of length 1."""
    vectors = rng.standard_normal((rows, dim)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def coarse(rows: int, dim: int) -> st.SearchStrategy[np.ndarray]:
    """Up to so many vectors of few different numbers."""
    shape = st.tuples(st.integers(1, rows), st.just(dim))
    return hnp.arrays(np.float32, shape, elements=st.sampled_from([-1.0, 0.0, 0.5]))


COARSE = st.integers(1, 4).flatmap(lambda dim: st.tuples(coarse(4, dim), coarse(90, dim)))


@settings(deadline=None)
@given(COARSE, st.integers(1, 50), st.sampled_from([1, 7, 64]), st.sampled_from([(), ("cpu", "cpu", "cpu")]))
def test_exact_is_brute_force_with_many_ties(
    pair: tuple[np.ndarray, np.ndarray], k: int, block: int, devices: tuple[str, ...]
) -> None:
    """Most scores are equal here, so which of them are found is all that can go wrong."""
    queries, documents = pair
    scores, rows = exact_search(queries, documents, k, block=block, devices=devices)
    expected_scores, expected_rows = brute(queries, documents, k)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


def test_exact_is_brute_force_among_near_duplicates() -> None:
    """Half of the documents differ in the last bits only: below the rounding of 32-bit products."""
    rng = np.random.default_rng(0)
    documents = unit(rng, 600, 64)
    documents[::2] = documents[0] * (1 + rng.integers(-3, 4, (300, 64)) * np.float32(2.0**-23))
    queries = np.concatenate((unit(rng, 5, 64), documents[:5]))
    expected = brute(queries, documents, 20)
    for block in (50, 600):
        for given_as in (documents, np.asfortranarray(documents)):
            found = exact_search(queries, given_as, 20, block=block)
            np.testing.assert_array_equal(found[1], expected[1])
            np.testing.assert_array_equal(found[0], expected[0])


@pytest.mark.parametrize("block", [100, 5000])
def test_lower_precision_elsewhere_changes_nothing(block: int) -> None:
    rng = np.random.default_rng(1)
    queries, documents = unit(rng, 40, 32), unit(rng, 3000, 32)
    expected = exact_search(queries, documents, 10)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        found = exact_search(queries, documents, 10, block=block)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])


def test_memory_mapped_halves_and_large_k(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    documents = unit(rng, 30, 8).astype(np.float16)
    np.save(tmp_path / "documents.npy", documents)
    mapped = np.load(tmp_path / "documents.npy", mmap_mode="r")
    queries = unit(rng, 3, 8)
    scores, rows = exact_search(queries, mapped, 100)
    assert scores.shape == rows.shape == (3, 30)
    np.testing.assert_array_equal(rows, brute(queries, documents, 30)[1])
    assert exact_search(queries[:0], mapped, 4)[1].shape == (0, 4)


def test_pair_scores_are_the_scores_of_search() -> None:
    rng = np.random.default_rng(3)
    queries, documents = unit(rng, 7, 48), unit(rng, 200, 48)
    scores, rows = exact_search(queries, documents, 9)
    query = np.repeat(np.arange(7), 9)
    np.testing.assert_array_equal(pair_scores(queries, documents, query, rows.ravel()), scores.ravel())


@pytest.mark.parametrize("index", ["hnsw", "ivf"])
def test_approximate_finds_most(index: Any) -> None:
    rng = np.random.default_rng(4)
    documents = unit(rng, 3000, 8) * np.float32(1e6)
    queries = unit(rng, 50, 8)
    scores, rows = approximate_search(queries, documents, 10, index=index, effort=24)
    exact_scores, exact_rows = exact_search(queries, documents, 10)
    overlap = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, exact_rows, strict=True)])
    assert overlap > 0.9
    same = rows == exact_rows
    np.testing.assert_array_equal(scores[same], exact_scores[same])
    assert (np.diff(scores, axis=1) <= 0).all()
    all_of_it = approximate_search(queries, documents, 10, index=index, effort=3000)
    np.testing.assert_array_equal(all_of_it[0][:, 0], exact_scores[:, 0])


def test_what_is_wrong_is_named() -> None:
    queries, documents = np.zeros((2, 3), np.float32), np.zeros((9, 3), np.float32)
    for bad in (math.nan, math.inf):
        broken = documents.copy()
        broken[7, 1] = bad
        with pytest.raises(DataError, match=rf"document embedding in row 7 is not finite \({bad}\)"):
            exact_search(queries, broken, 1, block=2)
        with pytest.raises(DataError, match="query embedding in row 7"):
            exact_search(broken, documents, 1)
    with pytest.raises(DataError, match="queries have 3 dimensions, documents 4"):
        exact_search(queries, np.zeros((9, 4), np.float32), 1)
    with pytest.raises(DataError, match="no documents"):
        exact_search(queries, documents[:0], 1)
    for name in ("k", "block", "effort"):
        numbers: dict[str, Any] = {"k": 1, "block": 1, "effort": 1} | {name: 0}
        with pytest.raises(ConfigError, match=f"{name} must be 1 or more, got 0"):
            approximate_search(queries, documents, numbers.pop("k"), index="ivf", **numbers)
    with pytest.raises(ConfigError, match="device 'gpu' is not known"):
        exact_search(queries, documents, 1, devices=("gpu",))
    with pytest.raises(ConfigError, match="hnsw runs on the CPU only"):
        approximate_search(queries, documents, 1, index="hnsw", devices=("cuda:0",))


def test_huge_numbers_are_no_mistake() -> None:
    documents = np.full((5, 4), 1e18, dtype=np.float32) * np.arange(5, dtype=np.float32)[:, None]
    assert exact_search(np.ones((1, 4), np.float32), documents, 2)[1].tolist() == [[4, 3]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named() -> None:
    vectors = np.ones((2, 3), np.float32)
    with pytest.raises(BackendError, match="this machine has 0 GPUs"):
        exact_search(vectors, vectors, 1, devices=("cuda:0",))
    with pytest.raises(BackendError, match="faiss"):
        approximate_search(vectors, vectors, 1, index="ivf", devices=("cuda:0",))


@pytest.mark.gpu
def test_gpus_find_what_the_cpu_finds() -> None:
    rng = np.random.default_rng(5)
    queries, documents = unit(rng, 100, 64), unit(rng, 20_000, 64)
    devices = tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))
    expected = exact_search(queries, documents, 50)
    found = exact_search(queries, documents, 50, devices=devices, block=3000)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    approximate = approximate_search(queries, documents, 50, index="ivf", effort=100_000, devices=devices)
    assert (approximate[1] == expected[1]).mean() > 0.95


MEMORY = """
import resource, sys
import numpy as np
from causalneg.search import exact_search
rows, limit = int(sys.argv[2]), int(sys.argv[3])
documents = np.load(sys.argv[1], mmap_mode="r")[:rows]
queries = np.ascontiguousarray(documents[:100])
exact_search(queries[:2], documents[:4096], 5, block=4096)  # what the libraries take themselves
with open("/proc/self/status") as status:
    held = next(int(line.split()[1]) for line in status if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (held + limit, held + limit))
scores, found = exact_search(queries, documents, 5, block=4096)
assert (found[:, 0] == np.arange(100)).all()
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_documents(tmp_path: Path) -> None:
    """80 MB beyond the libraries' own are enough for 50 and for 300 MB of embeddings, and 8 MB are not."""
    rng = np.random.default_rng(6)
    path = tmp_path / "documents.npy"
    documents = np.lib.format.open_memmap(path, "w+", np.float32, (150_000, 512))
    for start in range(0, len(documents), 10_000):
        documents[start : start + 10_000] = unit(rng, 10_000, 512)
    documents.flush()
    for rows, megabytes, enough in ((25_000, 80, True), (150_000, 80, True), (150_000, 8, False)):
        command = [sys.executable, "-c", MEMORY, str(path), str(rows), str(megabytes << 20)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) is enough, done.stderr


MILLION = """
import resource
import numpy as np
from causalneg.search import exact_search
documents = np.empty((1_000_000, 512), dtype=np.float32)
draw = np.random.default_rng(0)
for start in range(0, len(documents), 10_000):
    rows = draw.standard_normal((10_000, 512), dtype=np.float32)
    documents[start : start + 10_000] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
queries = documents[::5_000].copy()
scores, found = exact_search(queries, documents, 100)
assert (found[:, 0] == np.arange(200) * 5_000).all()
assert (np.diff(scores) <= 0).all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_a_million_passages_fit_in_four_gigabytes() -> None:
    """Everything the process ever held: 2.05 GB of embeddings, the libraries, and the search."""
    done = subprocess.run([sys.executable, "-c", MILLION], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 1_000_000 * 512 * 4 < int(done.stdout) < 4e9


# --- BM25 ------------------------------------------------------------------------------------------------

TEXTS = ["red fox runs", "fox fox den", "blue whale swims deep", "red red red whale", "nothing here"]


def bm25(query: str, texts: list[str], k1: float, b: float) -> list[float]:
    """The formula, word by word."""
    split = [text.split() for text in texts]
    mean = sum(map(len, split)) / len(split)
    out = []
    for words in split:
        count, score = Counter(words), 0.0
        for word in query.split():
            frequency = sum(word in other for other in split)
            idf = math.log(1 + (len(texts) - frequency + 0.5) / (frequency + 0.5))
            score += idf * count[word] / (count[word] + k1 * (1 - b + b * len(words) / mean))
        out.append(score)
    return out


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(["red", "fox", "whale", "den", "sea"]), min_size=1), min_size=1, max_size=9
    ),
    st.lists(st.sampled_from(["red", "fox", "whale", "moon"]), max_size=5),
    st.sampled_from([(0.9, 0.4), (1.5, 0.75), (1.2, 0.0)]),
)
def test_bm25_is_its_formula(
    words: list[list[str]], asked: list[str], constants: tuple[float, float]
) -> None:
    texts, asked_text = [" ".join(text) for text in words], " ".join(asked)
    k1, b = constants
    index = BM25(texts, k1=k1, b=b, stem=None, stopwords=None)
    expected = np.array(bm25(asked_text, texts, k1, b), dtype=np.float32)
    query, row = np.divmod(np.arange(2 * len(texts)), len(texts))
    scores = index.score([asked_text, "moon"], query, row).reshape(2, -1)
    np.testing.assert_allclose(scores[0], expected, rtol=1e-5)
    assert (scores[1] == 0).all()
    found, rows = index.search([asked_text, "moon"], 4)
    sharing = sorted(np.flatnonzero(scores[0] > 0), key=lambda row: (-scores[0][row], row))[:4]
    assert rows[0][rows[0] >= 0].tolist() == sharing
    np.testing.assert_array_equal(found[0][: len(sharing)], scores[0][sharing])
    assert (found[rows < 0] == -np.inf).all()
    assert (rows[1] == -1).all()


def test_bm25_words() -> None:
    """Stemming, stop words, case and short words, and equal scores: the lower row first."""
    index = BM25(["The Foxes", "a fox!", "the and of"])
    nothing = [-1, -1, -1]
    assert index.search(["FOX", "the", "", "of a x"], 3)[1].tolist() == [[0, 1, -1], *[nothing] * 3]
    assert BM25(["foxes"], stem=None).search(["fox"], 1)[1].tolist() == [[-1]]
    assert BM25(["the"], stopwords=None).search(["the"], 1)[1].tolist() == [[0]]
    german = BM25(["die Katze", "der Katzen"], stem="german", stopwords=["der", "die"])
    assert german.search(["Katze", "der"], 2)[1].tolist() == [[0, 1], [-1, -1]]


def test_bm25_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"got k1 = -1.0, b = 0.4"):
        BM25(TEXTS, k1=-1.0)
    with pytest.raises(ConfigError, match="there is no stemmer for 'engilsh'; did you mean 'english'"):
        BM25(TEXTS, stem="engilsh")
    with pytest.raises(ConfigError, match="stopwords"):
        BM25(TEXTS, stopwords="klingon")
    with pytest.raises(ConfigError, match="k must be 1 or more, got 0"):
        BM25(TEXTS).search(["fox"], 0)
    for texts in ([], ["", "a"]):
        with pytest.raises(DataError, match="has a word to search for"):
            BM25(texts)


def test_as_run_leaves_out_what_was_not_found() -> None:
    scores = np.array([[2.0, 1.0], [3.0, -np.inf]], dtype=np.float32)
    run = as_run(["q", "r"], ["a", "b", "c"], scores, np.array([[2, 0], [1, -1]]))
    assert run == {"q": {"c": 2.0, "a": 1.0}, "r": {"b": 3.0}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "known"),
    [("wiki-mix", {"dev": 0.80, "test-squad": 0.83, "test-boolq": 0.80}), ("beir-nfcorpus", {"test": 0.305})],
)
def test_bm25_on_real_text(shared: Path, name: str, known: dict[str, float]) -> None:
    """At least what a BM25 without a stemmer is known to reach, and not much more."""
    data = read_dataset(shared / "data" / "retrieval" / name, splits=list(known))
    index = BM25([document.content for document in data.documents])
    for split, plain in known.items():
        queries = data.split_queries(split)
        scores, rows = index.search([query.text for query in queries], 100)
        run = as_run([query.id for query in queries], list(data.index), scores, rows)
        assert plain <= retrieval_metrics(run, data.qrels[split]).mean["ndcg@10"] <= plain + 0.06


def test_the_commands_do_not_bring_along_what_engine_processes_cannot_start_beside() -> None:
    """numba comes with bm25s; vLLM's processes read the modules of the main script again, and stop at it."""
    names = "causalneg.cli, causalneg.commands, causalneg.training.run, causalneg.generation.sets"
    code = f"import sys, {names}; sys.exit('bm25s' in sys.modules or 'numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
