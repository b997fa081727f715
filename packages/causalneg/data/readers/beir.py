"""BEIR folders, as retrieval benchmarks are shared.

::

    corpus.jsonl        {"_id": ..., "title": ..., "text": ..., "metadata": {...}}
    queries.jsonl       {"_id": ..., "text": ..., "metadata": {...}}
    qrels/SPLIT.tsv     query-id <TAB> corpus-id <TAB> score

The header of a qrels file may be missing, and TREC's four columns (query, iteration, document, grade) are
read too. Grades above 0 are positive; 0 and less is a judgement, but no positive.

Source: Thakur et al., BEIR: A Heterogeneous Benchmark for Zero-shot Evaluation of Information Retrieval
Models (NeurIPS Datasets and Benchmarks 2021).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from causalneg.data import jsonl
from causalneg.data.jsonl import LineError
from causalneg.data.readers.base import Judgement, Lines, Reader, check_id
from causalneg.data.schema import Document, Query
from common.errors import DataError
from common.files import atomic_folder

HEADER = ("query-id", "corpus-id", "score")
"""Columns of a qrels file."""

_GRADE = re.compile(r"\s*[+-]?\d{1,9}(\.0*)?\s*", flags=re.ASCII)
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", flags=re.ASCII)
_T = TypeVar("_T")


class BeirReader(Reader):
    """Reads a BEIR folder.

    Args:
        path: The folder.
    """

    layout = (
        "a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv "
        f"with the columns {', '.join(HEADER)}"
    )

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether there is a corpus.jsonl or a queries.jsonl."""
        return (path / "corpus.jsonl").exists() or (path / "queries.jsonl").exists()

    def splits(self) -> list[str]:
        """Names of the qrels files."""
        return sorted(file.stem for file in (self.path / "qrels").glob("*.tsv"))

    def file(self, part: str) -> Path:
        """The file of a part."""
        if part == "documents":
            return self.path / "corpus.jsonl"
        return self.path / ("queries.jsonl" if part == "queries" else f"qrels/{part}.tsv")

    def documents(self) -> Lines[Document]:
        """Lines of corpus.jsonl."""
        return _parsed(self.file("documents"), _document)

    def queries(self) -> Lines[Query]:
        """Lines of queries.jsonl."""
        return _parsed(self.file("queries"), _query)

    def judgements(self, split: str) -> Lines[Judgement]:
        """Rows of a qrels file.

        Raises:
            DataError: The file is empty, or its first line is neither a header nor a judgement.
        """
        path, first = self.file(split), True
        for line, raw in jsonl.lines(path):
            if first:
                first = False
                if _is_header(raw, path, line):
                    continue
            try:
                yield line, _judgement(raw)
            except LineError as bad:
                yield line, bad
        if first:
            raise DataError(f"{path}: empty; its first line must be {'<TAB>'.join(HEADER)}")


def _parsed(path: Path, parse: Callable[[dict[str, Any]], _T]) -> Lines[_T]:
    for line, raw in jsonl.lines(path):
        try:
            yield line, parse(jsonl.parse_object(raw))
        except LineError as bad:
            yield line, bad


def _document(record: Mapping[str, Any]) -> Document:
    return Document(
        id=jsonl.identifier(record, "_id"),
        text=jsonl.text(record, "text"),
        title=jsonl.text(record, "title", required=False),
        metadata=jsonl.metadata(record, "_id", "title", "text", "metadata"),
    )


def _query(record: Mapping[str, Any]) -> Query:
    return Query(
        id=jsonl.identifier(record, "_id"),
        text=jsonl.text(record, "text"),
        metadata=jsonl.metadata(record, "_id", "text", "metadata"),
    )


def _is_header(raw: bytes, path: Path, line: int) -> bool:
    """Whether the first line names columns; one that is neither a header nor a judgement is refused."""
    shown = raw.decode(errors="replace").rstrip("\r\n")
    columns = [part.strip() for part in shown.split("\t")]
    if tuple(columns) == HEADER:
        return True
    named = len(columns) == 3 and _NUMBER.fullmatch(columns[2]) is None
    if named and re.fullmatch(r"(query|topic|q)[-_ ]?(id)?|qid", columns[0], flags=re.IGNORECASE):
        return True
    if len(columns) in (3, 4) and _NUMBER.fullmatch(columns[-1]) is not None:
        return False
    raise DataError(
        f"{path}:{line}: the header must be {'<TAB>'.join(HEADER)}, but it is "
        f"'{shown[:80].replace(chr(9), '<TAB>')}'"
    )


def _judgement(raw: bytes) -> Judgement:
    try:
        parts = raw.decode().rstrip("\r\n").split("\t")
    except UnicodeDecodeError as error:
        raise LineError(f"is not UTF-8 at byte {error.start + 1}") from None
    if len(parts) == 4:  # TREC: query, iteration, document, grade
        parts = [parts[0], *parts[2:]]
    if len(parts) != len(HEADER):
        raise LineError(f"must have 3 columns with tabs between them ({', '.join(HEADER)}), has {len(parts)}")
    if _GRADE.fullmatch(parts[2]) is None:
        raise LineError(f"score '{parts[2]}' is not a whole number")
    return Judgement(parts[0].strip(), parts[1].strip(), int(float(parts[2])))


def write_dataset(
    path: Path,
    documents: Iterable[Document],
    queries: Iterable[Query],
    qrels: Mapping[str, Mapping[str, Mapping[str, int]]],
) -> None:
    """Write a BEIR folder, whole or not at all.

    Args:
        path: The folder; it must be new or empty.
        documents: The corpus, written in this order.
        queries: The queries, written in this order.
        qrels: Grades by split, query id and document id, written in this order.

    Raises:
        DataError: The folder is not empty, an id is empty, twice or not fit for a line of a table, or qrels
            name an id that is not there.
    """
    with atomic_folder(Path(path)) as folder:
        document_ids: set[str] = set()
        query_ids: set[str] = set()
        with (folder / "corpus.jsonl").open("wb") as file:
            for document in documents:
                _check_new(document.id, "document", document_ids)
                record = {"_id": document.id, "title": document.title, "text": document.text}
                file.write(jsonl.json_line(record | _if_any(document.metadata)))
        with (folder / "queries.jsonl").open("wb") as file:
            for query in queries:
                _check_new(query.id, "query", query_ids)
                file.write(jsonl.json_line({"_id": query.id, "text": query.text} | _if_any(query.metadata)))
        (folder / "qrels").mkdir()
        for split, judged in qrels.items():
            if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", split) is None:
                raise DataError(f"split '{split}': a name has letters, digits, '_', '-' and '.' only")
            with (folder / "qrels" / f"{split}.tsv").open("wb") as file:
                file.write("\t".join(HEADER).encode() + b"\n")
                for query_id, grades in judged.items():
                    for document_id, grade in grades.items():
                        if query_id not in query_ids or document_id not in document_ids:
                            raise DataError(
                                f"split '{split}': query '{query_id}' or document '{document_id}' is unknown"
                            )
                        file.write(f"{query_id}\t{document_id}\t{grade}\n".encode())


def _check_new(id: str, kind: str, seen: set[str]) -> None:
    try:
        check_id(id, kind)
    except LineError as error:
        raise DataError(str(error)) from None
    if id in seen:
        raise DataError(f"{kind} id '{id}' is there twice")
    seen.add(id)


def _if_any(metadata: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": metadata} if metadata else {}
