"""What the commands do, for scripts that call them without a shell: find an encoder, mine a set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from causalneg.data.formats import Dataset, read_dataset, write_examples
from causalneg.data.formats import Report as Tell
from causalneg.encoders import Encoder, encode, load_encoder
from causalneg.evaluation.evaluate import tokenize
from causalneg.mining.mining import (
    Candidates,
    MiningReport,
    MiningRules,
    cached_embeddings,
    candidates_bm25,
    candidates_dense,
)
from causalneg.mining.mining import mine as mine_rules
from causalneg.search.search import Index, check_device
from common.files import atomic_write, beside

TOKENIZED = 16_384
"""Texts whose tokens are in memory at a time where only their number matters."""


def find_encoder(path: Path) -> Encoder:
    """The encoder of a run folder, or the one that lies in the folder itself.

    Raises:
        DataError: There is none.
    """
    inner = path / "encoder"
    return load_encoder(inner if inner.is_dir() else path)


def mine_set(
    data: Path,
    out: Path,
    *,
    split: str,
    rules: MiningRules,
    encoder: Path | Encoder | None = None,
    truth: str | None = None,
    cache: Path | None = None,
    index: Index = "exact",
    devices: Sequence[str] = (),
    seed: int = 0,
    skip_bad: bool = False,
    tell: Tell | None = None,
    progress: bool = False,
) -> MiningReport:
    """Mine a training set into a JSONL file, with its report beside it.

    Args:
        data: BEIR folder.
        out: File to write; the report goes to the same name with ``.report.json``.
        split: Queries to mine for.
        rules: What is kept.
        encoder: Encoder, or folder of one, to mine with; None mines with BM25.
        truth: Split with all true positives, to count the false negatives with.
        cache: Folder for embeddings.
        index: How the encoder's documents are searched: ``exact``, ``hnsw`` or ``ivf``.
        devices: Devices to encode on (the first) and to search on; empty: the CPU.
        seed: Decides the random picks.
        skip_bad: Whether malformed lines are left out.
        tell: Told how many were.
        progress: Whether to show a progress bar.
    """
    splits = [split, *([truth] if truth else [])]
    dataset = read_dataset(data, splits=splits, skip_bad=skip_bad, report=tell)
    if encoder is None:
        backend, found, cut = "bm25", candidates_bm25(dataset, split, rules.depth), 0
    else:
        model = find_encoder(encoder) if isinstance(encoder, Path) else encoder
        found = _found_by(model, dataset, split, rules.depth, cache, index, devices, progress)
        backend, cut = "dense", model.cut
        del model  # neither it nor the embeddings are needed from here on
    judged = dataset.qrels[truth] if truth else None
    examples, report = mine_rules(dataset, split, found, rules, backend=backend, seed=seed, truth=judged)
    report = dataclasses.replace(report, texts_cut=cut)
    write_examples(out, examples)
    atomic_write(beside(out, ".report.json"), report.to_json() + "\n")
    return report


def _found_by(
    encoder: Encoder,
    dataset: Dataset,
    split: str,
    depth: int,
    cache: Path | None,
    index: Index,
    devices: Sequence[str],
    progress: bool,
) -> Candidates:
    """What an encoder finds for the queries of a split."""
    place(encoder, devices)
    texts = [query.text for query in dataset.split_queries(split)]
    queries = encode(encoder, encoder.tokenize(texts, query=True), query=True)
    documents = corpus_embeddings(encoder, dataset, cache=cache, progress=progress)
    spread = searching(index, devices)
    return candidates_dense(dataset, split, queries, documents, depth, index=index, devices=spread)


def place(encoder: Encoder, devices: Sequence[str]) -> None:
    """Put an encoder on the first device.

    Raises:
        ConfigError: There is no such kind of device.
        BackendError: This machine lacks one of the devices.
    """
    found = [check_device(name) for name in devices]
    if found:
        encoder.to(found[0])


def searching(index: Index, devices: Sequence[str]) -> Sequence[str]:
    """The devices that an index is spread over; a graph stays on the CPU."""
    return () if index == "hnsw" else devices


def corpus_embeddings(
    encoder: Encoder, dataset: Dataset, *, cache: Path | None = None, progress: bool = False
) -> Float32[np.ndarray, "documents dim"]:
    """Embeddings of a corpus; with a cache only texts that it has not seen are encoded."""
    texts = [d.content for d in dataset.documents]
    if cache is None:
        return encode(encoder, tokenize(encoder, texts, query=False), query=False, progress=progress)
    encoded: set[str] = set()

    def vectors(some: list[str]) -> Float32[np.ndarray, "some dim"]:
        encoded.update(some)
        return encode(encoder, encoder.tokenize(some, query=False), query=False, progress=progress)

    found = cached_embeddings(vectors, texts, cache, encoder.fingerprint, encoder.dim)
    known = [text for text in texts if text not in encoded]
    for start in range(0, len(known), TOKENIZED):  # so that what is cut is counted in these too
        encoder.tokenize(known[start : start + TOKENIZED], query=False)
    return found
