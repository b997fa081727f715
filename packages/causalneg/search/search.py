"""The best documents of every query: inner products of embeddings, exact or approximate, and BM25.

All searches return ``scores [queries, k]`` and ``rows [queries, k]``, the best first; of equal scores the
lower row comes first. Where fewer than k documents are found, row -1 with score -inf fills up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal, get_args

import faiss
import numpy as np
import scipy.sparse
import Stemmer
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64
from torch import Tensor

from common.errors import BackendError, ConfigError, DataError, suggest

Index = Literal["exact", "hnsw", "ivf"]

LINKS = 32
"""Neighbours of a document in the graph of ``hnsw``."""

_QUERIES = 256  # queries whose scores with one block of documents are in memory at a time
_GPU_QUERIES = 1_024  # the same on a GPU
_NUMBERS = 1 << 20  # numbers of gathered embeddings in memory at a time
_PAIRS = 16_384  # pairs of a query and a text that are scored at a time
_GPU_MOST = 2_048  # what faiss returns at most on a GPU
_HALF = 2.0**-24  # half the distance from 1 to the next float32


def _blocks(
    documents: Float[np.ndarray, "documents dim"], first: int, last: int, block: int
) -> Iterator[tuple[int, Float32[np.ndarray, "block dim"], float]]:
    """Copies of consecutive rows as float32: first row, rows, largest norm. Checks that they are finite."""
    for start in range(first, last, block):
        rows = np.array(documents[start : min(start + block, last)], dtype=np.float32)
        yield start, rows, float(_norms(rows, "document", start).max())


def _norms(rows: Float32[np.ndarray, "rows dim"], what: str, first: int = 0) -> Float64[np.ndarray, " rows"]:
    """Euclidean norms; checks that every number is finite."""
    squares = np.einsum("nd,nd->n", rows, rows).astype(np.float64)
    if not np.isfinite(squares).all():
        bad = ~np.isfinite(rows)
        if bad.any():
            row = int(np.argmax(bad.any(axis=1)))
            raise DataError(
                f"{what} embedding in row {first + row} is not finite ({rows[row][bad[row]][0]}); "
                "encode it again"
            )
        squares = np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
    return np.asarray(np.sqrt(squares))


def _check(queries: np.ndarray, documents: np.ndarray, k: int, block: int, effort: int) -> None:
    for name, value in (("k", k), ("block", block), ("effort", effort)):
        if value < 1:
            raise ConfigError(f"{name} must be 1 or more, got {value}")
    for name, array in (("queries", queries), ("documents", documents)):
        if array.ndim != 2:
            raise DataError(f"{name} must have one row for each embedding, got shape {array.shape}")
    if queries.shape[1] != documents.shape[1]:
        raise DataError(
            f"queries have {queries.shape[1]} dimensions, documents {documents.shape[1]}; "
            "encode both with the same encoder"
        )
    if not len(documents):
        raise DataError("there are no documents to search")


def pair_scores(
    queries: Float[np.ndarray, "queries dim"],
    documents: Float[np.ndarray, "documents dim"],
    query: Int[np.ndarray, " pairs"],
    row: Int[np.ndarray, " pairs"],
) -> Float32[np.ndarray, " pairs"]:
    """Inner products of chosen pairs, exactly as :func:`search` scores them.

    Args:
        queries: Query embeddings.
        documents: Document embeddings; may be memory-mapped.
        query: Row of the query of each pair.
        row: Row of the document of each pair.
    """
    out = np.empty(len(query), dtype=np.float32)
    step = max(1, _NUMBERS // queries.shape[1])
    for start in range(0, len(query), step):
        part = slice(start, start + step)
        out[part] = _chosen_scores(queries[query[part]], documents, row[part, None])[:, 0]
    return out


def _chosen_scores(
    queries: Float[np.ndarray, "queries dim"],
    documents: Float[np.ndarray, "documents dim"],
    rows: Int[np.ndarray, "queries chosen"],
) -> Float32[np.ndarray, "queries chosen"]:
    """Inner products of each query with documents chosen for it; -inf for row -1.

    Summed in 64 bits and rounded to 32, so that equal embeddings have equal scores, wherever they stand.
    """
    count, chosen = rows.shape
    out = np.empty((count, chosen), dtype=np.float32)
    step = max(1, _NUMBERS // max(1, chosen * queries.shape[1]))
    for start in range(0, count, step):
        part = rows[start : start + step]
        flat, where = np.unique(part, return_inverse=True)
        texts = torch.from_numpy(np.array(documents[np.maximum(flat, 0)], dtype=np.float32)).double()
        query = torch.from_numpy(np.array(queries[start : start + step], dtype=np.float32)).double()
        gathered = texts[torch.from_numpy(where.reshape(-1))].view(*part.shape, -1)
        out[start : start + step] = torch.bmm(gathered, query.unsqueeze(2)).squeeze(2).float().numpy()
    out[rows < 0] = -np.inf
    return out


def _ordered(
    scores: Float32[np.ndarray, "queries found"], rows: Int[np.ndarray, "queries found"], k: int
) -> tuple[Float32[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
    """The first k by falling score, then rising row."""
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1).astype(np.int64)


def search(
    queries: Float[np.ndarray, "queries dim"],
    documents: Float[np.ndarray, "documents dim_too"],
    k: int,
    *,
    index: Index = "exact",
    devices: Sequence[str] = (),
    block: int = 16_384,
    effort: int = 128,
) -> tuple[Float32[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
    """The k documents with the largest inner product for every query.

    ``exact`` multiplies block by block in 32 bits and keeps some more than k, scores these again in 64 bits
    and sorts them; where the rounding of the first pass could have cost a query a document, that query is
    searched again in 64 bits. So the result does not depend on block, threads or device. Memory beyond the
    arguments and results: a few blocks, whatever the number of documents.

    ``hnsw`` and ``ivf`` are faiss's, with embeddings kept in 16 bits (half the memory); what they find is
    scored and sorted as above. Building a graph with several threads is not reproducible.

    Args:
        queries: Query embeddings.
        documents: Document embeddings; may be memory-mapped.
        k: How many documents; cut to the number of documents there are.
        index: Exact, or the kind of approximation.
        devices: Names of devices as torch has them, such as ``cuda:0``; the documents are spread over them
            (``ivf``: GPUs only, needs faiss-gpu; ``hnsw``: none). Empty: the CPU.
        block: How many documents are read at a time.
        effort: Candidates that ``hnsw`` looks at, lists that ``ivf`` looks into; more is slower and better.

    Returns:
        Scores and rows, see the module.

    Raises:
        ConfigError: A setting is out of range.
        DataError: An embedding is not finite, or dimensions differ.
        BackendError: A device is missing.
    """
    if index not in get_args(Index):
        raise ConfigError(f"index must be one of {', '.join(get_args(Index))}, got '{index}'")
    _check(queries, documents, k, block, effort)
    k = min(k, len(documents))
    if not len(queries):
        return np.zeros((0, k), dtype=np.float32), np.zeros((0, k), dtype=np.int64)
    norms = _norms(np.array(queries, dtype=np.float32), "query")
    if index == "exact":
        with _full_precision():
            return _exact(
                queries, documents, k, [check_device(name) for name in devices or ("cpu",)], block, norms
            )
    rows = _approximate(queries, documents, k, index, devices, block, effort)
    return _ordered(_chosen_scores(queries, documents, rows), rows, k)


def check_device(name: str) -> torch.device:
    """A device by the name that torch has for it, such as ``cuda:0``.

    Raises:
        ConfigError: There is no such kind of device.
        BackendError: This machine lacks it.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device '{name}' is not known; give cpu, cuda:0, ...") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendError(f"device '{name}': this machine has {torch.cuda.device_count()} GPUs for torch")
    return device


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
) -> tuple[Float32[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
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
    for start in range(0, len(queries), _QUERIES):
        some = slice(start, start + _QUERIES)
        rough, places = torch.cat([part[0][some] for part in parts], 1).topk(more, dim=1)
        rows = torch.cat([part[1][some] for part in parts], 1).gather(1, places).numpy()
        scores[some], best[some] = _ordered(_chosen_scores(queries[some], documents, rows), rows, k)
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
    step = _QUERIES if device.type == "cpu" else _GPU_QUERIES
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
    for start, rows, norm in _blocks(documents, first, last, block):
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
) -> tuple[Float32[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
    """The best k by 64-bit products, rounded; of equal ones the lower row."""
    scores = np.empty((len(queries), k), dtype=np.float32)
    rows = np.empty((len(queries), k), dtype=np.int64)
    step = max(1, 2 * _NUMBERS // block)
    for begin in range(0, len(queries), step):
        part = np.array(queries[begin : begin + step], dtype=np.float32).astype(np.float64)
        best = np.zeros((len(part), 0), dtype=np.float32)
        place = np.zeros((len(part), 0), dtype=np.int64)
        for start, texts, _ in _blocks(documents, 0, len(documents), block):
            new = (part @ texts.astype(np.float64).T).astype(np.float32)
            keep = _highest(np.concatenate((best, new), axis=1), k)
            columns = np.broadcast_to(np.arange(start, start + len(texts)), new.shape)
            best = np.take_along_axis(np.concatenate((best, new), axis=1), keep, 1)
            place = np.take_along_axis(np.concatenate((place, columns), axis=1), keep, 1)
        scores[begin : begin + step], rows[begin : begin + step] = _ordered(best, place, k)
    return scores, rows


def _highest(values: Float32[np.ndarray, "rows n"], k: int) -> Int[np.ndarray, "rows k"]:
    """Columns of the k highest values of each row, in rising order; of equal ones the first."""
    if values.shape[1] <= k:
        return np.broadcast_to(np.arange(values.shape[1]), values.shape)
    last = np.partition(values, values.shape[1] - k, axis=1)[:, -k, None]
    above, level = values > last, values == last
    room = k - above.sum(axis=1, keepdims=True)
    chosen: Bool[np.ndarray, "rows n"] = above | (level & (np.cumsum(level, axis=1) <= room))
    return np.nonzero(chosen)[1].reshape(len(values), k)


def _approximate(
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
    count, dim = documents.shape
    # Numbers are scaled to at most 1 before they are kept in 16 bits; an inner product keeps its order.
    largest = max(np.abs(rows).max() for _, rows, _ in _blocks(documents, 0, count, block))
    scale = np.float32(largest or 1)
    lists = max(1, min(int(4 * count**0.5), count // 64))
    built: Any = faiss.index_factory(
        dim,
        f"HNSW{LINKS}_SQfp16" if index == "hnsw" else f"IVF{lists},SQfp16",
        faiss.METRIC_INNER_PRODUCT,
    )
    sample = np.unique(np.linspace(0, count - 1, min(count, 64 * lists)).astype(np.int64))
    built.train(np.array(documents[sample], dtype=np.float32) / scale)
    for _, rows, _ in _blocks(documents, 0, count, block):
        built.add(rows / scale)
    if index == "hnsw":
        built.hnsw.efSearch = max(effort, k)
    else:
        built.nprobe = min(effort, lists)
    if gpus:
        options = faiss.GpuMultipleClonerOptions()
        options.shard = True
        built = faiss.index_cpu_to_gpus_list(built, options, gpus)
    parts = [
        built.search(np.array(queries[start : start + _QUERIES], dtype=np.float32), k)[1]
        for start in range(0, len(queries), _QUERIES)
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


class BM25:
    """BM25 over texts, Lucene's variant.

    ``score(q, d) = sum_{t in q} idf(t) f(t, d) / (f(t, d) + k1 (1 - b + b |d| / mean |d|))`` with
    ``idf(t) = ln(1 + (N - n(t) + 0.5) / (n(t) + 0.5))``; f counts t in d, |d| is the number of words of d.
    A word that is twice in the query counts twice.

    Source: Robertson and Zaragoza 2009; the index is bm25s's. The defaults are those of the published
    Pyserini baselines. Words are runs of two or more letters or digits in lower case.

    Args:
        texts: The documents.
        k1: How slowly a word that is repeated saturates.
        b: How much long documents are held back, 0 to 1.
        stem: Language of the Snowball stemmer; None for none.
        stopwords: Language of the list of words that are left out, or the words; None for none.

    Raises:
        ConfigError: A setting is out of range or unknown.
        DataError: There are no texts, or no words in them.
    """

    def __init__(
        self,
        texts: Sequence[str],
        *,
        k1: float = 0.9,
        b: float = 0.4,
        stem: str | None = "english",
        stopwords: str | Sequence[str] | None = "english",
    ) -> None:
        # Here, since it brings numba and llvmlite along, which vLLM's engine processes cannot start beside.
        import bm25s

        if k1 < 0 or not 0 <= b <= 1:
            raise ConfigError(f"BM25 needs k1 >= 0 and b in [0, 1], got k1 = {k1}, b = {b}")
        if stem is not None and stem not in Stemmer.algorithms():
            raise ConfigError(f"there is no stemmer for '{stem}'{suggest(stem, Stemmer.algorithms())}")
        self._stemmer = None if stem is None else Stemmer.Stemmer(stem)
        self._stopwords = stopwords if isinstance(stopwords, str) else list(stopwords or ())
        try:
            words = self._words(texts, return_ids=True)
        except ValueError as error:
            raise ConfigError(f"stopwords: {error}") from None
        if not any(len(ids) for ids in words.ids):
            raise DataError(f"none of the {len(texts)} texts has a word to search for")
        built = bm25s.BM25(k1=k1, b=b, method="lucene")
        built.index(words, show_progress=False)
        self._vocabulary: dict[str, int] = built.vocab_dict
        kept = built.scores
        self._weights = scipy.sparse.csr_matrix(
            (kept["data"].astype(np.float64), kept["indices"], kept["indptr"]),
            shape=(len(kept["indptr"]) - 1, len(texts)),
        )

    def _words(self, texts: Sequence[str], *, return_ids: bool) -> Any:
        import bm25s

        return bm25s.tokenize(
            list(texts),
            stopwords=self._stopwords,
            stemmer=self._stemmer,
            return_ids=return_ids,
            show_progress=False,
        )

    def __len__(self) -> int:
        """Number of documents."""
        return int(self._weights.shape[1])

    def _counts(self, queries: Sequence[str]) -> Any:
        """Sparse counts of the vocabulary's words in each query."""
        known = [
            [self._vocabulary[word] for word in words if word in self._vocabulary]
            for words in self._words(queries, return_ids=False)
        ]
        ends = np.cumsum([0, *map(len, known)])
        ids = np.array([id for row in known for id in row], dtype=np.int64)
        return scipy.sparse.csr_matrix(
            (np.ones(len(ids)), ids, ends), shape=(len(queries), self._weights.shape[0])
        )

    def search(
        self, queries: Sequence[str], k: int
    ) -> tuple[Float32[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
        """The k best documents of every query; only those that share a word with it are found.

        Args:
            queries: The queries.
            k: How many documents; cut to the number of documents there are.

        Returns:
            Scores and rows, see the module.

        Raises:
            ConfigError: k is below 1.
        """
        if k < 1:
            raise ConfigError(f"k must be 1 or more, got {k}")
        k = min(k, len(self))
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        step = max(1, _NUMBERS // len(self))
        for start in range(0, len(queries), step):
            found = self._counts(queries[start : start + step]) @ self._weights
            found.sort_indices()
            for at, (first, last) in enumerate(zip(found.indptr[:-1], found.indptr[1:], strict=True), start):
                values = found.data[first:last].astype(np.float32)
                keep = _highest(values[None], k)[0]
                order = keep[np.argsort(-values[keep], kind="stable")]
                scores[at, : len(order)] = values[order]
                rows[at, : len(order)] = found.indices[first:last][order]
        return scores, rows

    def score(
        self, queries: Sequence[str], query: Int[np.ndarray, " pairs"], row: Int[np.ndarray, " pairs"]
    ) -> Float32[np.ndarray, " pairs"]:
        """Scores of chosen pairs, exactly as :meth:`search` gives them; 0 for a pair without a shared word.

        Args:
            queries: The queries.
            query: Position of the query of each pair.
            row: Row of the document of each pair.
        """
        counts, out = self._counts(queries), np.empty(len(query), dtype=np.float32)
        for start in range(0, len(query), _PAIRS):
            part = slice(start, start + _PAIRS)
            chosen, where = np.unique(row[part], return_inverse=True)
            texts = self._weights[:, chosen].T.tocsr()[where.reshape(-1)]
            out[part] = np.asarray(counts[query[part]].multiply(texts).sum(axis=1)).reshape(-1)
        return out


def as_run(
    query_ids: Sequence[str],
    document_ids: Sequence[str],
    scores: Float[np.ndarray, "queries k"],
    rows: Int[np.ndarray, "queries k"],
) -> dict[str, dict[str, float]]:
    """What a search found, by ids: what :func:`common.metrics.retrieval.retrieval_metrics` measures.

    Args:
        query_ids: Ids of the queries.
        document_ids: Ids of all documents.
        scores: Scores.
        rows: Rows of documents; -1 for none.
    """
    return {
        query: {document_ids[row]: score for row, score in zip(*pair, strict=True) if row >= 0}
        for query, *pair in zip(query_ids, rows.tolist(), scores.tolist(), strict=True)
    }
