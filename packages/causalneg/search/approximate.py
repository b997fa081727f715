"""Approximate search of embeddings with faiss: a graph (hnsw) or lists (ivf)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, get_args

import faiss
import numpy as np
import torch
from annotated_types import Ge
from jaxtyping import Float, Int64

from causalneg.search.base import Collection, Found, ordered
from causalneg.search.dense import QUERIES, DenseSearcher, blocks, check_vectors, chosen_scores, norms_of
from common.errors import BackendError, ConfigError

Index = Literal["hnsw", "ivf"]

LINKS = 32
"""Neighbours of a document in the graph of ``hnsw``."""

_GPU_MOST = 2_048  # what faiss returns at most on a GPU


class ApproximateSearcher(DenseSearcher):
    """Some of the documents are scored; see :func:`approximate_search`.

    Args:
        collection: The documents.
        block: Documents read at a time.
    """

    index: ClassVar[Index]

    def __init__(
        self,
        collection: Collection,
        *,
        effort: Annotated[int, Ge(1)] = 128,
        block: Annotated[int, Ge(1)] = 16_384,
    ) -> None:
        super().__init__(collection)
        self.effort, self.block = effort, block

    def find(self, queries: Float[np.ndarray, "queries dim"], k: int) -> Found:
        """The k best documents of every query embedding."""
        return approximate_search(
            queries,
            self.collection.embeddings,
            k,
            index=self.index,
            devices=() if self.index == "hnsw" else self.collection.devices,  # a graph stays on the CPU
            block=self.block,
            effort=self.effort,
        )


class HNSWSearcher(ApproximateSearcher):
    """Along the links of a graph of near neighbours.

    Args:
        effort: Candidates that are looked at for a query; more is slower and better.
    """

    index = "hnsw"


class IVFSearcher(ApproximateSearcher):
    """In the lists whose centres are nearest.

    Args:
        effort: Lists that are looked into for a query; more is slower and better.
    """

    index = "ivf"


def approximate_search(
    queries: Float[np.ndarray, "queries dim"],
    documents: Float[np.ndarray, "documents dim_too"],
    k: int,
    *,
    index: Index,
    devices: Sequence[str] = (),
    block: int = 16_384,
    effort: int = 128,
) -> Found:
    """K documents with a large inner product for every query, most of them the largest.

    Embeddings are kept in 16 bits (half the memory); what faiss finds is scored and sorted as
    :func:`causalneg.search.exact.exact_search` does. Building a graph with several threads is not
    reproducible.

    Source: Malkov and Yashunin 2018 (hnsw); Sivic and Zisserman 2003, Jégou et al. 2011 (ivf); the indexes
    are faiss's.

    Args:
        queries: Query embeddings.
        documents: Document embeddings; may be memory-mapped.
        k: How many documents; cut to the number of documents there are.
        index: Kind of index.
        devices: Names of devices as torch has them; ``ivf`` is spread over GPUs (needs faiss-gpu), ``hnsw``
            runs on the CPU.
        block: How many documents are read at a time.
        effort: Candidates that ``hnsw`` looks at, lists that ``ivf`` looks into.

    Returns:
        Scores and rows, see :mod:`causalneg.search.base`.

    Raises:
        ConfigError: A setting is out of range.
        DataError: An embedding is not finite, or dimensions differ.
        BackendError: A device is missing.
    """
    if index not in get_args(Index):
        raise ConfigError(f"index must be one of {', '.join(get_args(Index))}, got '{index}'")
    check_vectors(queries, documents, k=k, block=block, effort=effort)
    k = min(k, len(documents))
    if not len(queries):
        return np.zeros((0, k), dtype=np.float32), np.zeros((0, k), dtype=np.int64)
    norms_of(np.array(queries, dtype=np.float32), "query")
    rows = _rows(queries, documents, k, index, devices, block, effort)
    return ordered(chosen_scores(queries, documents, rows), rows, k)


def _rows(
    queries: Float[np.ndarray, "queries dim"],
    documents: Float[np.ndarray, "documents dim"],
    k: int,
    index: Index,
    devices: Sequence[str],
    block: int,
    effort: int,
) -> Int64[np.ndarray, "queries k"]:
    """Rows that faiss finds; -1 for none."""
    gpus = _gpus(index, devices, k)
    built = build_index(documents, index, block=block)
    _look(built, index, k, effort, len(documents))
    if gpus:
        options = faiss.GpuMultipleClonerOptions()
        options.shard = True
        built = faiss.index_cpu_to_gpus_list(built, options, gpus)
    return _found(built, queries, k)


def build_index(documents: Float[np.ndarray, "documents dim"], index: Index, *, block: int = 16_384) -> Any:
    """An index of faiss over document embeddings, kept in 16 bits.

    Args:
        documents: Document embeddings; may be memory-mapped.
        index: Kind of index.
        block: How many documents are read at a time.
    """
    count, dim = documents.shape
    # Numbers are scaled to at most 1 before they are kept in 16 bits; an inner product keeps its order.
    largest = max(np.abs(rows).max() for _, rows, _ in blocks(documents, 0, count, block))
    scale = np.float32(largest or 1)
    lists = _lists(count)
    built: Any = faiss.index_factory(
        dim,
        f"HNSW{LINKS}_SQfp16" if index == "hnsw" else f"IVF{lists},SQfp16",
        faiss.METRIC_INNER_PRODUCT,
    )
    sample = np.unique(np.linspace(0, count - 1, min(count, 64 * lists)).astype(np.int64))
    built.train(np.array(documents[sample], dtype=np.float32) / scale)
    for _, rows, _ in blocks(documents, 0, count, block):
        built.add(rows / scale)
    return built


def search_index(
    built: Any,
    queries: Float[np.ndarray, "queries dim"],
    documents: Float[np.ndarray, "documents dim"],
    k: int,
    *,
    index: Index,
    effort: int = 128,
) -> Found:
    """Search an index that :func:`build_index` made; scores and order as :func:`approximate_search`.

    Args:
        built: The index.
        queries: Query embeddings.
        documents: The embeddings that the index was made of.
        k: How many documents; cut to the number of documents there are.
        index: Its kind.
        effort: Candidates that ``hnsw`` looks at, lists that ``ivf`` looks into.
    """
    check_vectors(queries, documents, k=k, effort=effort)
    k = min(k, len(documents))
    if not len(queries):
        return np.zeros((0, k), dtype=np.float32), np.zeros((0, k), dtype=np.int64)
    norms_of(np.array(queries, dtype=np.float32), "query")
    _look(built, index, k, effort, len(documents))
    rows = _found(built, queries, k)
    return ordered(chosen_scores(queries, documents, rows), rows, k)


def _lists(count: int) -> int:
    return max(1, min(int(4 * count**0.5), count // 64))


def _look(built: Any, index: Index, k: int, effort: int, count: int) -> None:
    """How far a search looks."""
    if index == "hnsw":
        built.hnsw.efSearch = max(effort, k)
    else:
        built.nprobe = min(effort, _lists(count))


def _found(built: Any, queries: Float[np.ndarray, "queries dim"], k: int) -> Int64[np.ndarray, "queries k"]:
    parts = [
        built.search(np.array(queries[start : start + QUERIES], dtype=np.float32), k)[1]
        for start in range(0, len(queries), QUERIES)
    ]
    return np.concatenate(parts).astype(np.int64)


def _gpus(index: Index, devices: Sequence[str], k: int) -> list[int]:
    """Numbers of the GPUs to spread an index over; checks that faiss can."""
    chosen = [torch.device(name) for name in devices]
    gpus = [device.index or 0 for device in chosen if device.type == "cuda"]
    if not gpus:
        return []
    if index == "hnsw":
        raise ConfigError("hnsw runs on the CPU only; use exact or ivf on GPUs")
    if k > _GPU_MOST:
        raise ConfigError(f"ivf on a GPU returns at most {_GPU_MOST} documents, asked for {k}")
    if not hasattr(faiss, "StandardGpuResources"):
        raise BackendError("this faiss knows no GPU; install faiss-gpu, or use index exact")
    if max(gpus) >= faiss.get_num_gpus():
        raise BackendError(f"device 'cuda:{max(gpus)}': faiss sees {faiss.get_num_gpus()} GPUs")
    return gpus
