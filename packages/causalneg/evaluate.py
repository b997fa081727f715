"""Evaluation on any BEIR folder: encode or BM25, search, metrics, and a TREC run file beside them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from causalneg.encoders import Encoder, encode
from causalneg.formats import Dataset
from causalneg.search import BM25, Index, as_run, search
from common.errors import DataError
from common.files import atomic_folder, atomic_write
from common.ragged import Ragged
from common.retrieval_metrics import RetrievalMetrics, retrieval_metrics, write_trec


@dataclass(frozen=True)
class Evaluation:
    """What a retriever found for the queries of a split.

    Args:
        name: Name of the data set.
        split: Name of the split.
        run: Scores of the documents that were found.
        metrics: Per query and averaged.
        notes: Counts and times worth keeping: texts cut, documents per second.
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
    if not (folder / "tokens.offsets.npy").exists():
        made = encoder.tokenize(texts, query=query)
        with atomic_folder(folder, replace=True) as temporary:
            made.save(temporary, "tokens")
    found = Ragged.load(folder, "tokens")
    if len(found) != len(texts):
        raise DataError(f"{folder}: holds {len(found)} texts, not {len(texts)}; remove it")
    return found


def evaluate_encoder(
    encoder: Encoder,
    dataset: Dataset,
    splits: Sequence[str],
    *,
    depth: int = 100,
    index: Index = "exact",
    batch_tokens: int = 16384,
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
        batch_tokens: Tokens per forward pass.
        cache: Folder for token ids.
        progress: Whether to show a progress bar.

    Raises:
        DataError: A split is not there, or embeddings are not finite.
    """
    texts = [d.content for d in dataset.documents]
    tokens = tokenize(encoder, texts, query=False, cache=cache, key=dataset.fingerprint)
    begun = time.perf_counter()
    documents = encode(encoder, tokens, query=False, batch_tokens=batch_tokens, progress=progress)
    seconds = time.perf_counter() - begun
    ids = [d.id for d in dataset.documents]
    out = []
    for split in splits:
        queries = dataset.split_queries(split)
        asked = encoder.tokenize([q.text for q in queries], query=True)
        vectors = encode(encoder, asked, query=True, batch_tokens=batch_tokens)
        scores, rows = search(vectors, documents, min(depth, len(documents)), index=index)
        run = as_run([q.id for q in queries], ids, scores, rows)
        notes: dict[str, float | int] = {
            "documents": len(texts),
            "documents_per_second": len(texts) / max(seconds, 1e-9),
        }
        out.append(
            Evaluation(dataset.path.name, split, run, retrieval_metrics(run, _judged(dataset, split)), notes)
        )
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
        out.append(Evaluation(dataset.path.name, split, run, metrics, {"documents": len(dataset.documents)}))
    return out


def _judged(dataset: Dataset, split: str) -> dict[str, dict[str, int]]:
    """Judgements of the queries that have a positive."""
    return {q.id: dataset.qrels[split][q.id] for q in dataset.split_queries(split)}
