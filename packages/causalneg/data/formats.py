"""Files of retrieval: BEIR folders, and training sets in our own form and in that of four other tools.

A BEIR folder::

    corpus.jsonl        {"_id": ..., "title": ..., "text": ..., "metadata": {...}}
    queries.jsonl       {"_id": ..., "text": ..., "metadata": {...}}
    qrels/SPLIT.tsv     query-id <TAB> corpus-id <TAB> score, with this header

Grades above 0 are positive; 0 and less is a judgement, but no positive. Files are read line by line, and
every mistake is one line of an error with its file and line number.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from causalneg.data.schema import Document, Example, Negative, Passage, Query, Source
from common.errors import ConfigError, DataError, suggest
from common.files import atomic_folder, atomic_path

HEADER = ("query-id", "corpus-id", "score")
"""Columns of a qrels file."""

FORMATS = (
    "own",
    "sentence-transformers",
    "sentence-transformers-triplet",
    "sentence-transformers-list",
    "tevatron",
    "flagembedding",
    "ms-swift",
)
"""Forms of training sets, see :func:`export_examples`."""

Qrels = dict[str, dict[str, int]]
"""Grade by query id, then document id."""

Report = Callable[[str], None]

_SHOWN = 5
_HINT = "repair it, or leave such lines out with --skip-bad"
_OWN_KEYS = ("_id", "title", "text", "metadata")
_T = TypeVar("_T")


class _LineError(Exception):
    """What is wrong with the line in hand."""


class _Mistakes:
    """What is wrong with one file: the first few lines in words, the others counted."""

    def __init__(self, path: Path, skip_bad: bool, report: Report | None) -> None:
        self.path, self._skip_bad, self._report = path, skip_bad, report
        self._lines: list[str] = []
        self._count = self._kept = self._rows = 0

    def add(self, line: int, what: str, *, rows: int = 1, kept: bool = False) -> None:
        """Note a mistake; ``kept`` when its row is good enough for a reader who skips bad ones."""
        self._count += 1
        self._kept += rows * kept
        self._rows += rows * (not kept)
        if len(self._lines) < _SHOWN:
            self._lines.append(f"{self.path}:{line}: {what}")

    def settle(self) -> None:
        """Raise what was found, or say how much was left out."""
        if not self._count:
            return
        if not self._skip_bad:
            more = self._count - len(self._lines)
            lines = [f"{line}; {_HINT}" for line in self._lines]
            raise DataError(*lines, *([f"{self.path}: {more} more lines like these"] if more else []))
        if self._report is not None:
            kept = f", kept {_number(self._kept, 'document')} by the title" if self._kept else ""
            first = self._lines[0].removeprefix(f"{self.path}:")
            self._report(f"{self.path}: left out {_number(self._rows, 'line')}{kept} (first: line {first})")


def _number(count: int, one: str) -> str:
    many = f"{one[:-1]}ies" if one.endswith("y") else f"{one}s"
    return f"{count} {one if count == 1 else many}"


def _object(raw: bytes) -> dict[str, Any]:
    """The JSON object on a line."""
    try:
        value = json.loads(raw.decode().rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise _LineError(f"is not UTF-8 at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise _LineError(f"is not JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise _LineError(f"is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise _LineError(f"must be a JSON object in braces, not {type(value).__name__}")
    if b"\\ud" in raw or b"\\uD" in raw:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise _LineError("has half of a surrogate pair (\\ud800 to \\udfff), which is no text") from None
    return value


def _lines(path: Path, hasher: Any = None) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if hasher is not None:
                hasher.update(raw)
            line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            if line.strip():
                yield number, line


def _identifier(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise _LineError(f"has no '{key}' (a text or a whole number)")
    return value


def _text(record: Mapping[str, Any], key: str, *, required: bool = True) -> str:
    value = record.get(key)
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        found = "is missing" if value is None else f"is {type(value).__name__}"
        raise _LineError(f"'{key}' must be a text, but {found}")
    return value


def _metadata(record: Mapping[str, Any], *known: str) -> dict[str, Any]:
    value = record.get("metadata")
    if value is not None and not isinstance(value, dict):
        raise _LineError(f"'metadata' must be an object in braces, not {type(value).__name__}")
    return {key: entry for key, entry in record.items() if key not in known} | (value or {})


def _document(record: Mapping[str, Any]) -> Document:
    return Document(
        id=_identifier(record, "_id"),
        text=_text(record, "text"),
        title=_text(record, "title", required=False),
        metadata=_metadata(record, *_OWN_KEYS),
    )


def _query(record: Mapping[str, Any]) -> Query:
    query = Query(
        id=_identifier(record, "_id"),
        text=_text(record, "text"),
        metadata=_metadata(record, "_id", "text", "metadata"),
    )
    if not query.text.strip():
        raise _LineError(f"query '{query.id}' has an empty text")
    return query


@dataclass(frozen=True, eq=False)
class Dataset:
    """A BEIR folder in memory.

    Args:
        path: Its folder.
        documents: The corpus, in the order of its file; a document's row is its place here.
        queries: All queries by id, in the order of their file.
        qrels: Grades by split, query id and document id; only the splits that were read.
        fingerprint: Hash of the files that were read.
    """

    path: Path
    documents: list[Document]
    queries: dict[str, Query]
    qrels: dict[str, Qrels] = field(default_factory=dict)
    fingerprint: str = ""

    @property
    def name(self) -> str:
        """Name of the folder, wherever it is named from."""
        return os.path.basename(os.path.abspath(self.path))

    @cached_property
    def index(self) -> dict[str, int]:
        """Row of each document by its id."""
        return {document.id: row for row, document in enumerate(self.documents)}

    def document(self, id: str) -> Document:
        """The document of an id.

        Raises:
            DataError: There is none.
        """
        if id not in self.index:
            raise DataError(f"{self.path}: there is no document '{id}' in corpus.jsonl")
        return self.documents[self.index[id]]

    def judged(self, split: str) -> Qrels:
        """The grades of a split.

        Raises:
            DataError: The split is not there, or was not read.
        """
        if split not in self.qrels:
            there = ", ".join(self.qrels) or "none"
            raise DataError(
                f"{self.path}: split '{split}' was not read (read: {there}){suggest(split, self.qrels)}"
            )
        return self.qrels[split]

    def positives(self, split: str) -> dict[str, list[str]]:
        """Ids of the positive documents of each query that has one, both in the order of the qrels file."""
        found = {
            query: [document for document, grade in grades.items() if grade > 0]
            for query, grades in self.judged(split).items()
        }
        return {query: documents for query, documents in found.items() if documents}

    def split_queries(self, split: str) -> list[Query]:
        """The queries of a split with at least one positive, in the order of the qrels file."""
        return [self.queries[query] for query in self.positives(split)]


def _require(path: Path) -> None:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "missing"
        raise DataError(
            f"{path}: {what}; a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv "
            f"with the columns {', '.join(HEADER)}"
        )


def _splits(path: Path, splits: Sequence[str] | None) -> list[str]:
    there = sorted(file.stem for file in (path / "qrels").glob("*.tsv"))
    if splits is None:
        if not there:
            _require(path / "qrels" / "SPLIT.tsv")
        return there
    missing = [split for split in dict.fromkeys(splits) if split not in there]
    DataError.raise_if(
        f"{path / 'qrels' / f'{split}.tsv'}: missing; there are the splits {', '.join(there) or '(none)'}"
        f"{suggest(split, there)}"
        for split in missing
    )
    return list(dict.fromkeys(splits))


def _read_corpus(path: Path, mistakes: _Mistakes, hasher: Any) -> tuple[list[Document], dict[str, int]]:
    documents: list[Document] = []
    seen: dict[str, int] = {}
    for line, raw in _lines(path, hasher):
        try:
            document = _document(_object(raw))
            if document.id in seen:
                raise _LineError(f"document id '{document.id}' is already on line {seen[document.id]}")
            if not document.content:
                raise _LineError(f"document '{document.id}' has an empty text")
        except _LineError as bad:
            mistakes.add(line, str(bad))
            continue
        if not document.text.strip():
            mistakes.add(line, f"document '{document.id}' has an empty text beside its title", kept=True)
        seen[document.id] = line
        documents.append(document)
    return documents, seen


def _read_queries(path: Path, mistakes: _Mistakes, hasher: Any) -> dict[str, Query]:
    queries: dict[str, Query] = {}
    seen: dict[str, int] = {}
    for line, raw in _lines(path, hasher):
        try:
            query = _query(_object(raw))
            if query.id in seen:
                raise _LineError(f"query id '{query.id}' is already on line {seen[query.id]}")
        except _LineError as bad:
            mistakes.add(line, str(bad))
            continue
        seen[query.id] = line
        queries[query.id] = query
    return queries


def _judgement(raw: bytes) -> tuple[str, str, int]:
    try:
        parts = raw.decode().rstrip("\r\n").split("\t")
    except UnicodeDecodeError as error:
        raise _LineError(f"is not UTF-8 at byte {error.start + 1}") from None
    if len(parts) != len(HEADER):
        raise _LineError(
            f"must have 3 columns with tabs between them ({', '.join(HEADER)}), has {len(parts)}"
        )
    if re.fullmatch(r"\s*[+-]?\d{1,9}(\.0*)?\s*", parts[2], flags=re.ASCII) is None:
        raise _LineError(f"score '{parts[2]}' is not a whole number")
    return parts[0], parts[1], int(float(parts[2]))


@dataclass
class _Unknown:
    """Ids of a qrels file that another file lacks."""

    home: str
    what: str
    ids: dict[str, int] = field(default_factory=dict)
    first: int = 0
    rows: int = 0

    def add(self, id: str, line: int) -> None:
        self.ids.setdefault(id, line)
        self.first = self.first or line
        self.rows += 1

    def tell(self, mistakes: _Mistakes) -> None:
        if self.rows:
            named = ", ".join(f"'{id}'" for id in list(self.ids)[:_SHOWN])
            more = ", ..." if len(self.ids) > _SHOWN else ""
            mistakes.add(
                self.first,
                f"{_number(len(self.ids), f'{self.what} id')} in {_number(self.rows, 'row')} "
                f"unknown to {self.home}: {named}{more}",
                rows=self.rows,
            )


def _read_qrels(path: Path, mistakes: _Mistakes, hasher: Any, queries: Any, documents: Any) -> Qrels:
    qrels: Qrels = {}
    first_line: dict[str, int] = {}
    unknown = (_Unknown("queries.jsonl", "query"), _Unknown("corpus.jsonl", "document"))
    header = None
    for line, raw in _lines(path, hasher):
        if header is None:
            header = raw.decode(errors="replace").rstrip("\r\n")
            if tuple(part.strip() for part in header.split("\t")) != HEADER:
                shown = header[:80].replace("\t", "<TAB>")
                raise DataError(
                    f"{path}:{line}: the header must be {'<TAB>'.join(HEADER)}, but it is '{shown}'"
                )
            continue
        try:
            query, document, grade = _judgement(raw)
            strange = [
                kind
                for kind, id, known in zip(unknown, (query, document), (queries, documents), strict=True)
                if id not in known
            ]
            if strange:
                strange[0].add(query if strange[0] is unknown[0] else document, line)
                continue
            if qrels.get(query, {}).get(document, grade) != grade:
                raise _LineError(
                    f"query '{query}' and document '{document}' have already grade {qrels[query][document]}"
                )
        except _LineError as bad:
            mistakes.add(line, str(bad))
            continue
        first_line.setdefault(query, line)
        qrels.setdefault(query, {})[document] = grade
    for kind in unknown:
        kind.tell(mistakes)
    for query, grades in qrels.items():
        if max(grades.values()) <= 0:
            mistakes.add(first_line[query], f"query '{query}' has no document with a grade above 0")
    if header is None:
        raise DataError(f"{path}: empty; its first line must be {'<TAB>'.join(HEADER)}")
    return qrels


def read_dataset(
    path: Path, *, splits: Sequence[str] | None = None, skip_bad: bool = False, report: Report | None = None
) -> Dataset:
    """Read a BEIR folder.

    Wrong lines are: no JSON object, a wrong type, an id twice, an empty text, a qrels row with unknown ids,
    with no whole number or against an earlier row, and a query of a split without any positive.

    Args:
        path: The folder.
        splits: Names of the qrels files to read, without ``.tsv``; None: all of them.
        skip_bad: Whether wrong lines are left out instead of refused. A document with a title and an empty
            text is kept then, by its title, and a query without positives stays in ``qrels`` (no method of
            :class:`Dataset` lists it).
        report: Told, per file, how many lines were left out and which was the first.

    Raises:
        DataError: A file is missing, has a wrong header, or has wrong lines: of each file the first five,
            and the number of the others.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(
            f"{path}: there is no such folder; a BEIR folder holds corpus.jsonl, queries.jsonl "
            "and qrels/SPLIT.tsv"
        )
    corpus_file, query_file = path / "corpus.jsonl", path / "queries.jsonl"
    _require(corpus_file)
    _require(query_file)
    names = _splits(path, splits)
    hasher = hashlib.blake2b(digest_size=16)
    wrong = [_Mistakes(file, skip_bad, report) for file in (corpus_file, query_file)]
    documents, seen = _read_corpus(corpus_file, wrong[0], hasher)
    hasher.update(b"\0")
    queries = _read_queries(query_file, wrong[1], hasher)
    _settle(wrong)
    if not documents:
        raise DataError(f"{corpus_file}: no documents; each line is one, with _id, title and text")
    qrels: dict[str, Qrels] = {}
    wrong = []
    for name in names:
        file = path / "qrels" / f"{name}.tsv"
        hasher.update(f"\0{name}\0".encode())
        wrong.append(_Mistakes(file, skip_bad, report))
        qrels[name] = _read_qrels(file, wrong[-1], hasher, queries, seen)
    _settle(wrong)
    return Dataset(path, documents, queries, qrels, hasher.hexdigest())


