"""Latency and throughput of search: in the process, and through ``causalneg serve`` on loopback.

    python experiments/bench/bench_retrieval.py --serving [--quick] [--seconds S] [--out FILE]

Generated text as for the other parts; the encoder is the BERT-mini with random weights, since arithmetic does
not depend on what was learned. Clients of the service keep their connections, each sends one query at a time
and waits; the service runs in a process of its own on the same cores. What the exact search finds is compared
with what ``evaluate`` finds, and the graph's recall with the exact search.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from causalneg.commands import evaluate_splits
from causalneg.data import read_dataset
from causalneg.encoders import load_encoder
from causalneg.search.stored import write_index
from causalneg.search.vectors import VectorFolder
from causalneg.serving.actions import encode_data, open_search, search_queries
from common.files import atomic_write
from common.report.tables import markdown_table

CLIENTS = (1, 8, 32)
DEPTH = 10


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    return {f"p{p}": float(1e3 * np.percentile(seconds, p)) for p in (50, 95, 99)}


def timed(call: Callable[[int], object], seconds: float) -> dict[str, float]:
    """Latencies of a call that is given the number of the try, and calls a second."""
    call(0)
    taken: list[float] = []
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds or len(taken) < 5:
        start = time.perf_counter()
        call(len(taken))
        taken.append(time.perf_counter() - start)
    return percentiles(taken) | {"per_second": len(taken) / (time.perf_counter() - begun)}


@contextmanager
def service(vectors: Path, index: str) -> Iterator[str]:
    """Address of a service in a process of its own."""
    program = "from causalneg.cli import main; main()"
    command = [sys.executable, "-c", program, "serve", str(vectors), "--port", "0", "--index", index]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        lines: list[str] = []
        while not (lines and lines[-1].startswith("listening on ")):
            lines.append(process.stderr.readline())
            if not lines[-1]:
                raise RuntimeError(f"the service does not start: {''.join(lines)}")
        try:
            yield lines[-1].split()[-1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def load(address: str, queries: Sequence[str], *, clients: int, seconds: float) -> dict[str, float]:
    """Latencies of a service with so many clients at once, and requests a second."""
    place = urlsplit(address)
    taken: list[float] = []
    lock = threading.Lock()
    end = time.perf_counter() + seconds

    def client(number: int) -> None:
        own: list[float] = []
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
        while time.perf_counter() < end or not own:
            query = queries[(number + clients * len(own)) % len(queries)]
            body = json.dumps({"queries": [query], "k": DEPTH})
            start = time.perf_counter()
            connection.request("POST", "/search", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            own.append(time.perf_counter() - start)
            if answer.status != 200:
                raise RuntimeError(f"the service answers {answer.status}")
        connection.close()
        with lock:
            taken.extend(own)

    begun = time.perf_counter()
    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return percentiles(taken) | {"per_second": len(taken) / (time.perf_counter() - begun)}


def same_as_evaluate(data: Path, encoder: Path, vectors: Path) -> bool:
    """Whether the exact search over stored vectors finds what ``evaluate`` finds, scores included."""
    queries = read_dataset(data, splits=["train"]).judged_queries("train")
    found = search_queries(open_search(vectors), queries, depth=DEPTH)
    ours = {query.id: {hit.id: hit.score for hit in hits} for query, hits in zip(queries, found, strict=True)}
    model = load_encoder(encoder)
    (theirs,) = evaluate_splits(
        data, ["train"], encoder=model, search="exact", depth=DEPTH, cache=vectors.parent
    )
    return ours == theirs.run


def bench_search(folder: Path, *, seconds: float, out: Path, report: Callable[[str], None]) -> str:
    """Measure search and service, write the figures, and give their table.

    Args:
        folder: What ``make_data`` of ``bench_retrieval`` made.
        seconds: Time for each figure.
        out: JSON file.
        report: Told what is begun.
    """
    data, encoder, vectors = folder / "mining", folder / "bert", folder / "vectors"
    report("encoding the corpus")
    encode_data(data, vectors, load_encoder(encoder), name=str(encoder))
    stored = VectorFolder.open(vectors)
    write_index(stored, "hnsw")
    queries = [query.text for query in read_dataset(data, splits=["train"]).judged_queries("train")]
    rows: list[dict[str, Any]] = []
    exact, graph = open_search(vectors), open_search(vectors, index="hnsw")
    asked = exact.embed(queries[:256])
    report("in the process")
    rows.append(
        {"what": "encode a query", **timed(lambda n: exact.embed([queries[n % len(queries)]]), seconds)}
    )
    for name, search in (("exact", exact), ("hnsw", graph)):
        one = timed(lambda n, search=search: search.find(asked[n % len(asked)][None], DEPTH), seconds)  # type: ignore[misc]  # the default binds the loop's value
        rows.append({"what": f"{name}, a query", **one})
    best, near = (search.find(asked, DEPTH)[1] for search in (exact, graph))
    recall = float(
        np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(best.tolist(), near.tolist(), strict=True)])
    )
    for index in ("exact", "hnsw"):
        with service(vectors, index) as address:
            for clients in CLIENTS:
                report(f"the service, {index}, {clients} clients")
                found = load(address, queries, clients=clients, seconds=seconds)
                rows.append({"what": f"service, {index}, {clients} clients", **found})
    report("comparing with evaluate")
    figures = {
        "documents": stored.about.count, "dim": stored.about.dim, "k": DEPTH, "hnsw recall": recall,
        "equal to evaluate": same_as_evaluate(data, encoder, vectors), "rows": rows,
    }  # fmt: skip
    atomic_write(out, json.dumps(figures, indent=1) + "\n")
    columns = ("p50", "p95", "p99", "per_second")
    cells = [[row["what"], *(f"{row[column]:.2f}" for column in columns)] for row in rows]
    equal = "equals" if figures["equal to evaluate"] else "DIFFERS from"
    return (
        markdown_table([f"{stored.about.count:,} documents", "p50 ms", "p95 ms", "p99 ms", "a second"], cells)
        + f"\nThe exact search {equal} evaluate; hnsw finds {100 * recall:.1f} % of its first {DEPTH}.\n"
    )
