"""Evaluation on any BEIR folder: encode or BM25, search, metrics, and a TREC run file beside them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from causalneg.data.formats import Dataset
from causalneg.encoders import Encoder, encode
from causalneg.search.search import BM25, Index, as_run, search
from common.errors import DataError
from common.files import atomic_write, fill_once
from common.metrics.retrieval import RetrievalMetrics, retrieval_metrics, write_trec
from common.ragged import Ragged


@dataclass(frozen=True)
class Evaluation:
    """What a retriever found for the queries of a split.

    Args:
        name: Name of the data set.
        split: Name of the split.
        run: Scores of the documents that were found.
        metrics: Per query and averaged.
        notes: Counts and times worth keeping: documents, documents per second, texts cut so far.
    """

    name: str
    split: str
    run: dict[str, dict[str, float]]
    metrics: RetrievalMetrics
    notes: dict[str, float | int] = field(default_factory=dict)

    def save(self, folder: Path) -> Path:
        """Write ``folder/NAME-SPLIT/run.trec``, ``metrics.json`` and ``per_query.json``.

        Returns:
            The folder written to.
        """
        out = folder / f"{self.name}-{self.split}"
        out.mkdir(parents=True, exist_ok=True)
        write_trec(out / "run.trec", self.run, tag="causalneg")
        atomic_write(out / "per_query.json", json.dumps(self.metrics.per_query) + "\n")
        content = {
            "dataset": self.name,
            "split": self.split,
            "queries": self.metrics.queries,
            "metrics": self.metrics.mean,
            "notes": self.notes,
        }
        atomic_write(out / "metrics.json", json.dumps(content, indent=1) + "\n")
        return out


def tokenize(
    encoder: Encoder, texts: Sequence[str], *, query: bool, cache: Path | None = None, key: str = ""
) -> Ragged:
    """Token ids of texts, kept on disk for the next encoder with the same tokenizer.

    Args:
        encoder: Whose tokenizer.
        texts: The texts.
        query: Whether they are queries.
        cache: Folder to keep them in; None keeps nothing.
        key: Fingerprint of the texts, such as that of the data set.
    """
    if cache is None or not key:
        return encoder.tokenize(texts, query=query)
    folder = cache / f"{key}-{'queries' if query else 'documents'}-{encoder.tokenizer_fingerprint}"

    def fill(empty: Path) -> None:
        made, cut = encoder.tokenize_and_cut(texts, query=query)
        made.save(empty, "tokens")
        Ragged(cut, np.array([0, len(cut)])).save(empty, "cut")

    fill_once(folder, fill)
    found = Ragged.load(folder, "tokens")
    if len(found) != len(texts):
        raise DataError(f"{folder}: holds {len(found)} texts, not {len(texts)}; remove it")
    if (folder / "cut.offsets.npy").exists():
        encoder.count_cut((texts[at] for at in Ragged.load(folder, "cut").values.tolist()), query=query)
    return found


def evaluate_encoder(
    encoder: Encoder,
    dataset: Dataset,
    splits: Sequence[str],
    *,
    depth: int = 100,
    index: Index = "exact",
    devices: Sequence[str] = (),
    batch_tokens: int | None = None,
    cache: Path | None = None,
    progress: bool = False,
) -> list[Evaluation]:
    """Rank the whole corpus for the queries of each split with an encoder.

    The corpus is encoded once for all splits.

    Args:
        encoder: The encoder.
        dataset: The data set.
        splits: Splits of its qrels.
        depth: Documents kept per query.
        index: ``exact``, ``hnsw`` or ``ivf``.
        devices: Devices that the search is spread over; empty: the CPU.
        batch_tokens: Tokens per forward pass; None takes the encoder's own number.
        cache: Folder for token ids.
        progress: Whether to show a progress bar.

    Raises:
        DataError: A split is not there, or embeddings are not finite.
    """
    (found,) = evaluate_views(
        encoder,
        [dataset],
        splits,
        depth=depth,
        index=index,
        devices=devices,
        batch_tokens=batch_tokens,
        cache=cache,
        progress=progress,
    )
    return found


def evaluate_views(
    encoder: Encoder,
    datasets: Sequence[Dataset],
    splits: Sequence[str],
    *,
    depth: int = 100,
    index: Index = "exact",
    devices: Sequence[str] = (),
    batch_tokens: int | None = None,
    cache: Path | None = None,
    progress: bool = False,
) -> list[list[Evaluation]]:
    """As :func:`evaluate_encoder` on several corpora that share texts, such as a corpus and its mixed twin.

    A text is encoded once, however many documents of however many corpora hold it.

    Args:
        encoder: The encoder.
        datasets: The data sets.
        splits: Splits that each of them has.
        depth: Documents kept per query.
        index: ``exact``, ``hnsw`` or ``ivf``.
        devices: Devices that the search is spread over; empty: the CPU.
        batch_tokens: Tokens per forward pass; None takes the encoder's own number.
        cache: Folder for token ids.
        progress: Whether to show a progress bar.

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
        tokens = tokenize(encoder, texts, query=False, cache=cache, key=dataset.fingerprint)
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
    out = []
    for dataset, place in zip(datasets, places, strict=True):
        # Not copied where they stand in this order already: embeddings are what takes memory here.
        documents = vectors if place == list(range(len(vectors))) else vectors[place]
        ids = [d.id for d in dataset.documents]
        found = []
        for split in splits:
            queries = dataset.split_queries(split)
            asked = encoder.tokenize([q.text for q in queries], query=True)
            question = encode(encoder, asked, query=True, batch_tokens=batch_tokens)
            scores, rows = search(question, documents, depth, index=index, devices=devices)
            run = as_run([q.id for q in queries], ids, scores, rows)
            metrics = retrieval_metrics(run, _judged(dataset, split))
            notes: dict[str, float | int] = {
                "documents": len(ids),
                "documents_per_second": rate,
                "texts_cut": encoder.cut,
            }
            found.append(Evaluation(dataset.name, split, run, metrics, notes))
        out.append(found)
    return out


def evaluate_bm25(dataset: Dataset, splits: Sequence[str], *, depth: int = 100) -> list[Evaluation]:
    """Rank the whole corpus for the queries of each split with BM25: the line that every table has."""
    engine = BM25([d.content for d in dataset.documents])
    ids = [d.id for d in dataset.documents]
    out = []
    for split in splits:
        queries = dataset.split_queries(split)
        scores, rows = engine.search([q.text for q in queries], min(depth, len(dataset.documents)))
        run = as_run([q.id for q in queries], ids, scores, rows)
        metrics = retrieval_metrics(run, _judged(dataset, split))
        out.append(Evaluation(dataset.name, split, run, metrics, {"documents": len(dataset.documents)}))
    return out


def _judged(dataset: Dataset, split: str) -> dict[str, dict[str, int]]:
    """Judgements of the queries that have a positive."""
    return {q.id: dataset.qrels[split][q.id] for q in dataset.split_queries(split)}
