"""Training sets in this project's own form and in those of other tools: a file a form, a line in FORMATS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from causalneg.data.dataset import Dataset
from causalneg.data.exchange import detect
from causalneg.data.exchange.base import Format
from causalneg.data.exchange.flagembedding import FlagEmbeddingFormat
from causalneg.data.exchange.ms_swift import SwiftFormat
from causalneg.data.exchange.own import OwnFormat, read_examples, write_examples
from causalneg.data.exchange.sentence_transformers import ListFormat, TripletFormat, TupleFormat
from causalneg.data.exchange.tevatron import TevatronFormat
from causalneg.data.jsonl import Report, counted
from causalneg.data.schema import Example, Source
from common.errors import ConfigError, suggest

__all__ = [
    "FORMATS",
    "Format",
    "export_examples",
    "import_examples",
    "read_examples",
    "read_training_set",
    "write_examples",
]

FORMATS: dict[str, Format] = {
    "own": OwnFormat(),
    "sentence-transformers": TupleFormat("sentence-transformers"),
    "sentence-transformers-triplet": TripletFormat("sentence-transformers-triplet"),
    "sentence-transformers-list": ListFormat("sentence-transformers-list"),
    "tevatron": TevatronFormat(),
    "flagembedding": FlagEmbeddingFormat(),
    "ms-swift": SwiftFormat("ms-swift"),
}
"""Forms of training sets by name; each one's docstring says what it holds."""


def read_training_set(path: Path, *, skip_bad: bool = False, report: Report | None = None) -> list[Example]:
    """Read a training set of any of the :data:`FORMATS`; its columns tell which.

    In forms of other tools, rows of one query are one example, wherever they stand.

    Args:
        path: JSON lines or, by its ending, Parquet.
        skip_bad: Whether wrong lines are left out instead of refused.
        report: Takes a line about how many were.

    Raises:
        DataError: The file is missing, of no known form, or has wrong lines.
    """
    return detect.read_training_set(Path(path), FORMATS, skip_bad=skip_bad, report=report)


def _form(format: str) -> Format:
    if format not in FORMATS:
        raise ConfigError(
            f"format '{format}' is not known; there are {', '.join(FORMATS)}{suggest(format, FORMATS)}"
        )
    return FORMATS[format]


def export_examples(
    examples: Sequence[Example],
    path: Path,
    *,
    format: str,
    dataset: Dataset | None = None,
    negatives: int | None = None,
) -> list[str]:
    """Write a training set in one of the :data:`FORMATS`, whole or not at all.

    Args:
        examples: The training set.
        path: The file; one already there is replaced.
        format: Name of the form.
        dataset: The corpus, for passages that are there by id only (not needed for ``own``).
        negatives: Keep the first so many negatives of each example, and leave out examples with fewer; None
            keeps all.

    Returns:
        What was lost on the way, one sentence each; empty if nothing was.

    Raises:
        ConfigError: The format is not known.
        DataError: The numbers of negatives differ where they must not, or a text cannot be found.
    """
    form = _form(format)
    notes: list[str] = []
    if negatives is not None:
        examples, notes = _same_number(examples, negatives)
    return notes + form.write(examples, Path(path), dataset)


def import_examples(
    path: Path,
    *,
    format: str,
    source: Source = "mined",
    skip_bad: bool = False,
    report: Report | None = None,
) -> list[Example]:
    """Read a training set in one of the :data:`FORMATS`.

    Where a form spreads a query over rows, rows that follow each other are put together again: same query
    and same negatives; for triplets, same query. Where a form has no query ids, the id is a hash of the
    query's text.

    Args:
        path: The file.
        format: Name of the form.
        source: What the negatives are, which other tools do not say; their backend is the format's name.
        skip_bad: Whether wrong lines are left out instead of refused.
        report: Takes a line about how many were.

    Raises:
        ConfigError: The format is not known.
        DataError: The file is missing, or has lines that are not of this form.
    """
    return _form(format).read(Path(path), source=source, skip_bad=skip_bad, report=report)


def _same_number(examples: Sequence[Example], number: int) -> tuple[list[Example], list[str]]:
    """Every example with its first negatives; those with fewer are left out."""
    if number < 0:
        raise ConfigError(f"negatives must be 0 or more, got {number}")
    kept = [
        example.model_copy(update={"negatives": example.negatives[:number]})
        for example in examples
        if len(example.negatives) >= number
    ]
    dropped = len(examples) - len(kept)
    cut = sum(max(0, len(example.negatives) - number) for example in examples)
    lines = []
    if dropped:
        lines.append(f"{counted(dropped, 'example')} with fewer than {number} negatives left out")
    if cut:
        lines.append(f"{counted(cut, 'negative')} beyond the first {number} of an example left out")
    return kept, lines
