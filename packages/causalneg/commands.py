"""What the commands do, for scripts that call them without a shell: mine, generate, verify a set."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from causalneg.data import Report, read_dataset, read_examples, write_examples
from causalneg.data import Report as Tell
from causalneg.encoders import Encoder, find_encoder
from causalneg.evaluation.evaluate import Evaluation, evaluate, evaluate_encoder
from causalneg.generation.backends import make_writer
from causalneg.generation.pipeline import data_card, generate, pairs_from, preview, rewrite_examples
from causalneg.generation.verification.heuristics import verify
from causalneg.mining import MiningReport, MiningRules, find_candidates, mine
from causalneg.search import SEARCHERS, Collection, check_device, unmatched_warning
from causalneg.world import World
from common.errors import DataError
from common.files import atomic_write
from common.metrics.retrieval import MEASURES


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
    search: str | None = None,
    devices: Sequence[str] = (),
    trust_remote_code: bool = False,
    seed: int = 0,
    skip_bad: bool = False,
    report: Report | None = None,
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
        search: Name of the search; by default BM25, or exact with an encoder.
        devices: Devices to encode on (the first) and to search on; empty: the CPU.
        trust_remote_code: Whether code that lies in the encoder's folder may run.
        seed: Decides the random picks.
        skip_bad: Whether malformed lines are left out.
        report: Takes lines that a user should know.
        progress: Whether to show a progress bar.
    """
    splits = [split, *([truth] if truth else [])]
    dataset = read_dataset(data, splits=splits, skip_bad=skip_bad, report=report)
    model = _opened(encoder, trust_remote_code)
    if model is not None:
        place(model, devices)
    texts = [document.content for document in dataset.documents]
    collection = Collection.encoded(texts, model, cache=cache, devices=devices, progress=progress)
    searcher = SEARCHERS[search or ("bm25" if model is None else "exact")](collection)
    found = find_candidates(searcher, dataset, split, rules.depth)
    warning = unmatched_warning(searcher, found.rows)
    if warning is not None and report is not None:
        report(f"{dataset.name} {split}: {warning}")
    backend, cut = searcher.backend, 0 if model is None else model.cut
    del model, collection, searcher  # neither encoder nor embeddings are needed from here on
    judged = dataset.judged(truth) if truth else None
    examples, mined = mine(dataset, split, found, rules, backend=backend, seed=seed, truth=judged)
    mined = dataclasses.replace(mined, texts_cut=cut)
    write_examples(out, examples)
    atomic_write(beside(out, ".report.json"), mined.to_json() + "\n")
    return mined


def evaluate_splits(
    data: Path,
    splits: Sequence[str],
    *,
    encoder: Path | Encoder | None = None,
    search: str = "bm25",
    depth: int = 100,
    measures: Sequence[str] = MEASURES,
    ignore_identical: bool | None = None,
    devices: Sequence[str] = (),
    trust_remote_code: bool = False,
    skip_bad: bool = False,
    report: Report | None = None,
    progress: bool = False,
) -> list[Evaluation]:
    """Rank the corpus of a data set for the queries of its splits.

    Args:
        data: The data set.
        splits: Splits of its judgements.
        encoder: Encoder, or folder of one or of a run; None for a search of texts.
        search: Name of the search.
        depth: Documents kept per query.
        measures: Names of the measures.
        ignore_identical: As for :func:`causalneg.evaluation.evaluate.evaluate`.
        devices: Devices to encode on (the first) and to search on; empty: the CPU.
        trust_remote_code: Whether code that lies in the encoder's folder may run.
        skip_bad: Whether malformed lines are left out.
        report: Takes lines that a user should know.
        progress: Whether to show a progress bar.
    """
    model = _opened(encoder, trust_remote_code)
    dataset = read_dataset(data, splits=splits, skip_bad=skip_bad, report=report)
    if model is not None:
        place(model, devices)
        return evaluate_encoder(
            model, dataset, splits, search=search, depth=depth, measures=measures,
            ignore_identical=ignore_identical, devices=devices, progress=progress, report=report,
        )  # fmt: skip
    searcher = SEARCHERS[search](Collection([document.content for document in dataset.documents]))
    return evaluate(
        searcher, dataset, splits, depth=depth, measures=measures, ignore_identical=ignore_identical,
        report=report,
    )  # fmt: skip


def _opened(encoder: Path | Encoder | None, trust_remote_code: bool) -> Encoder | None:
    return (
        find_encoder(encoder, trust_remote_code=trust_remote_code) if isinstance(encoder, Path) else encoder
    )


def place(encoder: Encoder, devices: Sequence[str]) -> None:
    """Put an encoder on the first device.

    Raises:
        ConfigError: There is no such kind of device.
        BackendError: This machine lacks one of the devices.
    """
    found = [check_device(name) for name in devices]
    if found:
        encoder.to(found[0])


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
