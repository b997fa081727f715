"""`lain serve`: a run over HTTP, its mistakes, its workers and what it loses when one is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import BackendError, ConfigError
from lain.backbones import BACKBONES
from lain.length import PRESETS, LengthOptions
from lain.serving.memories import (
    FileMemories,
    LocalMemories,
    RedisMemories,
    dump_memory,
    load_memory,
    open_memories,
)
from lain.serving.scorer import Scorer, UserMemory
from small_model import SAMPLES, make_batch, make_model
from tiny_log import make_log_run

httpx = pytest.importorskip("httpx", reason="needs httpx")
pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

CONTEXT = {"place": "a", "price": 0.5, "when": 1_700_100_000}
HISTORY = {
    "user": "u1",
    "history": ["3", 4, "unheard of"],
    "columns": {"place": ["a", None, "b"], "when": [1_700_000_000, 1_700_000_100, 1_700_000_900]},
}
QUESTION: dict[str, Any] = {"user": "u1", "candidates": ["7", 8, "new"], "context": CONTEXT}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_log_run(tmp_path_factory.mktemp("serve"))[0]


@contextmanager
def served(run: Path, *options: str) -> Iterator[tuple[Any, subprocess.Popen[str]]]:
    """A client of the real command in a process of its own, on a free port."""
    command = [sys.executable, "-m", "lain.cli", "serve", str(run), "--port", "0", *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), process.communicate(timeout=60)[1]
        with httpx.Client(base_url=address, timeout=120) as client:
            yield client, process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def client(run: Path) -> Iterator[Any]:
    with served(run) as (client, _):
        yield client


def wanted_scores(run: Path) -> list[float]:
    scorer = Scorer(run)
    memory = scorer.encode(HISTORY["history"], user="u1", columns=HISTORY["columns"])  # type: ignore[arg-type]  # of a dict of several types
    found: list[float] = scorer.score(memory, QUESTION["candidates"], CONTEXT).tolist()
    return found


def test_scores_are_those_of_the_scorer(client: Any, run: Path) -> None:
    assert client.get("/health").json() == {"status": "ok", "run": "kept", "model": "twin"}
    answer = client.post("/encode", json=HISTORY)
    assert answer.status_code == 200
    assert answer.json()["length"] == 3
    apart = client.post("/score", json=QUESTION).json()
    assert apart == {"user": "u1", "scores": wanted_scores(run)}
    assert len(set(apart["scores"])) == 3
    together = client.post("/score", json=QUESTION | HISTORY | {"user": "u2"})
    assert together.status_code == 200
    assert client.post("/score", json=QUESTION | {"user": "u2"}).json() == together.json()
    assert client.post("/score", json=QUESTION | {"candidates": []}).json()["scores"] == []


def test_metrics_count(client: Any) -> None:
    def figures() -> dict[str, float]:
        lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    client.post("/encode", json=HISTORY)
    before = figures()
    client.post("/score", json=QUESTION)
    client.post("/score", json=QUESTION | {"user": "nobody"})
    after = figures()

    def more(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert more('lain_requests_total{path="/score",status="200"}') == 1
    assert more('lain_requests_total{path="/score",status="404"}') == 1
    assert more("lain_candidates_total") == 3
    assert (more("lain_memory_hits_total"), more("lain_memory_misses_total")) == (1, 1)
    assert more('lain_request_seconds_bucket{path="/score",le="+Inf"}') == 2
    assert after["lain_memories"] >= 1


@pytest.mark.parametrize(
    ("path", "content", "status", "line"),
    [
        ("/score", {**QUESTION, "user": "nobody"}, 404, "user: no memory of 'nobody'; send the history"),
        ("/score", {"user": "u1"}, 422, "candidates: Field required"),
        ("/score", {**QUESTION, "canditates": []}, 422, "canditates: Extra inputs are not permitted"),
        ("/score", {**QUESTION, "context": {**CONTEXT, "price": "dear"}}, 400, "'price'"),
        ("/score", {**QUESTION, "context": {**CONTEXT, "prize": 1}}, 400, "did you mean 'price'?"),
        ("/score", {**QUESTION, "context": {"place": "a"}}, 400, "is missing"),
        ("/score", {**QUESTION, "candidates": [1.5]}, 422, "candidates.0"),
        ("/score", {**QUESTION, "candidates": [True]}, 422, "candidates.0"),
        ("/score", {**QUESTION, "candidates": [None]}, 422, "candidates.0"),
        ("/score", {**QUESTION, "candidates": [10**30]}, 422, "candidates.0"),
        ("/score", {**QUESTION, "candidates": list(range(10_001))}, 422, "at most 10000 items"),
        ("/score", {**QUESTION, "context": {**CONTEXT, "when": "noon"}}, 400, "'when'"),
        ("/score", {**QUESTION, "context": {**CONTEXT, "when": [1, 2]}}, 400, "2 values for 3 rows"),
        ("/score", {**QUESTION, "context": {**CONTEXT, "price": {"a": 1}}}, 400, "'price'"),
        ("/score", {**QUESTION, "context": {**CONTEXT, "price": 10**400}}, 400, "'price'"),
        ("/score", {**QUESTION, "context": {**CONTEXT, "place": "\ud800"}}, 400, "'place'"),
        ("/encode", {**HISTORY, "length": 2}, 400, "length: 2, but the history has 3 behaviours"),
        ("/encode", {**HISTORY, "length": 10**12}, 400, "length: at most"),
        ("/encode", {**HISTORY, "columns": {}}, 400, "is missing"),
        ("/encode", {**HISTORY, "user": "\ud800"}, 422, "surrogate"),
        ("/encode", {**HISTORY, "history": "3"}, 422, "history"),
        ("/encode", [], 422, "body"),
        ("/nothing", {}, 404, "/nothing: Not Found"),
        ("/health", {}, 405, "Method Not Allowed"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(client: Any, path: str, content: Any, status: int, line: str) -> None:
    client.post("/encode", json=HISTORY)
    body = json.dumps(content).encode()  # surrogates as escapes, as any client may send them
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert line in error
    assert "\n" not in error


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e308"])
def test_numbers_that_are_none_do_no_harm(client: Any, value: str) -> None:
    """Python's JSON reads them; an answer is a score or a mistake, never a failure."""
    client.post("/encode", json=HISTORY)
    body = json.dumps(QUESTION).replace("0.5", value).encode()
    answer = client.post("/score", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 200:
        assert np.isfinite(answer.json()["scores"]).all()


def test_no_json_and_too_much_of_it(client: Any) -> None:
    headers = {"content-type": "application/json"}
    broken = client.post("/score", content=b'{"user": ', headers=headers)
    assert (broken.status_code, "JSON" in broken.json()["error"]) == (422, True)
    nested = client.post("/score", content=b"[" * 100_000, headers=headers)
    assert nested.status_code in (400, 422), nested.text
    large = client.post("/score", content=b" " * (33 << 20), headers=headers)
    assert (large.status_code, "at most" in large.json()["error"]) == (413, True)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Processes that were started by this one and answer; one of the others tracks resources."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            line = (entry / "cmdline").read_text()
        except OSError:
            continue
        if parent == process.pid and "spawn_main" in line:
            found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
def test_a_killed_worker_loses_nothing(run: Path, tmp_path: Path) -> None:
    """Two workers, one of them killed in the middle of requests: every memory is still there."""
    wanted = wanted_scores(run)
    with served(run, "--workers", "2", "--store", str(tmp_path / "memories.sqlite")) as (client, process):
        deadline = time.monotonic() + 600
        while client.get("/health").status_code != 200:
            assert time.monotonic() < deadline
        users = [f"u{n}" for n in range(40)]
        for user in users:
            assert client.post("/encode", json=HISTORY | {"user": user}).status_code == 200
        before = workers_of(process)
        assert len(before) == 2
        killer = threading.Timer(0.05, os.kill, (before[0], signal.SIGKILL))
        killer.start()
        for user in users * 3:
            answer = None
            while answer is None:  # what the killed worker was answering breaks off, and is asked again
                assert time.monotonic() < deadline
                try:
                    answer = client.post("/score", json=QUESTION | {"user": user})
                except httpx.TransportError:
                    time.sleep(0.1)
            assert answer.status_code == 200, answer.text
            if user == "u1":
                assert answer.json()["scores"] == wanted
        killer.join()
        while len(set(workers_of(process)) - {before[0]}) < 2:
            assert time.monotonic() < deadline, "the killed worker was not replaced"
            time.sleep(0.2)


def make_memory(name: str = "twin", preset: str = "lain") -> UserMemory:
    model = make_model(name, LengthOptions(**PRESETS[preset])).eval()
    batch = make_batch(list(SAMPLES))
    table = model.table(batch)
    with torch.no_grad():
        memory = model.backbone.encode(table, batch.spans(), model.length(batch.length, table.dtype))
    one = memory.take(torch.tensor([3]))
    return UserMemory(one, 17, {"user_id": np.array([4], np.int32), "tags": np.ones((1, 3), np.float32)})


@pytest.mark.parametrize("name", list(BACKBONES))
def test_a_memory_survives_its_bytes(name: str) -> None:
    memory = make_memory(name)
    found = load_memory(dump_memory(memory))
    assert type(found.memory) is type(memory.memory)
    assert found.length == 17
    for key, rows in memory.memory.rows.items():
        assert torch.equal(found.memory.rows[key], rows)
        assert found.memory.rows[key].dtype == rows.dtype
    assert torch.equal(found.memory.spans.index, memory.memory.spans.index)
    for key, value in memory.features.items():
        assert np.array_equal(found.features[key], value)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_the_oldest_make_room(kind: str, tmp_path: Path) -> None:
    memory = make_memory()
    size = memory.nbytes if kind == "memory" else len(dump_memory(memory))
    bound = 3 * size
    store = (
        LocalMemories(bound) if kind == "memory" else FileMemories(tmp_path / "m.db", "r", most_bytes=bound)
    )
    for user in "abc":
        store.put(user, memory)
    assert store.count() == 3
    store.put("a", memory)  # again: now the youngest
    store.put("d", memory)
    assert [user for user in "abcd" if store.get(user) is not None] == ["a", "c", "d"]


def test_a_file_is_one_store_of_many_and_keeps_runs_apart(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "m.sqlite"
    first, second, other = (FileMemories(file, run) for run in ("run", "run", "another"))
    first.put("ü'\"", make_memory())
    assert second.get("ü'\"") is not None
    assert (second.count(), other.count(), other.get("ü'\"")) == (1, 0, None)


def test_a_store_that_is_none(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be memory, a file .* got 'disk'"):
        open_memories("disk", run, most_bytes=1)
    (tmp_path / "text.sqlite").write_text("this is no database, whatever it is called" * 100)
    with pytest.raises(ConfigError, match="cannot be used"):
        open_memories(str(tmp_path / "text.sqlite"), run, most_bytes=1)
    pytest.importorskip("redis", reason="needs the extra serve")
    with pytest.raises(BackendError, match=r"redis://127\.0\.0\.1:1/0 does not answer"):
        open_memories("redis://127.0.0.1:1/0", run, most_bytes=1)


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server here")
def test_redis_is_one_store_of_many(tmp_path: Path) -> None:
    address = tmp_path / "redis.sock"
    server = subprocess.Popen(["redis-server", "--port", "0", "--unixsocket", str(address), "--save", ""])
    try:
        deadline = time.monotonic() + 20
        while not address.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first, second, other = (RedisMemories(f"unix://{address}", run) for run in ("run", "run", "another"))
        memory = make_memory()
        first.put("u", memory)
        found = second.get("u")
        assert found is not None
        assert found.length == memory.length
        assert (second.count(), other.get("u"), other.count()) == (1, None, 0)
    finally:
        server.terminate()
        server.wait(20)
    with pytest.raises(BackendError, match="does not answer"):
        first.get("u")


def test_mistakes_of_the_command_line(run: Path) -> None:
    from click.testing import CliRunner

    from lain.cli import main
    from lain.serving.service import listen

    for options, line in (
        (["--workers", "2"], "2 workers need one that they share"),
        (["--store", "cloud"], "store: must be memory"),
    ):
        result = CliRunner().invoke(main, ["serve", str(run), *options])
        assert result.exit_code == 2
        assert line in result.output
    with pytest.raises(ConfigError, match="cannot listen"):
        listen("256.0.0.1", 0)