def _settle(all_mistakes: Iterable[_Mistakes]) -> None:
    """Raise the mistakes of several files together."""
    lines: list[str] = []
    for mistakes in all_mistakes:
        try:
            mistakes.settle()
        except DataError as error:
            lines += error.messages
    DataError.raise_if(lines)


def _json_line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _check_id(id: str, kind: str, seen: set[str]) -> None:
    if not id or re.search(r"[\t\n]", id):
        raise DataError(f"{kind} id {id!r}: an id has at least one letter, no tab and no line break")
    if id in seen:
        raise DataError(f"{kind} id '{id}' is there twice")
    seen.add(id)


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
                _check_id(document.id, "document", document_ids)
                record = {"_id": document.id, "title": document.title, "text": document.text}
                file.write(_json_line(record | _if_any(document.metadata)))
        with (folder / "queries.jsonl").open("wb") as file:
            for query in queries:
                _check_id(query.id, "query", query_ids)
                file.write(_json_line({"_id": query.id, "text": query.text} | _if_any(query.metadata)))
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


def _if_any(metadata: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": metadata} if metadata else {}


def _validation_line(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]


def _read_jsonl(
    path: Path, parse: Callable[[dict[str, Any]], _T], skip_bad: bool, report: Report | None
) -> list[_T]:
    """Every line of a file through a parser."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: {'is a folder' if path.is_dir() else 'missing'}; give a file of JSON lines")
    mistakes = _Mistakes(path, skip_bad, report)
    rows = []
    for line, raw in _lines(path):
        try:
            rows.append(parse(_object(raw)))
        except ValidationError as error:
            mistakes.add(line, _validation_line(error))
        except _LineError as bad:
            mistakes.add(line, str(bad))
    mistakes.settle()
    return rows


def read_examples(path: Path, *, skip_bad: bool = False, report: Report | None = None) -> list[Example]:
    """Read a training set in our own form: one :class:`Example` a line.

    Args:
        path: The file.
        skip_bad: Whether wrong lines are left out instead of refused.
        report: Told how many were left out.

    Raises:
        DataError: The file is missing, or has lines that are no examples.
    """
    return _read_jsonl(path, _own_example, skip_bad, report)


def _own_example(record: dict[str, Any]) -> Example:
    """An example whose texts are not empty, but for negatives that were rejected for that."""
    example = Example.model_validate(record)
    if not example.query.text.strip():
        raise _LineError(f"query '{example.query.id}' has an empty text")
    rejected = [n for n in example.negatives if n.verdict is not None and not n.verdict.valid]
    for passage in (*example.positives, *example.negatives):
        own = passage.text is not None and not f"{passage.title}{passage.text}".strip()
        if own and passage not in rejected:
            raise _LineError(f"a passage of query '{example.query.id}' has an empty text")
    return example


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write a training set in our own form, whole or not at all; nothing is lost.

    Args:
        path: The file; one already there is replaced.
        examples: The examples. A key that has its default is left out of the file.
    """
    with atomic_path(Path(path)) as temporary, temporary.open("wb") as file:
        for example in examples:
            file.write(_json_line(example.model_dump(exclude_defaults=True)))


def resolve_passage(passage: Passage, dataset: Dataset | None) -> str:
    """Title and text of a passage, read from the corpus where it holds none itself.

    Args:
        passage: The passage.
        dataset: The corpus it refers to; None if all passages hold their texts.

    Raises:
        DataError: The passage refers to a document that is not there.
    """
    title, text = _title_and_text(passage, dataset)
    return f"{title} {text}".strip()


def _title_and_text(passage: Passage, dataset: Dataset | None) -> tuple[str, str]:
    if passage.text is not None:
        return passage.title, passage.text
    if dataset is None:
        raise DataError(f"document '{passage.document_id}' has no text here; name the data set that has it")
    document = dataset.document(passage.document_id or "")
    return document.title, document.text


# --- Training sets of other tools -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Plain:
    """An example as texts."""

    query: str
    prompt: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]


