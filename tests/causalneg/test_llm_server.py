"""The client of OpenAI-compatible servers against a server that misbehaves."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from causalneg.data.schema import Analysis, Document, Query
from causalneg.generation.driver import Generated, generate
from causalneg.generation.jobs import Runner
from causalneg.generation.journal import Journal
from causalneg.generation.status import read_totals
from causalneg.generation.writers.base import Pair
from causalneg.generation.writers.language_model import LLMWriter
from causalneg.generation.writers.prompts import Prompts
from causalneg.llm.budget import Budget
from causalneg.llm.chat import ChatFailure, ChatRequest, ChatResult, complete
from causalneg.llm.openai_server import OpenAIBackend
from common.errors import BackendError, ConfigError
from fault_server import FAULTS, MODEL, Behaviour, FaultServer, half_fail


@contextmanager
def client(endpoints: str | Sequence[str], **settings: Any) -> Iterator[OpenAIBackend]:
    urls = [endpoints] if isinstance(endpoints, str) else list(endpoints)
    quick = {"timeout": 0.4, "first_wait": 0.02, "attempts": 8}
    backend = OpenAIBackend(model=MODEL, endpoints=urls, **(quick | settings))
    try:
        yield backend
    finally:
        backend.close()


def pair(number: int) -> Pair:
    return Pair(
        Query(id=f"q{number}", text=f"who won race {number}"),
        Document(id=f"d{number}", text=f"Ann won race {number}. Bo came second."),
        (Document(id=f"c{number}", text=f"Race {number} began late."),),
    )


def requests(count: int) -> list[ChatRequest]:
    prompts = Prompts()
    return [
        ChatRequest(
            f"{n}",
            prompts.analysis(pair(n).query, pair(n).positive),
            Analysis,
            prompts.analysis_schema,
            200,
            seed=n,
        )
        for n in range(count)
    ]


def once(fault: str) -> Behaviour:
    """The first request goes wrong, all others go well."""
    return lambda number, digest: fault if number == 0 else "right"


@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_fault_the_answer_comes_all_the_same(fault: str) -> None:
    with FaultServer(once(fault)) as server, client(server.url) as backend:
        (outcome,) = complete(backend, requests(1))
    assert isinstance(outcome, ChatResult)
    assert isinstance(outcome.value, Analysis)
    assert outcome.value.core_need == "who won race 0"
    repaired = fault in ("prose", "fence")
    assert outcome.repaired == repaired
    assert outcome.attempts == (1 if repaired else 2)
    # What a failed attempt read and wrote is paid, so it is counted.
    paid = fault in ("cut", "no choices", "no text", "wrong schema", "not json")
    assert outcome.completion_tokens == (40 if paid else 20)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("500", "server error"),
        ("reset", "server error"),
        ("html", "server error"),
        ("stall", "timeout"),
        ("no text", "empty answer"),
        ("no choices", "empty answer"),
        ("not json", "not json"),
        ("wrong schema", "wrong schema"),
        ("429", "rate limited"),
    ],
)
def test_what_never_goes_well_fails_with_its_reason(fault: str, kind: str) -> None:
    behave: Behaviour = lambda number, digest: fault  # noqa: E731
    with FaultServer(behave) as server, client(server.url, attempts=2, timeout=0.1, patience=0.3) as backend:
        (outcome,) = complete(backend, requests(1))
    assert isinstance(outcome, ChatFailure)
    assert outcome.kind == kind
    assert server.url in outcome.detail


def test_of_an_answer_that_is_always_cut_the_whole_parts_are_taken_in_the_end() -> None:
    with FaultServer(lambda n, d: "cut") as server, client(server.url, attempts=3) as backend:
        (outcome,) = complete(backend, requests(1))
    assert isinstance(outcome, ChatResult)
    assert (outcome.attempts, outcome.repaired) == (3, True)
    assert isinstance(outcome.value, Analysis)
    assert len(outcome.value.requirements) == 1
    # Each attempt has more room than the one before.
    assert [body["max_tokens"] for body in server.bodies] == [200, 400, 800]


def test_retry_after_is_obeyed_by_everyone() -> None:
    wait = 0.5
    with (
        FaultServer(once("429"), retry_after=str(wait)) as server,
        client(server.url, concurrency=1, highest_concurrency=1) as backend,
    ):
        outcomes = complete(backend, requests(3))
    assert all(isinstance(o, ChatResult) for o in outcomes)
    (first, _), (second, _) = server.times[:2]
    assert second - first >= wait


def test_a_server_that_asks_for_more_patience_than_there_is_ends_the_run() -> None:
    with FaultServer(once("429"), retry_after="86400") as server, client(server.url, patience=5.0) as backend:
        with pytest.raises(BackendError) as caught:
            complete(backend, requests(2))
    assert "asks to wait for 86400 s" in str(caught.value)


def test_a_pool_behind_a_server_is_never_asked_for_more_than_it_takes_at_a_time() -> None:
    with (
        FaultServer(latency=0.01) as server,
        client(server.url, concurrency=4, highest_concurrency=4) as backend,
    ):
        complete(backend, requests(40))
    assert server.most_at_once <= 4


def test_an_answer_keeps_its_place_until_the_next_is_asked_for() -> None:
    queue = iter(requests(20))
    with (
        FaultServer() as server,
        client(server.url, concurrency=3, highest_concurrency=3) as backend,
    ):
        for settled, _ in enumerate(backend.stream(lambda: next(queue, None))):
            time.sleep(0.03)  # long enough for the server to answer whatever is sent
            assert sum(server.paid.values()) - settled <= 3
        # A stream that is left early gives its places back.
        queue = iter(requests(20))
        next(backend.stream(lambda: next(queue, None)))
        assert len(complete(backend, requests(9))) == 9
    assert server.most_at_once <= 3


def test_several_endpoints_share_the_work_and_one_that_is_away_stops_nobody() -> None:
    with FaultServer(latency=0.01) as one, FaultServer(latency=0.01) as other, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        said: list[str] = []
        with client([away, one.url, other.url], concurrency=4, report=said.append) as backend:
            outcomes = complete(backend, requests(40))
    assert all(isinstance(o, ChatResult) for o in outcomes)
    assert min(one.happened["right"], other.happened["right"]) > 0
    assert said == [
        f"{away}: no server answers; start it, or give another endpoint; going on with the others"
    ]


def test_a_server_that_goes_away_ends_the_run_in_one_line() -> None:
    with FaultServer() as server:
        backend = OpenAIBackend(
            model=MODEL, endpoints=[server.url], first_wait=0.02, patience=0.3, timeout=0.1
        )
    try:
        with pytest.raises(BackendError, match=r"no server has answered for 0\.3 s; what is"):
            complete(backend, requests(2))
    finally:
        backend.close()


def test_no_server_is_told_before_anything_is_asked() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        with pytest.raises(BackendError, match="no server answers; start it, or give another endpoint"):
            OpenAIBackend(model=MODEL, endpoints=[url])


def test_the_key_comes_from_the_environment_and_is_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    key = "sk-very-secret"
    with FaultServer(lambda n, d: "500", key=key) as server:
        with pytest.raises(BackendError, match="wants a key; set MY_KEY to it"):
            OpenAIBackend(model=MODEL, endpoints=[server.url], key_variable="MY_KEY")
        monkeypatch.setenv("MY_KEY", "sk-wrong-one")
        with pytest.raises(BackendError) as caught:
            OpenAIBackend(model=MODEL, endpoints=[server.url], key_variable="MY_KEY")
        assert str(caught.value) == f"{server.url}: refuses the key in MY_KEY; check that key"
        monkeypatch.setenv("MY_KEY", key)
        with client(server.url, key_variable="MY_KEY", attempts=1) as backend:
            (outcome,) = complete(backend, requests(1))
        assert isinstance(outcome, ChatFailure)
        assert key not in outcome.detail
    assert "sk-" not in caplog.text
    assert not any(key in str(body) for body in server.bodies)


def test_a_server_that_repeats_the_key_is_not_quoted_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-said-back")

    class Gossip(FaultServer):
        async def _act(self, what: str, asked: Any, digest: str, writer: Any) -> bool:
            await self._send(writer, 500, {"error": {"message": "failed for sk-said-back"}})
            return True

    with Gossip() as server, client(server.url, attempts=1) as backend:
        (outcome,) = complete(backend, requests(1))
    assert isinstance(outcome, ChatFailure)
    assert outcome.detail.endswith("failed for ***'}}") or outcome.detail.endswith("failed for ***")


def test_an_unknown_model_is_told_with_those_that_there_are() -> None:
    with FaultServer() as server, pytest.raises(BackendError) as caught:
        OpenAIBackend(model="tinny", endpoints=[server.url])
    assert str(caught.value) == f"{server.url}: has no model 'tinny', only tiny; did you mean 'tiny'?"


def test_settings_that_cannot_be_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        OpenAIBackend(endpoints=["localhost:8000"], timeout=0.0)
    assert len(caught.value.messages) == 3


def test_structured_outputs_are_asked_for_and_done_without_where_a_server_has_none() -> None:
    with FaultServer() as server, client(server.url) as backend:
        complete(backend, requests(1))
    assert server.bodies[0]["response_format"]["json_schema"]["schema"] == Prompts().analysis_schema
    said: list[str] = []
    refuses = frozenset({"response_format", "seed"})
    with (
        FaultServer(lambda n, d: "prose", refuses=refuses) as server,
        client(server.url, report=said.append) as backend,
    ):
        outcomes = complete(
            backend, requests(12)
        )  # with three refusals each, no more than the server remembers
    assert all(isinstance(o, ChatResult) and o.repaired for o in outcomes)
    assert "response_format" not in server.bodies[-1]
    assert "seed" not in server.bodies[-1]
    # However many requests come back at once, each change is made and told once.
    assert [line.partition(": ")[2].split(" (")[0].split(";")[0] for line in said] == [
        "takes no json_schema",
        "takes no json_object",
        "does not take 'seed'",
    ]


def test_the_context_is_taken_from_a_server_that_tells_it() -> None:
    with FaultServer(max_model_len=4096) as server:
        with client(server.url) as backend:
            assert backend.context == 4096
        with client(server.url, context=2048) as backend:
            assert backend.context == 2048


def test_a_pair_that_is_too_long_for_the_server_is_tried_again_cut() -> None:
    whole = " ".join(f"Sentence {n} is here." for n in range(400))
    long = Pair(pair(0).query, Document(id="d", text=whole))
    with FaultServer(context=12_000) as server, client(server.url) as backend:
        made = generate([long], LLMWriter(backend=backend), report=lambda line: None)
    assert made.cut == 1
    assert made.examples[0].negatives
    assert server.happened["too long"] >= 1
    shown = server.bodies[-1]["messages"][1]["content"].split("\n\n")[1]
    assert shown.endswith(" is here.")
    assert whole.startswith(shown.partition("\n")[2])


PAIRS = 40


def journaled(path: Path, backend: OpenAIBackend, count: int, **more: Any) -> Generated:
    writer = LLMWriter(backend=backend)
    with Journal(path) as journal:
        ledger = journal.ledger("writer", writer.identity)
        more = {"report": lambda line: None, **more}
        return generate([pair(n) for n in range(count)], writer, ledger=ledger, **more)


def run(path: Path, count: int, **settings: Any) -> Any:
    faults = tuple(f for f in FAULTS if f != "stall") if count <= PAIRS else FAULTS
    with FaultServer(half_fail(faults=faults)) as server, client(server.url, **settings) as backend:
        made = journaled(path, backend, count)
    return server, made


def check(server: FaultServer, made: Any, path: Path, count: int) -> None:
    """Every pair is done or failed with a reason; none is lost, and no answer was paid for twice."""
    assert [e.query.id for e in made.examples] == [f"q{n}" for n in range(count)]
    done = sum(bool(e.negatives) for e in made.examples)
    assert done + made.failures.total() == count
    assert max(server.paid.values()) == 1
    totals = read_totals(path)
    assert (totals.done, totals.failures) == (done, made.failures)
    assert min(server.happened[f] for f in ("429", "500", "reset", "cut", "prose")) > 0


def test_with_half_of_the_requests_failing_every_pair_ends(tmp_path: Path) -> None:
    server, made = run(tmp_path / "set.journal", PAIRS)
    check(server, made, tmp_path / "set.journal", PAIRS)


def test_few_attempts_leave_failures_with_reasons_that_a_second_run_repairs(tmp_path: Path) -> None:
    path = tmp_path / "set.journal"
    server, made = run(path, PAIRS, attempts=1)
    assert made.failures
    assert {"server error"} <= set(made.failures)
    check(server, made, path, PAIRS)
    paid = Counter(server.paid)
    with FaultServer() as server, client(server.url) as backend:
        # What had to do with the server is tried again; a bad answer only when asked for.
        again = journaled(path, backend, PAIRS)
        assert set(again.failures) <= {"cut answer", "empty answer", "not json", "wrong schema"}
        assert not again.failures["server error"]
        last = journaled(path, backend, PAIRS, retry_failed=True)
    assert not last.failures
    assert all(e.negatives for e in last.examples)
    assert not set(paid) & set(server.paid)


def test_a_budget_in_tokens_is_never_exceeded_and_the_rest_follows_later(tmp_path: Path) -> None:
    path = tmp_path / "set.journal"
    said: list[str] = []
    with FaultServer() as server, client(server.url) as backend:
        some = journaled(path, backend, 30, budget=Budget(tokens=9_000), report=said.append)
        assert 0 < some.unfinished < 30
        assert len(some.examples) == 30 - some.unfinished
        assert read_totals(path).tokens <= 9_000
        assert "the budget is spent" in said[0]
        prices = Budget(money=1.0, prompt_price=1.0, completion_price=2.0)
        whole = journaled(path, backend, 30, budget=prices, report=said.append)
    assert (whole.unfinished, len(whole.examples)) == (0, 30)
    assert max(server.paid.values()) == 1
    assert len(server.paid) == 60
    totals = read_totals(path)
    assert (totals.prompt_tokens, totals.completion_tokens) == (60 * 100, 60 * 20)
    assert prices.cost(6000, 1200) == pytest.approx(0.0084)


@pytest.mark.slow
def test_five_hundred_pairs_all_end_though_half_of_the_requests_fail_and_some_stall(tmp_path: Path) -> None:
    path = tmp_path / "set.journal"
    server, made = run(path, 500, timeout=30.0, concurrency=64)
    check(server, made, path, 500)
    assert min(server.happened[fault] for fault in FAULTS) > 0


APART = """
import sys
from fault_server import FaultServer, half_fail
with FaultServer(half_fail()) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


