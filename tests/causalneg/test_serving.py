"""Vectors on disk, indexes, search, the service: equal to evaluate, whole after a kill, in a real process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from causalneg.cli import main
from causalneg.encoders import build_encoder
from causalneg.search.stored import open_index
from causalneg.search.vectors import About, VectorFolder, content_hash, write_vectors
from causalneg.serving.batching import Batcher
from causalneg.serving.texts import read_queries
from common.errors import DataError
from common.service import BusyError
from tiny_retrieval import DOCUMENTS, QUERIES, causalneg, tiny_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("serving") / "data")


@pytest.fixture(scope="module")
def encoder(data: Path) -> Path:
    folder = data.parent / "encoder"
    build_encoder("static", {"dim": 16}, texts=[d.content for d in DOCUMENTS]).save(folder)
    return folder


@pytest.fixture(scope="module")
def vectors(data: Path, encoder: Path) -> Path:
    folder = data.parent / "vectors"
    causalneg("encode", data, folder, "--encoder", encoder, "--quiet")
    return folder


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return result.stderr


@pytest.mark.parametrize("form", ["npy", "safetensors"])
def test_search_gives_what_evaluate_gives(form: str, data: Path, encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "vectors"
    causalneg("encode", data, out, "--encoder", encoder, "--format", form, "--quiet")
    found = causalneg("search", out, data, "--split", "test", "--depth", 7, "--out", tmp_path / "run.trec")
    assert found.stdout.strip() == str(tmp_path / "run.trec")
    causalneg("evaluate", "--encoder", encoder, "--data", data, "--depth", 7, "--out", tmp_path, "--quiet")
    expected = (tmp_path / "eval" / "data-test" / "run.trec").read_text()
    assert (tmp_path / "run.trec").read_text() == expected
    assert len(expected.splitlines()) == 6 * 7
    made = VectorFolder.open(out)
    assert made.ids == [document.id for document in DOCUMENTS]
    if form == "safetensors":
        assert np.array_equal(load_file(out / "vectors.safetensors")["vectors"], made.vectors)
    else:
        assert np.array_equal(np.load(out / "vectors.npy"), made.vectors)
    assert not (out / ".parts").exists()


def test_queries_come_from_a_data_set_a_table_json_lines_or_plain_lines(
    data: Path, encoder: Path, vectors: Path, tmp_path: Path
) -> None:
    whole = causalneg("search", vectors, data, "--depth", 3).stdout
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [line["query"] for line in lines] == [query.id for query in QUERIES]
    assert all(len(line["hits"]) == 3 for line in lines)
    (tmp_path / "q.jsonl").write_text(
        "".join(json.dumps({"id": query.id, "query": query.text}) + "\n" for query in QUERIES)
    )
    (tmp_path / "q.tsv").write_text("".join(f"{query.id}\t{query.text}\n" for query in QUERIES))
    (tmp_path / "q.txt").write_text("".join(f"{query.text}\n" for query in QUERIES))
    for name in ("q.jsonl", "q.tsv"):
        assert causalneg("search", vectors, tmp_path / name, "--depth", 3).stdout == whole
    plain = causalneg("search", vectors, tmp_path / "q.txt", "--depth", 3, "--out", tmp_path / "hits.jsonl")
    assert plain.stdout.strip() == str(tmp_path / "hits.jsonl")
    numbered = [json.loads(line) for line in (tmp_path / "hits.jsonl").read_text().splitlines()]
    assert [line["query"] for line in numbered] == [str(number) for number in range(1, 13)]
    assert [line["hits"] for line in numbered] == [line["hits"] for line in lines]
    one = json.loads(causalneg("search", vectors, "--query", QUERIES[2].text, "--depth", 3).stdout)
    assert one["hits"] == lines[2]["hits"]
    causalneg(
        "encode", data, tmp_path / "queries", "--encoder", encoder, "--queries", "--split", "test", "--quiet"
    )
    assert VectorFolder.open(tmp_path / "queries").ids == [query.id for query in QUERIES[:6]]
    for name, content, said in (
        ("twice.tsv", "a\tone\na\ttwo\n", "query id 'a' is there twice"),
        ("tab.tsv", "one two\n", "tab.tsv:1: must be an id, a tab and a text"),
        ("blank.tsv", "a b\tone\n", "blank.tsv:1: query id 'a b' has a blank"),
        ("empty.txt", "\n", "holds no queries"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=said):
            read_queries(tmp_path / name)


def test_the_document_with_the_querys_own_id_is_no_hit(encoder: Path, vectors: Path, tmp_path: Path) -> None:
    (tmp_path / "q.tsv").write_text(f"fox0\t{DOCUMENTS[0].text}\nq\t{DOCUMENTS[0].text}\n")

    def hits(*options: str) -> list[list[str]]:
        shown = causalneg("search", vectors, tmp_path / "q.tsv", "--depth", 4, *options).stdout
        return [[hit["id"] for hit in json.loads(line)["hits"]] for line in shown.splitlines()]

    own, other = hits()
    assert "fox0" not in own
    assert len(own) == len(other) == 4
    assert other[0] == "fox0"
    assert hits("--keep-identical")[0][0] == "fox0"


class Counting:
    """Vectors by row, that notes what it is asked and fails once where it is told to."""

    def __init__(self, dim: int, fail: int | None = None) -> None:
        self.dim, self.fail = dim, fail
        self.asked: list[tuple[int, int]] = []

    def __call__(self, first: int, last: int) -> np.ndarray:
        if self.fail == first:
            raise KeyboardInterrupt
        self.asked.append((first, last))
        return np.outer(np.arange(first, last), np.ones(self.dim)).astype(np.float32)


def about(count: int = 10, **changes: Any) -> About:
    ids = [f"d{row}" for row in range(count)]
    values: dict[str, Any] = {
        "part": "documents", "source": "s", "content": content_hash(ids, ids), "count": count, "dim": 3,
        "encoder": "e", "fingerprint": "f", "reading": {}, "block": 4,
    }  # fmt: skip
    return About(**values | changes)


IDS = [f"d{row}" for row in range(10)]


def test_a_killed_encode_goes_on_and_other_vectors_are_refused(tmp_path: Path) -> None:
    killed = Counting(3, fail=8)
    with pytest.raises(KeyboardInterrupt):
        write_vectors(tmp_path / "v", about(), IDS, killed)
    with pytest.raises(DataError, match="not finished; run the same encode again"):
        VectorFolder.open(tmp_path / "v")
    with pytest.raises(DataError, match="fingerprint f, not g"):
        write_vectors(tmp_path / "v", about(fingerprint="g"), IDS, Counting(3))
    again = Counting(3)
    assert write_vectors(tmp_path / "v", about(), IDS, again)
    assert (killed.asked, again.asked) == ([(0, 4), (4, 8)], [(8, 10)])
    assert VectorFolder.open(tmp_path / "v").vectors[:, 0].tolist() == list(range(10))
    finished = Counting(3)
    assert write_vectors(tmp_path / "v", about(), IDS, finished)
    assert finished.asked == []
    with pytest.raises(DataError, match=r"content .*, not "):
        write_vectors(tmp_path / "v", about(content="other"), IDS, finished)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(DataError, match="not empty"):
        write_vectors(tmp_path / "mine", about(), IDS, finished)
    with pytest.raises(DataError, match="vector of 'd0' is not finite"):
        write_vectors(tmp_path / "nan", about(), IDS, lambda first, last: np.full((4, 3), np.nan))


def test_processes_share_a_folder(tmp_path: Path) -> None:
    first, second = Counting(3), Counting(3)
    assert not write_vectors(tmp_path / "v", about(), IDS, first, share=(1, 2))
    assert write_vectors(tmp_path / "v", about(), IDS, second, share=(0, 2))
    assert (first.asked, second.asked) == ([(4, 8)], [(0, 4), (8, 10)])
    assert VectorFolder.open(tmp_path / "v").vectors[:, 1].tolist() == list(range(10))


def test_indexes_stand_beside_their_vectors_and_stale_ones_are_refused(
    data: Path, encoder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "v"
    causalneg("encode", data, out, "--encoder", encoder, "--quiet")
    exact = causalneg("search", out, data, "--depth", 5).stdout
    assert "causalneg index" in refused("search", out, data, "--index", "hnsw")
    for kind in ("hnsw", "ivf"):  # so few documents that nothing is missed
        assert causalneg("index", out, "--kind", kind).stdout.strip() == str(out / f"{kind}.faiss")
        assert causalneg("search", out, data, "--depth", 5, "--index", kind).stdout == exact
    folder = VectorFolder.open(out)
    (out / "hnsw.faiss").write_bytes(b"broken")
    with pytest.raises(DataError, match="cannot be read"):
        open_index(folder, "hnsw")
    content = json.loads((out / "ivf.json").read_text())
    (out / "ivf.json").write_text(json.dumps(content | {"content": "other"}))
    assert "was made of other vectors" in refused("search", out, data, "--index", "ivf")


def test_mistakes_are_one_line(data: Path, encoder: Path, vectors: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    build_encoder("static", {"dim": 16}, texts=[d.content for d in DOCUMENTS], seed=3).save(other)
    assert "made by another encoder" in refused("search", vectors, data, "--encoder", other)
    assert "vectors.json: missing; causalneg encode writes it" in refused("search", tmp_path, data)
    assert "name QUERIES or --query" in refused("search", vectors)
    assert "'4/4' is not as 0/4" in refused("encode", data, tmp_path / "x", "--shard", "4/4")
    assert "only queries have a split" in refused("encode", data, tmp_path / "x", "--split", "test")
    causalneg("encode", data, tmp_path / "q", "--encoder", encoder, "--queries", "--quiet")
    assert "holds vectors of queries" in refused("search", tmp_path / "q", data)


def test_jobs_that_wait_are_done_together() -> None:
    begun, go = threading.Event(), threading.Event()
    batches: list[list[int]] = []

    def run(jobs: Sequence[int]) -> list[int]:
        begun.set()
        assert go.wait(10)
        batches.append(list(jobs))
        return [job * job for job in jobs]

    batcher = Batcher(run, size=lambda job: job, most=6, waiting=3)
    results = [batcher.submit(1)]
    assert begun.wait(10)
    results += [batcher.submit(job) for job in (2, 3, 4)]  # 2 + 3 fit into a batch of 6
    with pytest.raises(BusyError):
        batcher.submit(1)
    go.set()
    assert [result.result(10) for result in results] == [1, 4, 9, 16]
    assert batches == [[1], [2, 3], [4]]


def test_a_batch_that_fails_answers_every_job() -> None:
    def run(jobs: Sequence[int]) -> list[int]:
        raise RuntimeError("broken")

    batcher = Batcher(run, size=lambda job: 1)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken"):
            batcher.submit(1).result(10)


@pytest.fixture(scope="module")
def service(data: Path, vectors: Path) -> Iterator[str]:
    """Address of a service in a process of its own."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    program = "from causalneg.cli import main; main()"
    command = [sys.executable, "-c", program, "serve", str(vectors), "--port", "0", "--data", str(data)]
    path = os.pathsep.join(sys.path)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    lines: list[str] = []
    while not (lines and lines[-1].startswith("listening on ")):
        lines.append(process.stderr.readline())
        assert lines[-1], "".join(lines)  # it ended
    yield lines[-1].split()[-1]
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert out == ""


