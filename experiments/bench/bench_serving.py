"""Latency of scoring: a long history against 1, 100 and 1,000 candidates, on one core; and over HTTP.

    python experiments/bench/bench_ctr.py --serving [--backbone NAME] [--out FILE]

Weights are as they start and sizes the defaults: arithmetic does not depend on what was learned. Times are of
the process's own CPU as well as of the wall clock, since other work on the machine only shows in the latter.
Serving is :meth:`lain.Scorer.score`, from raw indices to probabilities. The load test asks ``lain serve``
over loopback, in a process of its own with one torch thread; clients share the machine with it.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.config import load
from common.files import atomic_write
from common.report.tables import markdown_table
from lain.data.schema import Feature
from lain.serving.catalog import IndexCatalog
from lain.serving.scorer import Scorer
from lain.training.build import build_model
from lain.training.config import TrainConfig

ITEMS, CANDIDATES, CATEGORIES = 100_000, (1, 100, 1000), 500
FEATURES = (
    Feature("item_id", "item", "categorical", ITEMS),
    Feature("category", "item", "categorical", CATEGORIES),
    Feature("hour", "context", "categorical", 25),
)


def make_scorer(model: Mapping[str, Any], sizes: Mapping[str, Any], preset: str, length: int) -> Scorer:
    """A scorer with weights as they start."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        settings = {
            "data": "none",
            "model": dict(model),
            "length": {"preset": preset},
            "history": {"max_length": length},
            **sizes,
        }
        path.write_text(json.dumps(settings))
        config = load(TrainConfig, path)
    category = np.random.default_rng(0).integers(CATEGORIES, size=ITEMS).astype(np.int32)
    return Scorer.of(
        config,
        build_model(config, FEATURES),
        IndexCatalog({"item": {"category": category}, "user": {}}, FEATURES),
    )


def measured(call: Callable[[], object], seconds: float) -> dict[str, float]:
    """Percentiles of a call's milliseconds, by the wall and by the process's own clock."""
    for _ in range(3):
        call()
    wall: list[float] = []
    own: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(wall) < 5:
        began, began_own = time.perf_counter(), time.process_time()
        call()
        wall.append(1e3 * (time.perf_counter() - began))
        own.append(1e3 * (time.process_time() - began_own))
    found = {f"p{p}": float(np.percentile(wall, p)) for p in (50, 95, 99)}
    return found | {"cpu_p50": float(np.percentile(own, 50)), "calls": len(wall)}


def latency(scorer: Scorer, length: int, seconds: float) -> list[dict[str, Any]]:
    """Rows of figures: reading the history, then scoring so many candidates of it."""
    rng = np.random.default_rng(1)
    history, context = rng.integers(1, ITEMS, size=length), {"hour": 3}
    rows = [{"what": "encode", "candidates": 0, **measured(lambda: scorer.encode(history), seconds)}]
    memory = scorer.encode(history)
    for count in CANDIDATES:
        asked = rng.integers(1, ITEMS, size=count)
        found = measured(lambda asked=asked: scorer.score(memory, asked, context), seconds)  # type: ignore[misc]  # the default binds the loop's value
        rows.append({"what": "score", "candidates": count, **found})
    return rows