@dataclass(frozen=True)
class _Form:
    """What a form is called, and what it has room for."""

    name: str
    query_ids: bool = False
    prompts: bool = False
    documents: bool = False
    several_positives: bool = True


_FORMS = {
    "sentence-transformers": _Form("sentence-transformers", several_positives=False),
    "sentence-transformers-triplet": _Form("sentence-transformers", several_positives=False),
    "sentence-transformers-list": _Form("sentence-transformers"),
    "tevatron": _Form("Tevatron", query_ids=True, documents=True),
    "flagembedding": _Form("FlagEmbedding", prompts=True),
    "ms-swift": _Form("ms-swift", prompts=True, several_positives=False),
}


def _check_format(format: str) -> None:
    if format not in FORMATS:
        raise ConfigError(
            f"format '{format}' is not known; there are {', '.join(FORMATS)}{suggest(format, FORMATS)}"
        )


def _prompt(query: Query) -> str:
    prompt = query.metadata.get("prompt", "")
    return prompt if isinstance(prompt, str) else ""


def _losses(examples: Sequence[Example], form: _Form, dataset: Dataset | None) -> list[str]:
    """What of these examples a form has no room for."""
    passages = [p for example in examples for p in (*example.positives, *example.negatives)]
    kept = {"prompt"} if form.prompts else set()
    negatives = sum(len(example.negatives) for example in examples)
    metadata = sum(bool(set(example.query.metadata) - kept) for example in examples)
    ids = sum(passage.document_id is not None for passage in passages)
    titles = sum(bool(_title_and_text(passage, dataset)[0]) for passage in passages)
    voices = sum(passage.voice is not None for passage in passages)
    several = sum(len(example.positives) > 1 for example in examples)
    found = (
        ("the ids of queries are not kept", len(examples) * (not form.query_ids), "query"),
        ("metadata of queries are not kept", metadata, "query"),
        ("the ids of documents are not kept", ids * (not form.documents), "passage"),
        ("titles are joined to their texts", titles * (not form.documents), "passage"),
        ("the voice of rewritten passages is not kept", voices, "passage"),
        (
            "where negatives come from (source, backend, score, requirement, strategy, verdict) is not kept",
            negatives,
            "negative",
        ),
        (
            "a query with several positives becomes as many rows",
            several * (not form.several_positives),
            "query",
        ),
    )
    return [f"{form.name}: {line} ({_number(count, what)})" for line, count, what in found if count]


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
        lines.append(f"{_number(dropped, 'example')} with fewer than {number} negatives left out")
    if cut:
        lines.append(f"{_number(cut, 'negative')} beyond the first {number} of an example left out")
    return kept, lines


