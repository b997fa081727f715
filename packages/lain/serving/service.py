"""A small HTTP service of a trained run: ``/encode``, ``/score``, ``/health``, ``/metrics``.

Stateless beside its store of memories, which may forget: a user that it does not know is a 404, and the
client sends the history again (to ``/encode``, or with the request). A client mistake is a 4xx with one line.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from multiprocessing import connection
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, StrictStr
from starlette.exceptions import HTTPException

from common.cli import report as message
from common.errors import BackendError, ConfigError, Interrupted, UserError, describe_os_error
from lain.serving.memories import Memories, open_memories
from lain.serving.scorer import Scorer, UserMemory

MOST_CANDIDATES = 10_000
MOST_BEHAVIOURS = 100_000
MOST_BYTES = 32 << 20
"""Of a request."""

QUICK_SECONDS, STOP_SECONDS = 5.0, 10.0
"""A worker that ends sooner has failed to start; how long one may finish what it is answering."""

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Bounds of the histogram of seconds."""


def _utf8(text: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("holds half of a surrogate pair")
    return text


Id = Annotated[StrictStr, AfterValidator(_utf8)] | Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)]


class History(BaseModel):
    """A user's history."""

    model_config = ConfigDict(extra="forbid")

    user: Id
    history: list[Id] = Field(max_length=MOST_BEHAVIOURS)
    length: int | None = Field(default=None, ge=0)
    columns: dict[str, list[Any]] = Field(default_factory=dict)


class Question(BaseModel):
    """What is asked about a user; with a history that is read first."""

    model_config = ConfigDict(extra="forbid")

    user: Id
    candidates: list[Id] = Field(max_length=MOST_CANDIDATES)
    context: dict[str, Any] = Field(default_factory=dict)
    history: list[Id] | None = Field(default=None, max_length=MOST_BEHAVIOURS)
    length: int | None = Field(default=None, ge=0)
    columns: dict[str, list[Any]] = Field(default_factory=dict)


class Meter:
    """Counts requests, and how long they took."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets: Counter[tuple[str, float]] = Counter()
        self._seconds: Counter[str] = Counter()
        self.found = self.missed = self.candidates = 0

    def add(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        with self._lock:
            self._requests[path, status] += 1
            self._seconds[path] += seconds  # type: ignore[assignment]  # Counter's values are typed int
            for bound in BOUNDS:
                self._buckets[path, bound] += seconds <= bound

    def looked_up(self, found: bool) -> None:
        """Count a look into the store."""
        with self._lock:
            self.found, self.missed = self.found + found, self.missed + (not found)

    def scored(self, candidates: int) -> None:
        """Count candidates."""
        with self._lock:
            self.candidates += candidates

    def text(self, users: int) -> str:
        """All of it in Prometheus' text format."""
        with self._lock:
            lines = ["# TYPE lain_requests_total counter"]
            lines += [
                f'lain_requests_total{{path="{path}",status="{status}"}} {count}'
                for (path, status), count in sorted(self._requests.items())
            ]
            lines.append("# TYPE lain_request_seconds histogram")
            for path in sorted(self._seconds):
                total = sum(n for (p, _), n in self._requests.items() if p == path)
                name = "lain_request_seconds"
                lines += [f'{name}_bucket{{path="{path}",le="{b}"}} {self._buckets[path, b]}' for b in BOUNDS]
                lines += [
                    f'{name}_bucket{{path="{path}",le="+Inf"}} {total}',
                    f'{name}_sum{{path="{path}"}} {self._seconds[path]:.6f}',
                    f'{name}_count{{path="{path}"}} {total}',
                ]
            for name, value in (
                ("lain_memory_hits_total", self.found),
                ("lain_memory_misses_total", self.missed),
                ("lain_candidates_total", self.candidates),
            ):
                lines += [f"# TYPE {name} counter", f"{name} {value}"]
            lines += ["# TYPE lain_memories gauge", f"lain_memories {users}"]
        return "\n".join(lines) + "\n"


class UnknownUserError(UserError):
    """The service does not know the user."""


def make_app(scorer: Scorer, memories: Memories, *, run: str) -> FastAPI:
    """The service.

    Args:
        scorer: What scores.
        memories: Where memories of users are kept.
        run: Name of the run, for ``/health``.
    """
    app, meter = FastAPI(title="lain", docs_url=None, redoc_url=None), Meter()

    def read(asked: History | Question) -> UserMemory:
        memory = scorer.encode(
            asked.history or [], user=asked.user, length=asked.length, columns=asked.columns
        )
        memories.put(str(asked.user), memory)
        return memory

    def encode(asked: History) -> dict[str, Any]:
        memory = read(asked)
        return {"user": asked.user, "length": memory.length, "bytes": memory.nbytes}

    def score(asked: Question) -> dict[str, Any]:
        if asked.history is None:
            memory = memories.get(str(asked.user))
            meter.looked_up(memory is not None)
            if memory is None:
                raise UnknownUserError(
                    f"user: no memory of '{asked.user}'; send the history, here or to /encode"
                )
        else:
            memory = read(asked)
        found = scorer.score(memory, asked.candidates, asked.context)
        meter.scored(len(found))
        return {"user": asked.user, "scores": found.tolist()}

    def health() -> dict[str, Any]:
        return {"status": "ok", "run": run, "model": scorer.config.model.name}

    def metrics() -> PlainTextResponse:
        return PlainTextResponse(meter.text(memories.count()), media_type="text/plain; version=0.0.4")

    async def timed(request: Request, call_next: Callable[[Request], Any]) -> Any:
        began = time.perf_counter()
        size = request.headers.get("content-length")
        if request.method == "POST" and (size is None or int(size) > MOST_BYTES):
            answer = _answer(
                411 if size is None else 413, f"body: its length must be known and at most {MOST_BYTES} bytes"
            )
        else:
            answer = await call_next(request)
        known = {"/encode", "/score", "/health", "/metrics"}
        path = request.url.path if request.url.path in known else "other"
        meter.add(path, answer.status_code, time.perf_counter() - began)
        return answer

    app.add_api_route("/encode", encode, methods=["POST"], response_model=None)
    app.add_api_route("/score", score, methods=["POST"], response_model=None)
    app.add_api_route("/health", health, methods=["GET"], response_model=None)
    app.add_api_route("/metrics", metrics, methods=["GET"], response_model=None)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(UserError, _mistake)
    app.add_exception_handler(HTTPException, _refused)
    app.middleware("http")(timed)
    return app


