"""Training sets as they are: the form is found by the columns, a query that comes again is one example."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from causalneg.data.dataset import passage_key
from causalneg.data.exchange.base import Format
from causalneg.data.exchange.own import OwnFormat, read_examples
from causalneg.data.jsonl import LineError, Report, rows
from causalneg.data.schema import Example
from common.errors import DataError

COLUMNS: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = (
    ("tevatron", (("positive_passages", "positive_document_ids"),)),
    ("flagembedding", (("pos",),)),
    ("ms-swift", (("messages",), ("positive_messages",))),
    ("sentence-transformers-list", (("docs",), ("labels",))),
    ("own", (("query",), ("positives",))),
    ("sentence-transformers", (("query", "anchor"), ("positive",))),
)
"""Names of forms, with their telling columns; any one of each inner tuple will do. The first that fits."""


def detect_format(path: Path) -> str | None:
    """The form of a training set, by the columns of its first row; None where it is none.

    Args:
        path: A file of JSON lines, or a Parquet file.
    """
    if not path.is_file():
        return None
    try:
        record = next((record for _, record in rows(path)), None)
    except DataError:
        return None
    if record is None or isinstance(record, LineError):
        return None
    for name, wanted in COLUMNS:
        if all(any(key in record for key in keys) for keys in wanted):
            return name
    return None


def read_training_set(
    path: Path, formats: dict[str, Format], *, skip_bad: bool = False, report: Report | None = None
) -> list[Example]:
    """Read a training set of any of some forms, whichever it is of.

    Args:
        path: The file.
        formats: The forms by name.
        skip_bad: Whether wrong lines are left out instead of refused.
        report: Takes a line about how many were.

    Raises:
        DataError: The file is missing, of no known form, or has wrong lines.
    """
    name = detect_format(path)
    form = formats[name] if name is not None else None
    if form is None or isinstance(form, OwnFormat):
        return read_examples(path, skip_bad=skip_bad, report=report)  # it says what is wrong
    return merge_queries(form.read(path, source="mined", skip_bad=skip_bad, report=report))


def merge_queries(examples: Sequence[Example]) -> list[Example]:
    """One example for each query, in the order of the first; positives and negatives once each.

    A text that is a positive of a query is none of its negatives.
    """
    found: dict[str, list[Example]] = {}
    for example in examples:
        found.setdefault(example.query.id, []).append(example)
    out = []
    for several in found.values():
        positives = {passage_key(p): p for example in several for p in example.positives}
        negatives = {passage_key(n): n for example in several for n in example.negatives}
        kept = [negative for key, negative in negatives.items() if key not in positives]
        out.append(Example(query=several[0].query, positives=list(positives.values()), negatives=kept))
    return out