def bench_serving(
    models: Mapping[str, Mapping[str, Any]],
    sizes: Mapping[str, Any],
    *,
    arms: Sequence[str],
    length: int,
    seconds: float,
    out: Path,
) -> str:
    """Measure all models, write the figures, and give their table.

    Args:
        models: Settings of each backbone.
        sizes: Settings of embedding and head.
        arms: Presets of the length.
        length: Behaviours of the user.
        seconds: Time for each figure.
        out: JSON file.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    for name, options in models.items():
        for arm in arms:
            scorer = make_scorer({"name": name, **options}, sizes, arm, length)
            rows += [{"backbone": name, "arm": arm, **row} for row in latency(scorer, length, seconds)]
    torch.set_num_threads(threads)
    first = next(iter(models))
    load = load_test({"name": first, **models[first]}, sizes, arms[-1], length, seconds)
    figures = {"behaviours": length, "threads": 1, "rows": rows, "load": load}
    atomic_write(out, json.dumps(figures, indent=1) + "\n")
    columns = ("p50", "p95", "p99", "cpu_p50")
    one = {(r["backbone"], r["arm"]): r["cpu_p50"] for r in rows if r["candidates"] == 1}
    cells = [
        [
            r["backbone"],
            r["arm"],
            f"{r['candidates']:,}" if r["candidates"] else "encode",
            *(f"{r[c]:.2f}" for c in columns),
            f"{one[r['backbone'], r['arm']] * r['candidates'] / r['cpu_p50']:.0f}x"
            if r["candidates"]
            else "",
        ]
        for r in rows
    ]
    table = markdown_table(["backbone", "arm", "candidates", *columns, "cheaper each"], cells)
    asked = [
        [r["what"], str(r["clients"]), f"{r['per_second']:.0f}", *(f"{r[c]:.1f}" for c in columns[:3])]
        for r in load
    ]
    heads = [f"{first}-{arms[-1]} over HTTP", "clients", "requests a second", *columns[:3]]
    return f"{table}\n{markdown_table(heads, asked)}"


def _answer(
    model: Mapping[str, Any], sizes: Mapping[str, Any], arm: str, length: int, pipe: Any
) -> None:  # in a process of its own
    import uvicorn

    from lain.serving.memories import LocalMemories
    from lain.serving.service import make_app

    torch.set_num_threads(1)
    app = make_app(make_scorer(model, sizes, arm, length), LocalMemories(), run="bench")
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    pipe.send(listener.getsockname()[1])
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])


def load_test(
    model: Mapping[str, Any], sizes: Mapping[str, Any], arm: str, length: int, seconds: float
) -> list[dict[str, Any]]:
    """Requests a second and percentiles of their milliseconds, of so many clients that ask without a pause.

    Args:
        model: Settings of the backbone.
        sizes: Settings of embedding and head.
        arm: Preset of the length.
        length: Behaviours of each of 16 users.
        seconds: Time for each figure.
    """
    rng = np.random.default_rng(2)
    users = [
        json.dumps({"user": u, "history": rng.integers(1, ITEMS, size=length).tolist()}) for u in range(16)
    ]
    spawn = multiprocessing.get_context("spawn")
    pipe, other = spawn.Pipe()
    server = spawn.Process(target=_answer, args=(model, sizes, arm, length, other), daemon=True)
    server.start()
    port = pipe.recv()
    try:
        for body in users:
            _ask(port, "/encode", [body], 0)
        found = []
        scores = {f"score {count}": _questions(count) for count in CANDIDATES[1:]}
        for what, bodies in {"encode": users, **scores}.items():
            path = f"/{what.split()[0]}"
            for clients in (1, 4, 16):
                taken: list[list[float]] = [[] for _ in range(clients)]

                def client(number: int, taken: list[list[float]] = taken) -> None:
                    taken[number] = _ask(port, path, bodies, seconds)  # noqa: B023  # joined inside the loop

                threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
                began = time.perf_counter()
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                wall = time.perf_counter() - began
                every = np.concatenate(taken) * 1e3
                figures = {f"p{p}": float(np.percentile(every, p)) for p in (50, 95, 99)}
                found.append({"what": what, "clients": clients, "per_second": len(every) / wall, **figures})
        return found
    finally:
        server.terminate()
        server.join()


def _questions(candidates: int) -> list[str]:
    rng = np.random.default_rng(3)
    return [
        json.dumps({
            "user": u,
            "candidates": rng.integers(1, ITEMS, size=candidates).tolist(),
            "context": {"hour": 3},
        })
        for u in range(16)
    ]  # fmt: skip


def _ask(port: int, path: str, bodies: Sequence[str], seconds: float) -> list[float]:
    """Ask until the time is over, over one connection; the seconds that each request took."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        began = time.perf_counter()
        body = bodies[len(taken) % len(bodies)]
        connection.request("POST", path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        taken.append(time.perf_counter() - began)
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {content[:200]!r}")
    connection.close()
    return taken