def export_examples(
    examples: Sequence[Example],
    path: Path,
    *,
    format: str,
    dataset: Dataset | None = None,
    negatives: int | None = None,
) -> list[str]:
    """Write a training set in our own form or in that of another tool, whole or not at all.

    - ``own``: one :class:`Example` a line; nothing is lost.
    - ``sentence-transformers``: columns query, positive, negative_1 ... negative_n, one row for each
      positive: what its MultipleNegativesRankingLoss takes. All rows have the same columns, so all queries
      need the same number of negatives.
    - ``sentence-transformers-triplet``: query, positive, negative, one row for each pair of a positive and a
      negative; any number of negatives, but none is none: such queries are left out.
    - ``sentence-transformers-list``: query, docs, labels (1 or 0); any numbers; for its reranking losses.
    - ``tevatron``: query_id, query, positive_passages, negative_passages with docid, title, text.
    - ``flagembedding``: query, pos, neg, and prompt from the query's metadata.
    - ``ms-swift``: messages, positive_messages (exactly one: one row for each positive), negative_messages; a
      prompt in the query's metadata becomes the system message.

    Args:
        examples: The training set.
        path: The file; one already there is replaced.
        format: One of :data:`FORMATS`.
        dataset: The corpus, for passages that are there by id only (not needed for ``own``).
        negatives: Keep the first so many negatives of each example, and leave out examples with fewer; None
            keeps all.

    Returns:
        What was lost on the way, one sentence each; empty if nothing was.

    Raises:
        ConfigError: The format is not known.
        DataError: The numbers of negatives differ where they must not, or a text cannot be found.
    """
    _check_format(format)
    lines: list[str] = []
    if negatives is not None:
        examples, lines = _same_number(examples, negatives)
    if format == "own":
        write_examples(path, examples)
        return lines
    form = _FORMS[format]
    none = sum(not example.negatives for example in examples)
    if format == "sentence-transformers":
        counts = sorted({len(example.negatives) for example in examples})
        if len(counts) > 1:
            raise DataError(
                f"{form.name}: queries have {counts[0]} to {counts[-1]} negatives, but all rows have "
                "the same columns; give a number of negatives, or use sentence-transformers-triplet or -list"
            )
    elif format == "sentence-transformers-triplet" and none:
        examples = [example for example in examples if example.negatives]
        without = _number(none, "query")
        lines.append(f"{form.name}: {without} without negatives left out")
    elif format in ("tevatron", "flagembedding") and none:
        lines.append(
            f"{form.name}: its loader stops at a query without negatives ({_number(none, 'query')}) unless "
            "train_group_size is 1"
        )
    lines += _losses(examples, form, dataset)
    with atomic_path(Path(path)) as temporary, temporary.open("wb") as file:
        for example in examples:
            for row in _rows(example, format, dataset):
                file.write(_json_line(row))
    return lines


