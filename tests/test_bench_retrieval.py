"""The speed comparison of retrieval: its texts, its arithmetic, its sides, and the command on tiny sizes."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from causalneg.data import read_dataset
from causalneg.encoders import load_encoder
from common.machine import peak_memory

BENCH = Path(__file__).resolve().parents[1] / "experiments" / "bench"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return importlib.import_module("bench_retrieval")


@pytest.fixture(scope="module")
def worker() -> ModuleType:
    return importlib.import_module("bench_retrieval_worker")


@pytest.fixture(scope="module")
def sizes(bench: ModuleType) -> Any:
    return replace(bench.QUICK, documents=120, queries=20, encoded=6, matrix=256)


@pytest.fixture(scope="module")
def files(bench: ModuleType, sizes: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return bench.make_data(sizes, tmp_path_factory.mktemp("bench"))


class Here:
    """A side in this process, on one thread."""

    def __init__(self, worker: ModuleType) -> None:
        self._answer = worker.Answers()

    def ask(self, **request: Any) -> dict[str, Any]:
        if "threads" in request:
            request["threads"] = 1
        found: dict[str, Any] = json.loads(json.dumps(self._answer(json.loads(json.dumps(request)))))
        return found

    def peak_memory(self) -> int:
        return peak_memory()


def make_bench(bench: ModuleType, worker: ModuleType, sizes: Any, files: Any, *, with_peer: bool) -> Any:
    def start(name: str) -> AbstractContextManager[Here]:
        return nullcontext(Here(worker))

    return bench.Bench(sizes=sizes, files=files, start=start, with_peer=with_peer, turns=2, seconds=0.0)


def test_text_follows_the_description(bench: ModuleType) -> None:
    source = bench.Source(bench.Text())
    passages = source.passages(1500)
    lengths = np.array([len(passage.split()) for passage in passages])
    assert 106 <= lengths.mean() <= 114
    assert 92 <= np.median(lengths) <= 98
    counts = Counter(" ".join(passages).lower().replace(".", "").split())
    assert [word for word, _ in counts.most_common(3)] == ["the", "of", "and"]
    expected = (10 + 2.7) / (1 + 2.7)  # ranks 1 and 10
    assert counts["the"] / counts[bench.FUNCTION_WORDS[9]] == pytest.approx(expected, rel=0.1)
    queries = [source.query(passage) for passage in passages]
    assert 8.5 <= np.mean([len(query.split()) for query in queries]) <= 9.5
    shared = [
        len(set(q[:-1].lower().split()) & set(p.lower().replace(".", "").split())) / len(set(q.split()))
        for q, p in zip(queries, passages, strict=True)
    ]
    assert np.mean(shared) > 2 / 3


def test_negatives_are_ragged_and_seven_on_average(bench: ModuleType) -> None:
    counts = np.array(bench.negative_counts(2000, 7, np.random.default_rng(0)))
    assert set(counts.tolist()) == set(range(1, 14))
    assert (counts.reshape(-1, 2).sum(1) == 14).all()


def test_the_peer_gets_the_same_texts_in_every_batch(worker: ModuleType, sizes: Any, files: Any) -> None:
    data = json.loads(Path(files / "training.json").read_text())
    assert len(data) == 2 * sizes.cached
    for size in (sizes.plain, sizes.cached):
        for start in range(0, len(data), size):
            block = data[start : start + size]
            queries, positives, *negatives = worker.columns(block)
            assert queries == [one["query"] for one in block]
            assert positives == [one["positive"] for one in block]
            assert [len(column) for column in negatives] == [size] * 7
            dealt = sorted(text for column in negatives for text in column)
            assert dealt == sorted(text for one in block for text in one["negatives"])
            assert len(set(dealt) | set(positives)) == 8 * size
    blocks = worker.Blocks(7, 3)
    assert [blocks().tolist() for _ in range(3)] == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]


def test_floor_counts_what_the_model_multiplies(worker: ModuleType, files: Any) -> None:
    encoder: Any = load_encoder(Path(files / "bert"))
    texts = json.loads(Path(files / "encoded.json").read_text())
    tokens = encoder.tokenize(texts, query=False)
    assert len(set(tokens.lengths.tolist())) > 1
    encoder.core.pooler = None  # it is not used, and trained by neither side

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]  # torch leaves it untyped

    known = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    with FlopCounterMode(display=False, custom_mapping=known) as counter, torch.no_grad():
        encoder.eval()(torch.from_numpy(tokens.values), torch.from_numpy(tokens.offsets), query=False)
    config = encoder.core.config
    assert worker.model_flops(config, tokens.lengths.tolist()) == counter.get_total_flops()
    assert worker.layer_flops([3], width=2, inner=5, layers=1) == 2 * 3 * (16 + 20) + 4 * 9 * 2


def test_ratios_are_of_turns(bench: ModuleType) -> None:
    found = bench.row("x", "queries/s", [2.0, 3.0, 9.0], [2.0, 1.0, 1.0], target=3.5)
    assert (found["ours"], found["peer"]) == (3.0, 1.0)
    assert (found["ratio"], found["low"], found["high"]) == (3.0, 1.0, 9.0)
    assert found["met"] is False
    assert bench.verdict(found) == "short of 3.5x"
    less = bench.row("x", "GB", [2.0], [5.0], target=2.0, less=True, peaks=(2e9, 5e9))
    assert (less["ratio"], less["low"], less["met"]) == (2.5, None, True)
    assert (less["peak_gb"], less["peer_peak_gb"]) == (2.0, 5.0)
    alone = bench.row("x", "queries/s", [2.0], [], target=2.0)
    assert alone["ratio"] is alone["peer"] is alone["met"] is None
    assert bench.verdict(alone) == "2x, nothing to compare with"
    assert "| 3.00 (1.00 to 9.00) |" in bench.table([found])


KEYS = {"what", "ours", "peer", "ratio", "low", "high", "unit", "target", "met", "share_of_floor"}
KEYS |= {"peak_gb", "peer_peak_gb", "turns", "matrix_flops_per_second"}


def check(rows: list[dict[str, Any]]) -> None:
    for one in rows:
        assert set(one) == KEYS
        assert one["ours"] > 0
        share = one["share_of_floor"]
        assert share is None or 0 < share <= 1
        if one["peer"] is not None:
            assert one["ratio"] > 0
        if one["target"] is not None and one["ratio"] is not None:
            assert one["met"] == (one["ratio"] >= one["target"])


def test_every_part_runs(bench: ModuleType, worker: ModuleType, sizes: Any, files: Any) -> None:
    parts: list[str] = []
    kept: list[list[dict[str, Any]]] = []
    make_bench(bench, worker, sizes, files, with_peer=False).rows(parts.append, kept.append)
    assert [len(rows) for rows in kept] == [2, 3, 4, 5, 6, 7]
    rows = kept[-1]
    check(rows)
    assert [one["what"].split(",")[0] for one in rows] == [
        "query_view_entropy",
        "distribution_matching",
        "training",
        "training",
        "encoding",
        "mining",
        "mining",
    ]
    assert [one["share_of_floor"] is None for one in rows] == [True, True, False, False, False, False, True]
    assert [one["peak_gb"] is None for one in rows] == [True, True] + [False] * 5
    assert all(one["peer"] is not None for one in rows[:2])
    assert all(one["peer"] is None for one in rows[2:])
    assert parts[0] == "regularisers"


def test_one_part_runs_by_itself(bench: ModuleType, worker: ModuleType, sizes: Any, files: Any) -> None:
    kept: list[list[dict[str, Any]]] = []
    whole = make_bench(bench, worker, sizes, files, with_peer=False)
    dataclasses.replace(whole, parts=("encoding",)).rows(lambda part: None, kept.append)
    assert [[one["what"] for one in rows] for rows in kept] == [["encoding"]]


@pytest.mark.slow
def test_both_sides_make_the_same_vectors(
    bench: ModuleType, worker: ModuleType, sizes: Any, files: Any
) -> None:
    run = make_bench(bench, worker, sizes, files, with_peer=True)
    request = {"data": files / "training.json", "batch_size": 4, "cached": True}
    (found,) = run.pair("training", "queries/s", "train", request, "bert", 1.3)
    assert found["ratio"] > 0
    assert found["low"] <= found["ratio"] <= found["high"]


def test_mining_finds_negatives(worker: ModuleType, sizes: Any, files: Any) -> None:
    dataset = read_dataset(Path(files / "mining"), splits=["train"])
    assert len(dataset.documents) == sizes.documents
    request = {"data": files / "mining", "count": 7, "depth": 30}
    for encoder in (None, files / "words"):
        found = worker.MineOwn(request | {"encoder": encoder}).step("")
        assert found["units"] == sizes.queries
        assert found["negatives"] > sizes.queries


@pytest.mark.slow
def test_quick_run_writes_the_figures(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    command = [sys.executable, str(BENCH / "bench_retrieval.py"), "--quick", "--out", str(out)]
    packages = str(BENCH.parents[1] / "packages")
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": packages})
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())
    check(rows)
    assert [one["unit"] for one in rows].count("GB") == 2
    assert all(one["peer"] is not None for one in rows[:-1])
    assert "n/a" not in done.stdout
    assert "short of" in done.stdout or "met" in done.stdout


@pytest.mark.slow
def test_quick_serving_measures_search_and_service_and_equals_evaluate(tmp_path: Path) -> None:
    out = tmp_path / "search.json"
    command = [sys.executable, str(BENCH / "bench_retrieval.py"), "--serving", "--quick", "--out", str(out)]
    packages = str(BENCH.parents[1] / "packages")
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": packages})
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert figures["equal to evaluate"]
    assert figures["hnsw recall"] > 0.9
    assert len(figures["rows"]) == 9
    assert all(row["p50"] <= row["p95"] <= row["p99"] and row["per_second"] > 0 for row in figures["rows"])
    assert "equals evaluate" in done.stdout