def _answer(status: int, line: str) -> JSONResponse:
    # Ids of a request stand in the line; those that are no text would stop its encoding.
    text = line.replace("\n", "; ").encode("utf-8", "replace").decode()
    return JSONResponse({"error": text}, status_code=status)


def _mistake(request: Request, error: Exception) -> JSONResponse:
    status = 404 if isinstance(error, UnknownUserError) else 503 if isinstance(error, BackendError) else 400
    return _answer(status, str(error))


def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _answer(error.status_code, f"{request.method} {request.url.path}: {error.detail}")


def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    return _answer(422, f"{where}: {first['msg']}")


def app_of(run: Path, store: str, most_bytes: int, data: Path | None) -> FastAPI:
    """The service of a run folder, as every worker makes it for itself.

    Args:
        run: The run folder.
        store: Where memories are kept: see :func:`~lain.serving.memories.open_memories`.
        most_bytes: Bytes of that in memory or in a file.
        data: Prepared data, for a run that does not keep its items' features.
    """
    memories = open_memories(store, run, most_bytes=most_bytes)
    torch.set_num_threads(1)  # requests run side by side
    return make_app(Scorer(run, data=data), memories, run=run.resolve().name)


def serve(
    run: Path,
    *,
    host: str,
    port: int,
    workers: int,
    store: str,
    most_bytes: int,
    data: Path | None,
    report: Callable[[str], None],
) -> None:
    """Answer requests until a signal comes.

    Several workers are processes; one that dies is replaced.

    Args:
        run: The run folder.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        workers: Processes that answer.
        store: Where memories are kept.
        most_bytes: Bytes of that in memory or in a file.
        data: Prepared data, for a run that does not keep its items' features.
        report: Given the address, once it is bound.

    Raises:
        ConfigError: The address cannot be listened on, or several workers have no store in common.
        DataError: The run is none.
    """
    if workers > 1 and store == "memory":
        raise ConfigError(
            f"store: {workers} workers need one that they share: --store memories.sqlite or redis://HOST:PORT/0"
        )
    app = app_of(run, store, most_bytes, data)  # of several workers, too: mistakes show before they start
    listener = listen(host, port)
    with listener:
        address = listener.getsockname()
        report(f"http://{f'[{address[0]}]' if ':' in address[0] else address[0]}:{address[1]}")
        if workers == 1:
            config = uvicorn.Config(app, log_level="warning", access_log=False)
            uvicorn.Server(config).run(sockets=[listener])
            return
        _supervise(partial(_work, listener, run, store, most_bytes, data), workers)


def _work(listener: socket.socket, run: Path, store: str, most_bytes: int, data: Path | None) -> None:
    """A worker process; ends with the process that started it."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    config = uvicorn.Config(app_of(run, store, most_bytes, data), log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _supervise(work: Callable[[], None], workers: int) -> None:
    """Keep so many processes at work until a signal comes.

    Raises:
        BackendError: Workers end as soon as they start.
        Interrupted: The signal.
    """

    def stop(signum: int, frame: object) -> None:
        raise Interrupted(signum)

    def start() -> Any:
        process = multiprocessing.get_context("spawn").Process(target=work)
        process.start()
        return process

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    processes: list[Any] = []
    failures = 0
    try:
        processes += [start() for _ in range(workers)]
        while True:
            began = time.monotonic()
            connection.wait([process.sentinel for process in processes])
            failures = failures + 1 if time.monotonic() - began < QUICK_SECONDS else 0
            for number, process in enumerate(processes):
                if process.exitcode is None:
                    continue
                if failures > 3 * workers:
                    raise BackendError(f"serve: workers end at once (exit code {process.exitcode})")
                message(f"worker {process.pid} ended (exit code {process.exitcode}); another is started")
                processes[number] = start()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(STOP_SECONDS)
            process.kill()


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound and listens, so that no request comes too early.

    Args:
        host: Address.
        port: Port; 0 takes a free one.

    Raises:
        ConfigError: It is none of this machine's, or taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(f"{host}:{port}: cannot listen ({describe_os_error(error)})") from None