def _rows(example: Example, format: str, dataset: Dataset | None) -> Iterator[dict[str, Any]]:
    """The lines of one example."""
    if format == "tevatron":
        yield {
            "query_id": example.query.id,
            "query": example.query.text,
            "positive_passages": [_tevatron(passage, dataset) for passage in example.positives],
            "negative_passages": [_tevatron(passage, dataset) for passage in example.negatives],
        }
        return
    query, prompt = example.query.text, _prompt(example.query)
    positives = [resolve_passage(passage, dataset) for passage in example.positives]
    negatives = [resolve_passage(passage, dataset) for passage in example.negatives]
    if format == "sentence-transformers":
        columns = {f"negative_{number}": text for number, text in enumerate(negatives, start=1)}
        for positive in positives:
            yield {"query": query, "positive": positive} | columns
    elif format == "sentence-transformers-triplet":
        for positive in positives:
            for negative in negatives:
                yield {"query": query, "positive": positive, "negative": negative}
    elif format == "sentence-transformers-list":
        labels = [1] * len(positives) + [0] * len(negatives)
        yield {"query": query, "docs": positives + negatives, "labels": labels}
    elif format == "flagembedding":
        yield {"query": query, "pos": positives, "neg": negatives} | ({"prompt": prompt} if prompt else {})
    else:
        system = [{"role": "system", "content": prompt}] if prompt else []
        row: dict[str, Any] = {"messages": [*system, {"role": "user", "content": query}]}
        others = {"negative_messages": [[{"role": "user", "content": text}] for text in negatives]}
        for positive in positives:
            first = {"positive_messages": [[{"role": "user", "content": positive}]]}
            yield row | first | (others if negatives else {})


