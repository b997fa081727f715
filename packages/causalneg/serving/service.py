"""A small HTTP service over vectors on disk: ``/encode``, ``/search``, ``/health``, ``/metrics``.

Stateless. Requests that wait at the same time share one pass of the encoder and of the search. A client's
mistake is a 4xx with one line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from jaxtyping import Float32
from pydantic import BaseModel, ConfigDict, Field

from causalneg.search.stored import Hit, StoredSearch
from causalneg.serving.batching import Batcher
from common.service import Meter, watch

MOST_TEXTS, MOST_LETTERS, MOST_HITS = 256, 100_000, 1_000

Text = Annotated[str, Field(min_length=1, max_length=MOST_LETTERS)]


class Texts(BaseModel):
    """Texts to encode."""

    model_config = ConfigDict(extra="forbid")

    texts: list[Text] = Field(min_length=1, max_length=MOST_TEXTS)
    query: bool = False


class Queries(BaseModel):
    """Queries to search for."""

    model_config = ConfigDict(extra="forbid")

    queries: list[Text] = Field(min_length=1, max_length=MOST_TEXTS)
    k: int = Field(default=10, ge=1, le=MOST_HITS)


@dataclass(frozen=True)
class _Asked:
    texts: Sequence[str]
    k: int


def make_app(
    search: StoredSearch, *, texts: Mapping[str, str] | None = None, most: int = 64, waiting: int = 1024
) -> FastAPI:
    """The service.

    Args:
        search: What encodes and searches.
        texts: Text of each document by its id, for hits that show them; None leaves them out.
        most: Texts of a batch at most.
        waiting: Requests that may wait; more are a 503.
    """
    meter = Meter("causalneg", "batches", "batched_requests", "texts", "queries")
    lock = Lock()  # the encoder is one, and so are the cores

    def notice(jobs: int) -> None:
        meter.count("batches")
        meter.count("batched_requests", jobs)

    def embed(asked: Sequence[_Asked], *, query: bool) -> list[Float32[np.ndarray, "texts dim"]]:
        with lock:
            vectors = search.embed([text for one in asked for text in one.texts], query=query)
        ends = np.cumsum([len(one.texts) for one in asked])
        return np.split(vectors, ends[:-1])

    def find(asked: Sequence[_Asked]) -> list[list[list[Hit]]]:
        vectors = embed(asked, query=True)
        with lock:
            if search.index != "exact":  # what a graph finds depends on k
                return [search.hits(own, one.k) for own, one in zip(vectors, asked, strict=True)]
            hits = iter(search.hits(np.concatenate(vectors), max(one.k for one in asked)))
        return [[next(hits)[: one.k] for _ in one.texts] for one in asked]

    def batcher(run: Any) -> Batcher[_Asked, Any]:
        return Batcher(run, size=lambda one: len(one.texts), most=most, waiting=waiting, notice=notice)

    as_queries, as_documents = (
        batcher(lambda asked: embed(asked, query=True)),
        batcher(lambda asked: embed(asked, query=False)),
    )
    finder = batcher(find)
    app = FastAPI(title="causalneg", docs_url=None, redoc_url=None)
    about = search.folder.about

    async def encode(asked: Texts) -> dict[str, Any]:
        waiting = (as_queries if asked.query else as_documents).submit(_Asked(asked.texts, 1))
        vectors = await asyncio.wrap_future(waiting)
        meter.count("texts", len(vectors))
        return {"dim": about.dim, "vectors": vectors.tolist()}

    async def answer(asked: Queries) -> dict[str, Any]:
        found = await asyncio.wrap_future(finder.submit(_Asked(asked.queries, asked.k)))
        meter.count("queries", len(found))
        return {"hits": [[_shown(hit, texts) for hit in hits] for hits in found]}

    async def health() -> dict[str, Any]:
        return {
            "status": "ok", "encoder": about.encoder, "index": search.index, "documents": about.count,
            "dim": about.dim,
        }  # fmt: skip

    async def metrics() -> PlainTextResponse:
        depth = as_queries.waiting + as_documents.waiting + finder.waiting
        shown = meter.text(documents=about.count, waiting_requests=depth)
        return PlainTextResponse(shown, media_type="text/plain; version=0.0.4")

    app.add_api_route("/encode", encode, methods=["POST"], response_model=None)
    app.add_api_route("/search", answer, methods=["POST"], response_model=None)
    app.add_api_route("/health", health, methods=["GET"], response_model=None)
    app.add_api_route("/metrics", metrics, methods=["GET"], response_model=None)
    watch(app, meter, ("/encode", "/search", "/health", "/metrics"))
    return app


def _shown(hit: Hit, texts: Mapping[str, str] | None) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": hit.id, "score": hit.score}
    return shown if texts is None else shown | {"text": texts[hit.id]}
