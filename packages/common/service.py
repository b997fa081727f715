"""What the HTTP services share: request counts in Prometheus' text format, one line for every mistake."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from threading import Lock
from typing import TYPE_CHECKING, Any

from common.errors import BackendError, UserError

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Bounds of the histogram of seconds."""

MOST_BYTES = 32 << 20
"""Of a request."""


class BusyError(Exception):
    """More requests wait than the service takes; a client should try again."""


class Meter:
    """Counts requests and how long they took, and whatever else a service counts.

    Args:
        prefix: First part of every name.
        counters: Names of further counters, without prefix and ``_total``.
    """

    def __init__(self, prefix: str, *counters: str) -> None:
        self._prefix, self._lock = prefix, Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets: Counter[tuple[str, float]] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._counted = dict.fromkeys(counters, 0)

    def add(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        with self._lock:
            self._requests[path, status] += 1
            self._seconds[path] += seconds
            for bound in BOUNDS:
                self._buckets[path, bound] += seconds <= bound

    def count(self, counter: str, amount: int = 1) -> None:
        """Count something else."""
        with self._lock:
            self._counted[counter] += amount

    def text(self, **gauges: float) -> str:
        """All of it, and the values of some gauges by name, in Prometheus' text format."""
        requests, seconds = f"{self._prefix}_requests_total", f"{self._prefix}_request_seconds"
        with self._lock:
            lines = [f"# TYPE {requests} counter"]
            lines += [
                f'{requests}{{path="{path}",status="{status}"}} {count}'
                for (path, status), count in sorted(self._requests.items())
            ]
            lines.append(f"# TYPE {seconds} histogram")
            for path, spent in sorted(self._seconds.items()):
                total = sum(n for (one, _), n in self._requests.items() if one == path)
                lines += [
                    f'{seconds}_bucket{{path="{path}",le="{b}"}} {self._buckets[path, b]}' for b in BOUNDS
                ]
                lines += [
                    f'{seconds}_bucket{{path="{path}",le="+Inf"}} {total}',
                    f'{seconds}_sum{{path="{path}"}} {spent:.6f}',
                    f'{seconds}_count{{path="{path}"}} {total}',
                ]
            for name, count in self._counted.items():
                lines += [
                    f"# TYPE {self._prefix}_{name}_total counter",
                    f"{self._prefix}_{name}_total {count}",
                ]
            for name, value in gauges.items():
                lines += [f"# TYPE {self._prefix}_{name} gauge", f"{self._prefix}_{name} {value}"]
        return "\n".join(lines) + "\n"


def watch(app: FastAPI, meter: Meter, paths: Collection[str], *, most_bytes: int = MOST_BYTES) -> None:
    """Count the requests of an app, and answer every mistake with one line of JSON: 4xx, 503 for a backend.

    A :class:`~common.errors.UserError` may name another code as its ``status``.

    Args:
        app: The app.
        meter: What counts.
        paths: Paths that are counted by name; all others are ``other``.
        most_bytes: Most bytes of a request; a POST has to say how many it has.
    """
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    def answer(status: int, line: str, **headers: str) -> JSONResponse:
        # What a request says may stand in the line; what is no text would stop its encoding.
        text = line.replace("\n", "; ").encode("utf-8", "replace").decode()
        return JSONResponse({"error": text}, status_code=status, headers=headers)

    def mistake(request: Request, error: Exception) -> JSONResponse:
        usual = 503 if isinstance(error, BackendError) else 400
        return answer(getattr(error, "status", usual), str(error))

    def busy(request: Request, error: Exception) -> JSONResponse:
        return answer(503, str(error), **{"Retry-After": "1"})

    def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        return answer(422, f"{where}: {first['msg']}")

    def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return answer(error.status_code, f"{request.method} {request.url.path}: {error.detail}")

    async def timed(request: Request, call_next: Callable[[Request], Any]) -> Any:
        began, status = time.perf_counter(), 500
        size = request.headers.get("content-length")
        try:
            if request.method == "POST" and (size is None or int(size) > most_bytes):
                line = f"body: its length must be known and at most {most_bytes} bytes"
                given = answer(411 if size is None else 413, line)
            else:
                given = await call_next(request)
            status = given.status_code
        finally:
            path = request.url.path if request.url.path in paths else "other"
            meter.add(path, status, time.perf_counter() - began)
        return given

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(UserError, mistake)
    app.add_exception_handler(BusyError, busy)
    app.add_exception_handler(HTTPException, refused)
    app.middleware("http")(timed)
