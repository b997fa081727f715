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
from collections.abc import Callable
from functools import partial
from multiprocessing import connection
from pathlib import Path
from typing import Annotated, Any

import torch
import uvicorn
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, StrictStr

from common.cli import report as message
from common.errors import BackendError, ConfigError, Interrupted, UserError, describe_os_error
from common.service import Meter, watch
from lain.serving.memories import Memories, open_memories
from lain.serving.scorer import Scorer, UserMemory

MOST_CANDIDATES = 10_000
MOST_BEHAVIOURS = 100_000

QUICK_SECONDS, STOP_SECONDS = 5.0, 10.0
"""A worker that ends sooner has failed to start; how long one may finish what it is answering."""


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


class UnknownUserError(UserError):
    """The service does not know the user."""

    status = 404


def make_app(scorer: Scorer, memories: Memories, *, run: str) -> FastAPI:
    """The service.

    Args:
        scorer: What scores.
        memories: Where memories of users are kept.
        run: Name of the run, for ``/health``.
    """
    app = FastAPI(title="lain", docs_url=None, redoc_url=None)
    meter = Meter("lain", "memory_hits", "memory_misses", "candidates")

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
            meter.count("memory_misses" if memory is None else "memory_hits")
            if memory is None:
                raise UnknownUserError(
                    f"user: no memory of '{asked.user}'; send the history, here or to /encode"
                )
        else:
            memory = read(asked)
        found = scorer.score(memory, asked.candidates, asked.context)
        meter.count("candidates", len(found))
        return {"user": asked.user, "scores": found.tolist()}

    def health() -> dict[str, Any]:
        return {"status": "ok", "run": run, "model": scorer.config.model.name}

    def metrics() -> PlainTextResponse:
        text = meter.text(memories=memories.count())
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    app.add_api_route("/encode", encode, methods=["POST"], response_model=None)
    app.add_api_route("/score", score, methods=["POST"], response_model=None)
    app.add_api_route("/health", health, methods=["GET"], response_model=None)
    app.add_api_route("/metrics", metrics, methods=["GET"], response_model=None)
    watch(app, meter, {"/encode", "/score", "/health", "/metrics"})
    return app


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