def _tevatron(passage: Passage, dataset: Dataset | None) -> dict[str, str]:
    title, text = _title_and_text(passage, dataset)
    return {"docid": passage.document_id or "", "title": title, "text": text}


def import_examples(
    path: Path,
    *,
    format: str,
    source: Source = "mined",
    skip_bad: bool = False,
    report: Report | None = None,
) -> list[Example]:
    """Read a training set in our own form or in that of another tool.

    Where :func:`export_examples` spreads a query over rows, rows that follow each other are put together
    again: same query and same negatives; for triplets, same query. Where a form has no query ids, the id is
    a hash of the query's text. Tevatron's newer form with document ids instead of passages is read too;
    FlagEmbedding's ``neg_scores`` become the scores of the negatives, its ``pos_scores`` have no place here.

    Args:
        path: The file.
        format: One of :data:`FORMATS`.
        source: What the negatives are, which other tools do not say; their backend is the format's name.
        skip_bad: Whether wrong lines are left out instead of refused.
        report: Told how many were left out.

    Raises:
        ConfigError: The format is not known.
        DataError: The file is missing, or has lines that are not of this form.
    """
    _check_format(format)
    if format == "own":
        return read_examples(path, skip_bad=skip_bad, report=report)
    if format in ("tevatron", "flagembedding"):
        parse = _from_tevatron if format == "tevatron" else _from_flagembedding
        return _read_jsonl(path, lambda row: parse(row, source), skip_bad, report)
    rows = _read_jsonl(path, _PARSERS[format], skip_bad, report)
    return [_example(plain, source, format) for plain in _merged(rows, format)]


