"""Exact search of embeddings, in bounded memory, the same whatever the block, threads or device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from jaxtyping import Float, Float64, Int
from torch import Tensor

from causalneg.search.base import Collection, Found, highest, ordered
from causalneg.search.dense import (
    NUMBERS,
    QUERIES,
    DenseSearcher,
    blocks,
    check_device,
    check_vectors,
    chosen_scores,
    norms_of,
)

_GPU_QUERIES = 1_024  # queries whose scores with one block are in memory at a time on a GPU
_HALF = 2.0**-24  # half the distance from 1 to the next float32


class ExactSearcher(DenseSearcher):
    """Every document is scored; see :func:`exact_search`.

    Args:
        collection: The documents.
        block: Documents read at a time.
    """

    def __init__(self, collection: Collection, *, block: Annotated[int, Ge(1)] = 16_384) -> None:
        super().__init__(collection)
        self.block = block

    def find(self, queries: Float[np.ndarray, "queries dim"], k: int) -> Found:
        """The k best documents of every query embedding."""
        collection = self.collection
        return exact_search(queries, collection.embeddings, k, devices=collection.devices, block=self.block)


def exact_search(
    queries: Float[np.ndarray, "queries dim"],
    documents: Float[np.ndarray, "documents dim_too"],
    k: int,
    *,
    devices: Sequence[str] = (),
    block: int = 16_384,
) -> Found:
    """The k documents with the largest inner product for every query.

    Multiplies block by block in 32 bits and keeps some more than k, scores these again in 64 bits and sorts
    them; where the rounding of the first pass could have cost a query a document, that query is searched
    again in 64 bits. So the result does not depend on block, threads or device. Memory beyond the arguments
    and results: a few blocks, whatever the number of documents.

    Args:
        queries: Query embeddings.
        documents: Document embeddings; may be memory-mapped.
        k: How many documents; cut to the number of documents there are.
        devices: Names of devices as torch has them, such as ``cuda:0``; the documents are spread over them.
            Empty: the CPU.
        block: How many documents are read at a time.

    Returns:
        Scores and rows, see :mod:`causalneg.search.base`.

    Raises:
        ConfigError: A setting is out of range.
        DataError: An embedding is not finite, or dimensions differ.
        BackendError: A device is missing.
    """
    check_vectors(queries, documents, k=k, block=block)
    k = min(k, len(documents))
    if not len(queries):
        return np.zeros((0, k), dtype=np.float32), np.zeros((0, k), dtype=np.int64)
    norms = norms_of(np.array(queries, dtype=np.float32), "query")
    with _full_precision():
        return _exact(
            queries, documents, k, [check_device(name) for name in devices or ("cpu",)], block, norms
        )


@contextmanager
def _full_precision() -> Iterator[None]:
    """No TF32 and no bfloat16 inside float32 products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _exact(
    queries: Float[np.ndarray, "queries dim"],
    documents: Float[np.ndarray, "documents dim"],
    k: int,
    devices: Sequence[torch.device],
    block: int,
    norms: Float64[np.ndarray, " queries"],
) -> Found:
    count, dim = documents.shape
    more = min(count, k + max(32, k // 8))
    ends = np.linspace(0, count, len(devices) + 1).astype(int).tolist()

    def shard(at: int) -> tuple[Tensor, Tensor, float]:
        return _stream(queries, documents, more, devices[at], block, ends[at], ends[at + 1])

    if len(devices) == 1:  # another thread would bring another pool of workers, with their buffers
        parts = [shard(0)]
    else:
        with ThreadPoolExecutor(len(devices)) as pool:
            parts = list(pool.map(shard, range(len(devices))))
    largest = max(norm for _, _, norm in parts)
    scores = np.empty((len(queries), k), dtype=np.float32)
    best = np.empty((len(queries), k), dtype=np.int64)
    sure = np.ones(len(queries), dtype=bool)
    for start in range(0, len(queries), QUERIES):
        some = slice(start, start + QUERIES)
        rough, places = torch.cat([part[0][some] for part in parts], 1).topk(more, dim=1)
        rows = torch.cat([part[1][some] for part in parts], 1).gather(1, places).numpy()
        scores[some], best[some] = ordered(chosen_scores(queries[some], documents, rows), rows, k)
        if more < count:
            # What was not kept scores at most this; |error of a product| <= dim * u * |q| * |d|.
            outside = rough[:, -1].numpy() + (dim + 2) * _HALF * norms[some] * largest
            sure[some] = scores[some, -1] > outside
    again = np.flatnonzero(~sure)
    if again.size:
        scores[again], best[again] = _stream64(queries[again], documents, k, block)
    return scores, best


@torch.inference_mode()
def _stream(
    queries: Float[np.ndarray, "queries dim"],
    documents: Float[np.ndarray, "documents dim"],
    k: int,
    device: torch.device,
    block: int,
    first: int,
    last: int,
) -> tuple[Float[Tensor, "queries found"], Int[Tensor, "queries found"], float]:
    """The best of some rows by 32-bit products, ties anyhow; and the largest norm."""
    step = QUERIES if device.type == "cpu" else _GPU_QUERIES
    parts = [
        torch.from_numpy(np.array(queries[start : start + step], dtype=np.float32)).to(device)
        for start in range(0, len(queries), step)
    ]
    best = [
        (part.new_empty((len(part), 0)), part.new_empty((len(part), 0), dtype=torch.int64)) for part in parts
    ]
    # One array for all products: arrays of this size, made and freed over and over, scatter the heap.
    room = parts[0].new_empty(len(parts[0]) * min(block, last - first))
    largest = 0.0
    for start, rows, norm in blocks(documents, first, last, block):
        largest = max(largest, norm)
        texts = torch.from_numpy(rows).to(device).T
        for at, part in enumerate(parts):
            product = room[: len(part) * len(rows)].view(len(part), len(rows))
            torch.mm(part, texts, out=product)
            best[at] = _kept(*best[at], product, start, k)
    scores, places = (torch.cat([held[which] for held in best]).cpu() for which in (0, 1))
    return scores, places, largest


def _kept(
    scores: Float[Tensor, "queries held"],
    rows: Int[Tensor, "queries held"],
    new: Float[Tensor, "queries block"],
    start: int,
    k: int,
) -> tuple[Float[Tensor, "queries kept"], Int[Tensor, "queries kept"]]:
    """The best k of what was held and of a block of new scores, in falling order."""
    if not scores.shape[1]:
        scores, chosen = new.topk(min(k, new.shape[1]), dim=1)
        return scores, chosen + start
    if scores.shape[1] < k:
        places = torch.arange(start, start + new.shape[1], device=new.device).expand(len(new), -1)
    else:
        query, column = (new > scores[:, -1:]).nonzero().unbind(1)
        if not len(query):
            return scores, rows
        each = torch.bincount(query, minlength=len(new))
        slot = torch.arange(len(query), device=new.device) - (each.cumsum(0) - each)[query]
        better = new.new_full((len(new), int(each.max())), -torch.inf)
        places = torch.zeros_like(better, dtype=torch.int64)
        better[query, slot] = new[query, column]
        places[query, slot] = column + start
        new = better
    scores, chosen = torch.cat((scores, new), 1).topk(min(k, scores.shape[1] + new.shape[1]), dim=1)
    return scores, torch.cat((rows, places), 1).gather(1, chosen)


def _stream64(
    queries: Float[np.ndarray, "queries dim"],
    documents: Float[np.ndarray, "documents dim"],
    k: int,
    block: int,
) -> Found:
    """The best k by 64-bit products, rounded; of equal ones the lower row."""
    scores = np.empty((len(queries), k), dtype=np.float32)
    rows = np.empty((len(queries), k), dtype=np.int64)
    step = max(1, 2 * NUMBERS // block)
    for begin in range(0, len(queries), step):
        part = np.array(queries[begin : begin + step], dtype=np.float32).astype(np.float64)
        best = np.zeros((len(part), 0), dtype=np.float32)
        place = np.zeros((len(part), 0), dtype=np.int64)
        for start, texts, _ in blocks(documents, 0, len(documents), block):
            new = (part @ texts.astype(np.float64).T).astype(np.float32)
            keep = highest(np.concatenate((best, new), axis=1), k)
            columns = np.broadcast_to(np.arange(start, start + len(texts)), new.shape)
            best = np.take_along_axis(np.concatenate((best, new), axis=1), keep, 1)
            place = np.take_along_axis(np.concatenate((place, columns), axis=1), keep, 1)
        scores[begin : begin + step], rows[begin : begin + step] = ordered(best, place, k)
    return scores, rows