def ask(address: str, body: object | None = None) -> tuple[int, Any]:
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, content, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, raw = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            status, raw = error.code, error.read().decode()
    return status, raw if address.endswith("/metrics") else json.loads(raw)


def test_the_service_answers_as_the_command_does(service: str, data: Path, vectors: Path) -> None:
    shown = causalneg("search", vectors, data, "--depth", 4).stdout.splitlines()
    expected = [json.loads(line)["hits"] for line in shown]
    status, found = ask(f"{service}/search", {"queries": [query.text for query in QUERIES], "k": 4})
    assert status == 200
    texts = {document.id: document.content for document in DOCUMENTS}
    assert found["hits"] == [[hit | {"text": texts[hit["id"]]} for hit in hits] for hits in expected]
    with ThreadPoolExecutor(12) as pool:  # at once, each with its own k
        several = pool.map(
            lambda at: ask(f"{service}/search", {"queries": [QUERIES[at].text], "k": at % 4 + 1}), range(12)
        )
        for at, (status, one) in enumerate(several):
            assert status == 200
            assert one["hits"][0] == found["hits"][at][: at % 4 + 1]
    status, made = ask(f"{service}/encode", {"texts": [document.content for document in DOCUMENTS]})
    assert (status, made["dim"]) == (200, 16)
    assert np.allclose(made["vectors"], VectorFolder.open(vectors).vectors, atol=1e-6)
    assert ask(f"{service}/health")[1]["documents"] == 12


def test_the_services_mistakes_and_metrics(service: str) -> None:
    for path, body, status, said in (
        ("search", {"queries": ["x"], "k": 0}, 422, "k: Input should be greater than or equal to 1"),
        ("search", {"queries": []}, 422, "queries: "),
        ("search", {"queries": ["x"], "depth": 3}, 422, "depth: Extra inputs are not permitted"),
        ("encode", {"texts": [""]}, 422, "texts.0: "),
        ("encode", {"texts": ["x"] * 257}, 422, "texts: "),
    ):
        found, answer = ask(f"{service}/{path}", body)
        assert found == status
        assert said in answer["error"]
        assert "\n" not in answer["error"]
    assert ask(f"{service}/nowhere")[0] == 404
    _, metrics = ask(f"{service}/metrics")
    assert 'causalneg_requests_total{path="/search",status="422"} 3' in metrics
    assert 'causalneg_requests_total{path="other",status="404"} 1' in metrics
    assert "causalneg_documents 12" in metrics