@contextmanager
def server_apart(repo: Path) -> Iterator[str]:
    """A server in a process of its own, so that what it remembers is not counted here."""
    environment = {**os.environ, "PYTHONPATH": str(repo / "tests")}
    command = [sys.executable, "-c", APART]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.slow
def test_faults_pile_nothing_up_in_memory(tmp_path: Path, repo: Path) -> None:
    pairs, window, looks = 500, 16, (100, 290, 480)
    held, alive = [], []
    with server_apart(repo) as url, client(url, highest_concurrency=32) as backend:
        writer = LLMWriter(backend=backend)
        with Journal(tmp_path / "set.journal") as journal:
            ledger = journal.ledger("writer", writer.identity)
            jobs = (writer.write(pair(number)) for number in range(pairs))
            tracemalloc.start()
            try:
                for ended, _ in enumerate(Runner(jobs, backend, ledger=ledger, window=window), start=1):
                    if ended in looks:
                        gc.collect()
                        held.append(tracemalloc.get_traced_memory()[0])
                        alive.append(sum(type(o) is ChatRequest for o in gc.get_objects()))
            finally:
                tracemalloc.stop()
            assert sum(ledger.totals().steps.values()) > pairs
    # Of each pair under way one request is out, and one may just have been answered.
    assert max(alive) <= 2 * window
    # Nothing has to be remembered of a pair; the prompts of one would be some thousand bytes.
    assert (held[-1] - held[0]) / (looks[-1] - looks[0]) < 500
