"""What the commands do, for scripts that call them without a shell: find an encoder, mine a set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from causalneg.data import Report, read_dataset, write_examples
from causalneg.encoders import Encoder, find_encoder
from causalneg.evaluation.evaluate import Evaluation, evaluate, evaluate_encoder
from causalneg.mining import MiningReport, MiningRules, find_candidates, mine
from causalneg.search import SEARCHERS, Collection, check_device, unmatched_warning
from common.files import atomic_write, beside
from common.metrics.retrieval import MEASURES


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
