"""A small HTTP service of a trained run: ``/encode``, ``/score``, ``/health``, ``/metrics``.

Stateless beside its store of memories, which may forget: a user that it does not know is a 404, and the
client sends the history again (to ``/encode``, or with the request). A client mistake is a 4xx with one line.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from threading import Lock
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from common.errors import UserError
from lain.serving.memories import Memories
from lain.serving.scorer import Scorer, UserMemory

MOST_CANDIDATES = 10_000
MOST_BEHAVIOURS = 100_000
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Bounds of the histogram of seconds."""

Id = str | int


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
    app.middleware("http")(timed)
    return app


def _mistake(request: Request, error: Exception) -> JSONResponse:
    status = 404 if isinstance(error, UnknownUserError) else 400
    return JSONResponse({"error": str(error).replace("\n", "; ")}, status_code=status)


def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    return JSONResponse({"error": f"{where}: {first['msg']}"}, status_code=422)
