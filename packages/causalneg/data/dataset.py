"""A retrieval data set in memory: corpus, queries, judgements."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from causalneg.data.schema import Document, Passage, Query
from common.errors import DataError, suggest

Qrels = dict[str, dict[str, int]]
"""Grade by query id, then document id; above 0 is positive."""

_T = TypeVar("_T")


def text_key(text: str) -> str:
    """Equal for texts that differ in case and white space at most."""
    return " ".join(text.split()).casefold()


@dataclass(frozen=True, eq=False)
class Dataset:
    """A corpus with queries and judgements.

    A judgement may name a document that the corpus lacks, where wrong lines were skipped: it stays in the
    denominators of metrics (:meth:`judged_queries`), and no training or mining sees it (:meth:`positives`).

    Args:
        path: Where it was read from.
        documents: The corpus in its order; a document's row is its place here.
        queries: All queries by id, in their order.
        qrels: Grades by split, query id and document id; only the splits that were read.
        fingerprint: Hash of everything that was read: corpus, queries, and the splits read.
        corpus_fingerprint: Hash of the documents alone.
    """

    path: Path
    documents: Sequence[Document]
    queries: dict[str, Query]
    qrels: dict[str, Qrels] = field(default_factory=dict)
    fingerprint: str = ""
    corpus_fingerprint: str = ""
    _derived: dict[Callable[..., Any], Any] = field(default_factory=dict, init=False, repr=False)

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
            raise DataError(f"{self.path}: there is no document '{id}' in the corpus")
        return self.documents[self.index[id]]

    def derived(self, make: Callable[[Sequence[Document]], _T]) -> _T:
        """Something made of the documents, such as their word statistics; made once, kept with the data.

        Args:
            make: Makes it; the same callable is called once.
        """
        if make not in self._derived:
            self._derived[make] = make(self.documents)
        found: _T = self._derived[make]
        return found

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
        """Ids of the positive documents in the corpus of each query that has one, as the qrels order them.

        Raises:
            DataError: The split was not read.
        """
        found = {
            query: [document for document, grade in grades.items() if grade > 0 and document in self.index]
            for query, grades in self.judged(split).items()
        }
        return {query: documents for query, documents in found.items() if documents}

    def split_queries(self, split: str) -> list[Query]:
        """The queries of a split with at least one positive in the corpus, in the order of the qrels."""
        return [self.queries[query] for query in self.positives(split)]

    def judged_queries(self, split: str) -> list[Query]:
        """The queries of a split with a positive judgement, whether its document is there or not."""
        return [
            self.queries[query]
            for query, grades in self.judged(split).items()
            if any(grade > 0 for grade in grades.values())
        ]

    def identical(self, split: str, queries: Sequence[Query], *, text: bool = True) -> list[list[int]]:
        """Rows of the documents that are each query itself: same id or same text, and not judged positive.

        Where queries are documents too (ArguAna, Quora), a search finds the query first; that is no hit.

        Args:
            split: Where the judgements are.
            queries: Queries of the split.
            text: Whether the same text under another id counts.
        """
        by_text: dict[str, list[int]] = {}
        if text:
            wanted = {text_key(query.text) for query in queries}
            for row, document in enumerate(self.documents):
                # Most documents are longer than any query: only those of a like length are compared.
                key = text_key(document.content) if len(document.content) < 2_000 else ""
                if key in wanted:
                    by_text.setdefault(key, []).append(row)
        grades = self.judged(split)
        found = []
        for query in queries:
            rows = set(by_text.get(text_key(query.text), ()))
            rows |= {self.index[query.id]} if query.id in self.index else set()
            judged = grades.get(query.id, {})
            found.append(sorted(row for row in rows if judged.get(self.documents[row].id, 0) <= 0))
        return found


def fingerprints(
    documents: Iterable[Document], queries: Iterable[Query], qrels: Mapping[str, Qrels]
) -> tuple[str, str]:
    """Hashes of what a data set holds: of all of it, and of the documents alone.

    A million documents of 400 letters take about two seconds.
    """
    corpus = hashlib.blake2b(digest_size=16)
    for document in documents:
        corpus.update(f"{document.id}\0{document.title}\0{document.text}\0".encode())
        if document.metadata:
            corpus.update(json.dumps(document.metadata, sort_keys=True).encode())
    whole = corpus.copy()
    for query in queries:
        whole.update(f"\1{query.id}\0{query.text}\0".encode())
        if query.metadata:
            whole.update(json.dumps(query.metadata, sort_keys=True).encode())
    for split, judged in qrels.items():
        whole.update(f"\2{split}\0".encode())
        for id, grades in judged.items():
            whole.update(
                "".join(f"{id}\t{document}\t{grade}\n" for document, grade in grades.items()).encode()
            )
    return whole.hexdigest(), corpus.hexdigest()


def title_and_text(passage: Passage, dataset: Dataset | None) -> tuple[str, str]:
    """Title and text of a passage apart; see :func:`resolve_passage`."""
    if passage.text is not None:
        return passage.title, passage.text
    if dataset is None:
        raise DataError(f"document '{passage.document_id}' has no text here; name the data set that has it")
    document = dataset.document(passage.document_id or "")
    return document.title, document.text


def resolve_passage(passage: Passage, dataset: Dataset | None) -> str:
    """Title and text of a passage, read from the corpus where it holds none itself.

    Args:
        passage: The passage.
        dataset: The corpus it refers to; None if all passages hold their texts.

    Raises:
        DataError: The passage refers to a document that is not there.
    """
    title, text = title_and_text(passage, dataset)
    return f"{title} {text}".strip()


PassageKey = tuple[str | None, str | None, str]
"""What makes two passages the same: document, own text, title."""


def passage_key(passage: Passage) -> PassageKey:
    """Equal for passages with the same content."""
    own = passage.text is not None
    return (None if own else passage.document_id, passage.text, passage.title if own else "")


class PassagePool:
    """Different passages, numbered in the order in which they come.

    Attributes:
        passages: They, by number.
    """

    def __init__(self) -> None:
        self.passages: list[Passage] = []
        self._row: dict[PassageKey, int] = {}

    def row(self, passage: Passage) -> int:
        """The number of a passage; one with new content is added."""
        row = self._row.setdefault(passage_key(passage), len(self.passages))
        if row == len(self.passages):
            self.passages.append(passage)
        return row
