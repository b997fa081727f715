"""Evaluation on any data set: search, metrics, and a TREC run file beside them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from causalneg.data import Dataset, Report
from causalneg.data.schema import Query
from causalneg.encoders import Encoder, encode
from causalneg.encoders.cache import tokenize
from causalneg.search import BM25, Collection, Search, Searcher, as_run, make_searcher, unmatched_warning
from causalneg.search.base import Embed
from common.files import atomic_write
from common.metrics.retrieval import MEASURES, RetrievalMetrics, retrieval_metrics, write_trec
from common.ragged import Ragged

_BLOCK = 2048  # texts that a killed evaluation encodes again at most


@dataclass(frozen=True)
class Evaluation:
    """What a retriever found for the queries of a split.

    Args:
        name: Name of the data set.
        split: Name of the split.
        run: Scores of the documents that were found.
        metrics: Per query and averaged.
        notes: Counts and times worth keeping: documents, documents per second, texts cut so far.
        retriever: What searched, and how it read texts, as JSON values; may be empty.
    """

    name: str
    split: str
    run: dict[str, dict[str, float]]
    metrics: RetrievalMetrics
    notes: dict[str, float | int] = field(default_factory=dict)
    retriever: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> Path:
        """Write ``folder/NAME-SPLIT/run.trec``, ``metrics.json`` and ``per_query.json``.

        Returns:
            The folder written to.
        """
        out = folder / f"{self.name}-{self.split}"
        out.mkdir(parents=True, exist_ok=True)
        write_trec(out / "run.trec", self.run, tag="causalneg")
        atomic_write(out / "per_query.json", json.dumps(self.metrics.per_query) + "\n")
        content: dict[str, Any] = {
            "dataset": self.name,
            "split": self.split,
            "queries": self.metrics.queries,
            "metrics": self.metrics.mean,
            "notes": self.notes,
        }
        if self.retriever:
            content["retriever"] = self.retriever
        atomic_write(out / "metrics.json", json.dumps(content, indent=1) + "\n")
        return out


def evaluate(
    searcher: Searcher,
    dataset: Dataset,
    splits: Sequence[str],
    *,
    depth: int = 100,
    measures: Sequence[str] = MEASURES,
    ignore_identical: bool | None = None,
    report: Report | None = None,
) -> list[Evaluation]:
    """Rank the whole corpus for the judged queries of each split.

    Args:
        searcher: A search over the documents of the data set, in their order.
        dataset: The data set.
        splits: Splits of its judgements.
        depth: Documents kept per query.
        measures: Names of the measures, such as ``"ndcg@10"``.
        ignore_identical: Whether documents that are the query itself (same id or text, and not judged
            relevant) are no hits. None: where a query has the id of a document, as BEIR does.
        report: Takes lines that a user should know.

    Raises:
        ConfigError: There is no such measure.
        DataError: A split is not there, or embeddings are not finite.
    """
    return [
        _evaluate_split(searcher, dataset, split, depth, measures, ignore_identical, report)
        for split in splits
    ]


def _evaluate_split(
    searcher: Searcher,
    dataset: Dataset,
    split: str,
    depth: int,
    measures: Sequence[str],
    ignore_identical: bool | None,
    report: Report | None,
) -> Evaluation:
    queries = dataset.judged_queries(split)
    itself = _identical(dataset, split, queries, ignore_identical)
    more = max(map(len, itself), default=0)
    scores, rows = searcher.search([query.text for query in queries], depth + more)
    warning = unmatched_warning(searcher, rows)
    if warning is not None and report is not None:
        report(f"{dataset.name} {split}: {warning}")
    run = as_run([query.id for query in queries], [d.id for d in dataset.documents], scores, rows)
    notes: dict[str, float | int] = {"documents": len(dataset.documents)}
    if more:
        run, left_out = _without(run, queries, itself, dataset, depth)
        notes["identical_left_out"] = left_out
        if report is not None and left_out:
            report(
                f"{dataset.name} {split}: {left_out} hits that are the query itself do not count "
                "(--keep-identical counts them)"
            )
    judged = {query.id: dataset.judged(split)[query.id] for query in queries}
    return Evaluation(dataset.name, split, run, retrieval_metrics(run, judged, measures), notes)


def _identical(
    dataset: Dataset, split: str, queries: Sequence[Query], wanted: bool | None
) -> list[list[int]]:
    if wanted is None:
        wanted = any(query.id in dataset.index for query in queries)
    return dataset.identical(split, queries) if wanted else []


def _without(
    run: dict[str, dict[str, float]],
    queries: Sequence[Query],
    rows: Sequence[Sequence[int]],
    dataset: Dataset,
    depth: int,
) -> tuple[dict[str, dict[str, float]], int]:
    """A run without some documents of each query, cut to a depth; and how many were found and left out."""
    left_out, out = 0, {}
    for query, found in zip(queries, rows, strict=True):
        ids = {dataset.documents[row].id for row in found}
        kept = [(id, score) for id, score in run[query.id].items() if id not in ids]
        left_out += len(run[query.id]) - len(kept)
        out[query.id] = dict(kept[:depth])
    return out, left_out


def evaluate_views(
    encoder: Encoder,
    datasets: Sequence[Dataset],
    splits: Sequence[str],
    *,
    search: Search = "exact",
    depth: int = 100,
    measures: Sequence[str] = MEASURES,
    ignore_identical: bool | None = None,
    devices: Sequence[str] = (),
    batch_tokens: int | None = None,
    cache: Path | None = None,
    progress: bool = False,
    report: Report | None = None,
) -> list[list[Evaluation]]:
    """Rank several corpora that share texts, such as a corpus and its mixed twin, with an encoder.

    A text is encoded once, however many documents of however many corpora hold it.

    Args:
        encoder: The encoder.
        datasets: The data sets.
        splits: Splits that each of them has.
        search: The search of embeddings.
        depth: As for :func:`evaluate`.
        measures: As for :func:`evaluate`.
        ignore_identical: As for :func:`evaluate`.
        devices: Devices that the search is spread over; empty: the CPU.
        batch_tokens: Tokens per forward pass; None takes the encoder's own number.
        cache: Folder for token ids.
        progress: Whether to show a progress bar.
        report: Takes lines that a user should know.

    Returns:
        Per data set, the evaluations of its splits.

    Raises:
        DataError: A split is not there, or embeddings are not finite.
    """
    row_of: dict[str, int] = {}
    new: list[Ragged] = []
    places: list[list[int]] = []
    for dataset in datasets:
        texts = [d.content for d in dataset.documents]
        tokens = tokenize(encoder, texts, query=False, cache=cache, key=dataset.corpus_fingerprint)
        first = {text: n for n, text in reversed(list(enumerate(texts))) if text not in row_of}
        rows = np.array(sorted(first.values()), dtype=np.int64)
        row_of |= {texts[n]: len(row_of) + place for place, n in enumerate(rows)}
        new.append(tokens.gather(rows))
        places.append([row_of[text] for text in texts])
    begun = time.perf_counter()
    vectors = encode(
        encoder, Ragged.concatenate(new), query=False, batch_tokens=batch_tokens, progress=progress
    )
    rate = len(vectors) / max(time.perf_counter() - begun, 1e-9)

    def embed(queries: Sequence[str]) -> Float32[np.ndarray, "queries dim"]:
        return encode(encoder, encoder.tokenize(queries, query=True), query=True, batch_tokens=batch_tokens)

    out = []
    for dataset, place in zip(datasets, places, strict=True):
        # Not copied where they stand in this order already: embeddings are what takes memory here.
        documents = vectors if place == list(range(len(vectors))) else vectors[place]
        found = evaluate(
            make_searcher(search, _collection(dataset, documents, embed, devices)),
            dataset,
            splits,
            depth=depth,
            measures=measures,
            ignore_identical=ignore_identical,
            report=report,
        )
        for one in found:
            one.notes.update(documents_per_second=rate, texts_cut=encoder.cut)
        out.append(found)
    return out


def _collection(
    dataset: Dataset, documents: Float32[np.ndarray, "documents dim"], embed: Embed, devices: Sequence[str]
) -> Collection:
    texts = [d.content for d in dataset.documents]
    return Collection(texts, documents=lambda: documents, queries=embed, devices=devices)


def evaluate_encoder(
    encoder: Encoder, dataset: Dataset, splits: Sequence[str], **options: Any
) -> list[Evaluation]:
    """Rank one corpus with an encoder; see :func:`evaluate_views` for the options."""
    (found,) = evaluate_views(encoder, [dataset], splits, **options)
    return found


def evaluate_resumable(
    encoder: Encoder,
    dataset: Dataset,
    splits: Sequence[str],
    *,
    embeddings: Path,
    search: Search = "exact",
    devices: Sequence[str] = (),
    batch_tokens: int | None = None,
    progress: bool = False,
    **options: Any,
) -> list[Evaluation]:
    """Rank one corpus with an encoder whose embeddings are kept, so that a killed call goes on.

    Args:
        encoder: The encoder.
        dataset: The data set.
        splits: Splits of its judgements.
        embeddings: Folder of :func:`causalneg.encoders.cache.cached_embeddings`.
        search: The search of embeddings.
        devices: Devices that the search is spread over; empty: the CPU.
        batch_tokens: Tokens per forward pass; None takes the encoder's own number.
        progress: Whether to show a progress bar.
        **options: As for :func:`evaluate`.
    """
    collection = Collection.encoded(
        [document.content for document in dataset.documents], encoder, cache=embeddings, devices=devices,
        progress=progress, batch_tokens=batch_tokens, block=_BLOCK,
    )  # fmt: skip
    found = evaluate(make_searcher(search, collection), dataset, splits, **options)
    for one in found:
        one.notes.update(texts_cut=encoder.cut)
    return found


def evaluate_bm25(
    dataset: Dataset, splits: Sequence[str], *, depth: int = 100, language: str | None = None
) -> list[Evaluation]:
    """Rank one corpus with BM25: the line that every table has; its language is detected unless given."""
    searcher = BM25.build(Collection([d.content for d in dataset.documents], language=language))
    return evaluate(searcher, dataset, splits, depth=depth)
