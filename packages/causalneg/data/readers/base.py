"""What a reader of a corpus layout is, and the checks that all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

from causalneg.data.dataset import Dataset, Qrels, fingerprints
from causalneg.data.jsonl import SHOWN, LineError, Mistakes, Report, counted, settle_all
from causalneg.data.schema import Document, Query
from common.errors import DataError, suggest

_T = TypeVar("_T")


class Judgement(NamedTuple):
    """One judgement: the grade of a document for a query; above 0 is positive."""

    query: str
    document: str
    grade: int


Lines = Iterator[tuple[int, "_T | LineError"]]
"""Numbers of lines (or rows, from 1) with what stands there, or with what is wrong with it."""


class Reader(ABC):
    """One layout of a retrieval data set on disk, read line by line; nothing is kept in memory.

    A reader only parses. Ids, empty texts, duplicates and judgements of unknown things are checked for all
    readers alike by :func:`read`.

    Args:
        path: The folder or file.
    """

    layout: ClassVar[str]
    """What the layout is, for error lines: ``"a BEIR folder holds corpus.jsonl, ..."``."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @classmethod
    @abstractmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a path looks like this layout."""

    def check(self) -> None:
        """Refuse a path that lacks documents or queries.

        Raises:
            DataError: A file is missing.
        """
        for part in ("documents", "queries"):
            file = self.file(part)
            if not file.is_file():
                what = "is a folder" if file.is_dir() else "missing"
                raise DataError(f"{file}: {what}; {self.layout}")

    @abstractmethod
    def splits(self) -> list[str]:
        """Names of the splits that have judgements, sorted."""

    @abstractmethod
    def file(self, part: str) -> Path:
        """The file of ``"documents"``, ``"queries"``, or of the judgements of a split.

        The file of a split need not be there.
        """

    @abstractmethod
    def documents(self) -> Lines[Document]:
        """The corpus."""

    @abstractmethod
    def queries(self) -> Lines[Query]:
        """The queries."""

    @abstractmethod
    def judgements(self, split: str) -> Lines[Judgement]:
        """The judgements of a split."""


def check_id(id: str, kind: str) -> None:
    """Refuse an id that no run file could hold.

    Raises:
        LineError: It has a blank, a tab or a line break, or is empty.
    """
    if id.split() != [id]:
        what = "is empty" if not id else "has a blank, a tab or a line break"
        raise LineError(
            f"{kind} id {id!r} {what}, which qrels and run files cannot hold; write it with _ or another sign"
        )


def _documents(reader: Reader, mistakes: Mistakes) -> dict[str, Document]:
    found: dict[str, Document] = {}
    seen: dict[str, int] = {}
    for line, document in reader.documents():
        try:
            if isinstance(document, LineError):
                raise document
            check_id(document.id, "document")
            if document.id in seen:
                raise LineError(f"document id '{document.id}' is already on line {seen[document.id]}")
            if not document.content:
                raise LineError(f"document '{document.id}' has an empty text")
        except LineError as bad:
            mistakes.add(line, str(bad))
            continue
        if not document.text.strip():
            mistakes.add(line, f"document '{document.id}' has an empty text beside its title", kept=True)
        seen[document.id] = line
        found[document.id] = document
    return found


def _queries(reader: Reader, mistakes: Mistakes) -> dict[str, Query]:
    found: dict[str, Query] = {}
    seen: dict[str, int] = {}
    for line, query in reader.queries():
        try:
            if isinstance(query, LineError):
                raise query
            check_id(query.id, "query")
            if query.id in seen:
                raise LineError(f"query id '{query.id}' is already on line {seen[query.id]}")
            if not query.text.strip():
                raise LineError(f"query '{query.id}' has an empty text")
        except LineError as bad:
            mistakes.add(line, str(bad))
            continue
        seen[query.id] = line
        found[query.id] = query
    return found


@dataclass
class _Unknown:
    """Ids that judgements name and another file lacks."""

    home: str
    what: str
    kept: bool
    ids: dict[str, int] = field(default_factory=dict)
    first: int = 0
    rows: int = 0

    def add(self, id: str, line: int) -> None:
        self.ids.setdefault(id, line)
        self.first = self.first or line
        self.rows += 1

    def settle(self, mistakes: Mistakes) -> None:
        if self.rows:
            named = ", ".join(f"'{id}'" for id in list(self.ids)[:SHOWN])
            more = ", ..." if len(self.ids) > SHOWN else ""
            mistakes.add(
                self.first,
                f"{counted(len(self.ids), f'{self.what} id')} in {counted(self.rows, 'row')} "
                f"unknown to {self.home}: {named}{more}",
                rows=self.rows,
                kept=self.kept,
            )


def _judgements(
    reader: Reader, split: str, mistakes: Mistakes, queries: Container[str], documents: Container[str]
) -> Qrels:
    qrels: Qrels = {}
    first_line: dict[str, int] = {}
    strange_query = _Unknown(reader.file("queries").name, "query", kept=False)
    # Judged and not there: it cannot be found, and to forget it would make every metric too good.
    strange_document = _Unknown(reader.file("documents").name, "document", kept=True)
    for line, row in reader.judgements(split):
        try:
            if isinstance(row, LineError):
                raise row
            if row.query not in queries:
                strange_query.add(row.query, line)
                continue
            if row.document not in documents:
                strange_document.add(row.document, line)
            known = qrels.get(row.query, {}).get(row.document, row.grade)
            if known != row.grade:
                raise LineError(
                    f"query '{row.query}' and document '{row.document}' have already grade {known}"
                )
        except LineError as bad:
            mistakes.add(line, str(bad))
            continue
        first_line.setdefault(row.query, line)
        qrels.setdefault(row.query, {})[row.document] = row.grade
    strange_query.settle(mistakes)
    strange_document.settle(mistakes)
    for query, grades in qrels.items():
        if max(grades.values()) <= 0:
            mistakes.add(first_line[query], f"query '{query}' has no document with a grade above 0")
    return qrels


def _splits(reader: Reader, splits: Sequence[str] | None) -> list[str]:
    there = reader.splits()
    if splits is None:
        if not there:
            raise DataError(f"{reader.file('SPLIT')}: missing; {reader.layout}")
        return there
    missing = [split for split in dict.fromkeys(splits) if split not in there]
    DataError.raise_if(
        f"{reader.file(split)}: missing; there are the splits {', '.join(there) or '(none)'}"
        f"{suggest(split, there)}"
        for split in missing
    )
    return list(dict.fromkeys(splits))


def read(
    reader: Reader,
    *,
    splits: Sequence[str] | None = None,
    skip_bad: bool = False,
    report: Report | None = None,
) -> Dataset:
    """Read a data set through its reader; see :func:`causalneg.data.readers.read_dataset`."""
    reader.check()
    names = _splits(reader, splits)
    wrong = [Mistakes(reader.file(part), skip_bad, report) for part in ("documents", "queries")]
    documents, queries = _documents(reader, wrong[0]), _queries(reader, wrong[1])
    settle_all(wrong)
    if not documents:
        raise DataError(f"{reader.file('documents')}: no documents; {reader.layout}")
    wrong = [Mistakes(reader.file(name), skip_bad, report) for name in names]
    qrels = {
        name: _judgements(reader, name, mistakes, queries, documents)
        for name, mistakes in zip(names, wrong, strict=True)
    }
    settle_all(wrong)
    whole, corpus = fingerprints(documents.values(), queries.values(), qrels)
    return Dataset(reader.path, list(documents.values()), queries, qrels, whole, corpus)