def _merged(rows: Iterable[_Plain], format: str) -> Iterator[_Plain]:
    """Rows of one query that follow each other, together."""
    if format == "sentence-transformers-list":
        yield from rows
        return
    triplets = format == "sentence-transformers-triplet"
    for (query, prompt, _), group in groupby(
        rows, lambda row: (row.query, row.prompt, None if triplets else row.negatives)
    ):
        members = list(group)
        positives = dict.fromkeys(text for row in members for text in row.positives)
        negatives = dict.fromkeys(text for row in members for text in row.negatives)
        chosen = tuple(negatives) if triplets else members[0].negatives
        yield _Plain(query, prompt, tuple(positives), chosen)


def _query_id(text: str) -> str:
    return "q-" + hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _example(plain: _Plain, source: Source, backend: str) -> Example:
    return Example(
        query=_imported_query(plain.query, plain.prompt),
        positives=[Passage(text=text) for text in plain.positives],
        negatives=[Negative(text=text, source=source, backend=backend) for text in plain.negatives],
    )


def _imported_query(text: str, prompt: str) -> Query:
    return Query(id=_query_id(text), text=text, metadata={"prompt": prompt} if prompt else {})


def _filled(record: Mapping[str, Any], *keys: str) -> str:
    """The text under the first of these keys that is there."""
    key = next((key for key in keys if key in record), keys[0])
    text = _text(record, key)
    if not text.strip():
        raise _LineError(f"'{key}' is empty")
    return text


