"""What the commands do, for scripts that call them without a shell: mine, generate, verify a set."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from causalneg.data.formats import Dataset, read_dataset, read_examples, write_examples
from causalneg.data.formats import Report as Tell
from causalneg.encoders import Encoder, encode, load_encoder
from causalneg.evaluation.evaluate import tokenize
from causalneg.generation.backends import make_writer
from causalneg.generation.pipeline import data_card, generate, pairs_from, preview, rewrite_examples
from causalneg.generation.verification.heuristics import verify
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
from causalneg.world import World
from common.errors import DataError
from common.files import atomic_write

TOKENIZED = 16_384
"""Texts whose tokens are in memory at a time where only their number matters."""


def find_encoder(path: Path) -> Encoder:
    """The encoder of a run folder, or the one that lies in the folder itself.

    Raises:
        DataError: There is none.
    """
    inner = path / "encoder"
    return load_encoder(inner if inner.is_dir() else path)


def find_world(data: Path) -> World | None:
    """The world that a BEIR folder was made from, or that its mixed twin lies in; None for other data."""
    for folder in (data, data.parent):
        if (folder / "world.json").is_file():
            return World.open(folder)
    return None


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


def generate_set(
    data: Path,
    mined: Path,
    out: Path,
    *,
    backend: str,
    artifact: float = 0.0,
    both_voices: bool = False,
    voices_per_query: int = 5,
    limit: int | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    tell: Tell | None = None,
    progress: bool = False,
    show_first: bool = False,
) -> str:
    """Write negatives for the queries of a mined set, verify them, and write what is valid.

    Args:
        data: BEIR folder.
        mined: Training set whose queries, positives and negatives (as candidates) are the input.
        out: File to write; ``.rejected.jsonl``, ``.voices.jsonl``, ``.card.md`` and ``.journal`` lie beside.
        backend: Who writes: ``rules`` or ``naive``.
        artifact: Strength of the writer's fingerprint, 0 to 1.
        both_voices: Whether positives and mined negatives are rewritten too.
        voices_per_query: How many mined negatives of each query are rewritten.
        limit: Only the first so many queries.
        seed: Decides every choice of the writer.
        skip_bad: Whether malformed lines are left out.
        tell: Told how many were.
        progress: Whether to show a progress bar.
        show_first: Return what would be done for the first pair, and write nothing.

    Returns:
        The data card in Markdown.

    Raises:
        DataError: The mined set or the data set cannot be read.
    """
    dataset = read_dataset(data, splits=[], skip_bad=skip_bad, report=tell)
    world = find_world(data)
    source = read_examples(mined, skip_bad=skip_bad, report=tell)[: limit or None]
    if not source:
        raise DataError(f"{mined}: holds no examples, so there is nothing to write negatives for")
    writer = make_writer(backend, dataset, world=world, artifact=artifact, seed=seed)
    pairs = pairs_from(source, dataset)
    if show_first:
        return preview(pairs[0], writer)
    written = generate(pairs, writer, journal=beside(out, ".journal"), progress=progress)
    checked = verify(written, dataset, world=world)
    if both_voices:
        voices = rewrite_examples(source, dataset, writer, negatives=voices_per_query, progress=progress)
        write_examples(beside(out, ".voices.jsonl"), voices)
    write_examples(beside(out, ".rejected.jsonl"), checked.rejected)
    card = data_card(checked, source, dataset)
    atomic_write(beside(out, ".card.md"), card)
    atomic_write(beside(out, ".card.json"), json.dumps(checked.report.to_dict(), indent=1) + "\n")
    write_examples(out, checked.kept)
    return card


def verify_set(
    data: Path, examples: Path, out: Path, *, skip_bad: bool = False, tell: Tell | None = None
) -> str:
    """Check the written negatives of a set; valid ones to ``out``, the others beside it with the reason.

    Returns:
        The counts in Markdown.
    """
    dataset = read_dataset(data, splits=[], skip_bad=skip_bad, report=tell)
    found = read_examples(examples, skip_bad=skip_bad, report=tell)
    checked = verify(found, dataset, world=find_world(data))
    write_examples(beside(out, ".rejected.jsonl"), checked.rejected)
    write_examples(out, checked.kept)
    return checked.report.to_markdown()


def beside(path: Path, ending: str) -> Path:
    """The file of another ending beside a ``.jsonl`` file."""
    return path.with_name(path.name.removesuffix(".jsonl") + ending)
