"""Readers of retrieval data sets: one file a layout, one line in READERS.

A new layout is a :class:`Reader` in a file of its own and ``READERS["name"] = ItsReader``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from causalneg.data.dataset import Dataset
from causalneg.data.jsonl import Report
from causalneg.data.readers.base import Judgement, Lines, Reader, read
from causalneg.data.readers.beir import BeirReader, write_dataset
from causalneg.data.readers.documents import DocumentsReader
from causalneg.data.readers.training_set import TrainingSetReader
from common.errors import DataError

__all__ = [
    "READERS",
    "BeirReader",
    "DocumentsReader",
    "Judgement",
    "Lines",
    "Reader",
    "TrainingSetReader",
    "find_reader",
    "read_dataset",
    "write_dataset",
]

READERS: dict[str, type[Reader]] = {
    "beir": BeirReader,
    "documents": DocumentsReader,
    "training-set": TrainingSetReader,
}
"""Readers by name; the first that recognises a path reads it."""


def find_reader(path: Path) -> Reader:
    """The reader of a path.

    Raises:
        DataError: There is no such path.
    """
    path = Path(path)
    if not path.exists():
        layouts = "; ".join(reader.layout for reader in READERS.values())
        raise DataError(f"{path}: there is no such folder; {layouts}")
    chosen = next((reader for reader in READERS.values() if reader.recognises(path)), BeirReader)
    return chosen(path)


def read_dataset(
    path: Path, *, splits: Sequence[str] | None = None, skip_bad: bool = False, report: Report | None = None
) -> Dataset:
    """Read a retrieval data set: a BEIR folder, a plain folder of documents, or another of :data:`READERS`.

    Wrong lines are: what the layout cannot hold, a wrong type, an id twice or with a blank in it, an empty
    text, a judgement with unknown ids, with no whole number or against an earlier one, and a query of a split
    without any positive.

    Args:
        path: The folder.
        splits: Names of the splits to read; None: all of them.
        skip_bad: Whether wrong lines are left out instead of refused. A document with a title and an empty
            text is kept then, by its title; a query without positives stays in ``qrels`` (no method of
            :class:`Dataset` lists it); and so does the judgement of a document that the corpus lacks, since
            metrics must count that it cannot be found.
        report: Takes a line per file about how many lines were left out and which was the first.

    Raises:
        DataError: A file is missing, has a wrong header, or has wrong lines: of each file the first five,
            and the number of the others.
    """
    return read(find_reader(path), splits=splits, skip_bad=skip_bad, report=report)