def _texts(record: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = record.get(key)
    if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
        raise _LineError(f"'{key}' must be a list of texts, none of them empty")
    return tuple(value)


def _from_tuple(record: dict[str, Any]) -> _Plain:
    keys = sorted(
        (key for key in record if re.fullmatch(r"negative(_\d+)?", key)),
        key=lambda key: int(key.partition("_")[2] or 0),
    )
    negatives = tuple(_filled(record, key) for key in keys)
    return _Plain(_filled(record, "query", "anchor"), "", (_filled(record, "positive"),), negatives)


def _from_list(record: dict[str, Any]) -> _Plain:
    docs, labels = _texts(record, "docs"), record.get("labels")
    if (
        not isinstance(labels, list)
        or len(labels) != len(docs)
        or any(label not in (0, 1) for label in labels)
    ):
        raise _LineError("'labels' must be a list of 0 and 1, one for each of 'docs'")
    positives = tuple(doc for doc, label in zip(docs, labels, strict=True) if label)
    negatives = tuple(doc for doc, label in zip(docs, labels, strict=True) if not label)
    if not positives:
        raise _LineError("none of 'labels' is 1")
    return _Plain(_filled(record, "query", "anchor"), "", positives, negatives)


def _said(messages: Any, key: str) -> tuple[str, str]:
    """System and user text of a list of messages."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise _LineError(f"'{key}' must hold messages with role and content")
    roles = [message.get("role") for message in messages]
    if roles not in (["user"], ["system", "user"]):
        raise _LineError(
            f"'{key}' must be one user message, a system message may stand before it; got {roles}"
        )
    *system, user = [_filled(message, "content") for message in messages]
    return (system[0] if system else ""), user


def _from_swift(record: dict[str, Any]) -> _Plain:
    prompt, query = _said(record.get("messages"), "messages")
    groups = {key: record.get(key) or [] for key in ("positive_messages", "negative_messages")}
    texts: dict[str, tuple[str, ...]] = {}
    for key, group in groups.items():
        if not isinstance(group, list):
            raise _LineError(f"'{key}' must be a list of lists of messages")
        said = [_said(messages, key) for messages in group]
        if any(system for system, _ in said):
            raise _LineError(f"'{key}' has a system message, for which there is no place here")
        texts[key] = tuple(text for _, text in said)
    if not texts["positive_messages"]:
        raise _LineError("'positive_messages' is empty")
    return _Plain(query, prompt, texts["positive_messages"], texts["negative_messages"])


_PARSERS: dict[str, Callable[[dict[str, Any]], _Plain]] = {
    "sentence-transformers": _from_tuple,
    "sentence-transformers-triplet": _from_tuple,
    "sentence-transformers-list": _from_list,
    "ms-swift": _from_swift,
}


def _from_flagembedding(record: dict[str, Any], source: Source) -> Example:
    positives, negatives = _texts(record, "pos"), _texts(record, "neg")
    scores = record.get("neg_scores")
    if scores is None:
        scores = [None] * len(negatives)
    if not isinstance(scores, list) or len(scores) != len(negatives):
        raise _LineError("'neg_scores' must be a list with one number for each of 'neg'")
    return Example(
        query=_imported_query(_filled(record, "query"), _text(record, "prompt", required=False)),
        positives=[Passage(text=text) for text in positives],
        negatives=[
            Negative(text=text, source=source, backend="flagembedding", score=score)
            for text, score in zip(negatives, scores, strict=True)
        ],
    )


def _from_tevatron(record: dict[str, Any], source: Source) -> Example:
    def passages(kind: str) -> list[dict[str, Any]]:
        ids = record.get(f"{kind}_document_ids")
        if isinstance(ids, list):
            return [{"document_id": id} for id in ids]
        rows = record.get(f"{kind}_passages")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise _LineError(f"'{kind}_passages' must be a list of passages with docid, title and text")
        return [
            {
                "document_id": _text(row, "docid", required=False) or None,
                "title": _text(row, "title", required=False),
                "text": _filled(row, "text"),
            }
            for row in rows
        ]

    return Example(
        query=Query(id=_identifier(record, "query_id"), text=_filled(record, "query", "query_text")),
        positives=[Passage(**passage) for passage in passages("positive")],
        negatives=[Negative(**one, source=source, backend="tevatron") for one in passages("negative")],
    )
