"""What a form of training sets is: how it is written, how it is read, and what it has no room for."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, ClassVar

from causalneg.data.dataset import Dataset, resolve_passage, title_and_text
from causalneg.data.jsonl import Report, counted, json_line, read_jsonl
from causalneg.data.schema import Example, Negative, Passage, Query, Source
from common.files import atomic_path

_GROUP = 4096  # rows of a Parquet file that are in memory at a time


@dataclass(frozen=True)
class TextExample:
    """An example as texts.

    Args:
        query: Text of the query.
        prompt: Prompt of the query; empty for none.
        positives: Texts of the positives.
        negatives: Texts of the negatives.
    """

    query: str
    prompt: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]


class Format(ABC):
    """A form of training sets."""

    label: ClassVar[str]
    """Name of the tool, for messages."""

    keeps_query_ids: ClassVar[bool] = False
    keeps_prompts: ClassVar[bool] = False
    keeps_documents: ClassVar[bool] = False
    """Whether ids and titles of documents are kept."""

    keeps_several_positives: ClassVar[bool] = True

    def prepare(self, examples: Sequence[Example]) -> tuple[Sequence[Example], list[str]]:
        """The examples that can be written, and what a user should know of the others.

        Raises:
            DataError: They cannot be written at all.
        """
        return examples, []

    @abstractmethod
    def rows(self, example: Example, dataset: Dataset | None) -> Iterator[dict[str, Any]]:
        """The lines of one example.

        Args:
            example: The example.
            dataset: The corpus that passages without a text are read from.
        """

    def write(self, examples: Sequence[Example], path: Path, dataset: Dataset | None) -> list[str]:
        """Write a training set, whole or not at all.

        Returns:
            What was lost on the way, one sentence each.
        """
        examples, notes = self.prepare(examples)
        notes = notes + self._losses(examples, dataset)
        rows = (row for example in examples for row in self.rows(example, dataset))
        with atomic_path(path) as temporary:
            if path.suffix == ".parquet":
                _write_parquet(temporary, rows)
            else:
                with temporary.open("wb") as file:
                    file.writelines(map(json_line, rows))
        return notes

    @abstractmethod
    def read(
        self, path: Path, *, source: Source, skip_bad: bool = False, report: Report | None = None
    ) -> list[Example]:
        """Read a training set.

        Args:
            path: The file.
            source: What the negatives are, where the form does not say.
            skip_bad: Whether wrong lines are left out instead of refused.
            report: Takes a line about how many were.

        Raises:
            DataError: The file is missing, or has lines that are not of this form.
        """

    def _losses(self, examples: Sequence[Example], dataset: Dataset | None) -> list[str]:
        """What of these examples the form has no room for."""
        passages = [p for example in examples for p in (*example.positives, *example.negatives)]
        kept = {"prompt"} if self.keeps_prompts else set()
        negatives = sum(len(example.negatives) for example in examples)
        metadata = sum(bool(set(example.query.metadata) - kept) for example in examples)
        ids = sum(passage.document_id is not None for passage in passages)
        titles = sum(bool(title_and_text(passage, dataset)[0]) for passage in passages)
        voices = sum(passage.voice is not None for passage in passages)
        several = sum(len(example.positives) > 1 for example in examples)
        origin = "where negatives come from (source, backend, score, requirement, strategy, verdict)"
        found = (
            ("the ids of queries are not kept", len(examples) * (not self.keeps_query_ids), "query"),
            ("metadata of queries are not kept", metadata, "query"),
            ("the ids of documents are not kept", ids * (not self.keeps_documents), "passage"),
            ("titles are joined to their texts", titles * (not self.keeps_documents), "passage"),
            ("the voice of rewritten passages is not kept", voices, "passage"),
            (f"{origin} is not kept", negatives, "negative"),
            (
                "a query with several positives becomes as many rows",
                several * (not self.keeps_several_positives),
                "query",
            ),
        )
        return [f"{self.label}: {line} ({counted(count, what)})" for line, count, what in found if count]


def _write_parquet(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows in groups; the columns are those of the first group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    try:
        rows = iter(rows)
        while group := list(islice(rows, _GROUP)):
            table = pa.Table.from_pylist(group, schema=None if writer is None else writer.schema)
            if writer is None:
                writer = pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
        if writer is None:
            pq.write_table(pa.table({}), path)
    finally:
        if writer is not None:
            writer.close()


class TextFormat(Format):
    """A form whose rows hold texts alone; rows of one query that follow each other are one example.

    Args:
        name: Name of the form: the backend of the negatives that are read.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def parse(self, record: dict[str, Any]) -> TextExample:
        """What one row says."""

    def same_example(self, row: TextExample) -> object:
        """Rows that follow each other are one example where this is equal; None: every row is one."""
        return row.query, row.prompt, row.negatives

    def read(
        self, path: Path, *, source: Source, skip_bad: bool = False, report: Report | None = None
    ) -> list[Example]:
        """Read a training set; see :meth:`Format.read`."""
        rows = read_jsonl(path, self.parse, skip_bad=skip_bad, report=report)
        return [text_example(row, source, self.name) for row in self._merged(rows)]

    def _merged(self, rows: Iterable[TextExample]) -> Iterator[TextExample]:
        for key, group in groupby(rows, self.same_example):
            members = list(group)
            if key is None:
                yield from members
                continue
            positives = dict.fromkeys(text for row in members for text in row.positives)
            negatives = dict.fromkeys(text for row in members for text in row.negatives)
            same = len({row.negatives for row in members}) == 1
            chosen = members[0].negatives if same else tuple(negatives)
            yield TextExample(members[0].query, members[0].prompt, tuple(positives), chosen)


def example_texts(example: Example, dataset: Dataset | None) -> TextExample:
    """An example as texts, titles joined to them."""
    prompt = example.query.metadata.get("prompt", "")
    return TextExample(
        example.query.text,
        prompt if isinstance(prompt, str) else "",
        tuple(resolve_passage(passage, dataset) for passage in example.positives),
        tuple(resolve_passage(passage, dataset) for passage in example.negatives),
    )


def text_query(text: str, prompt: str) -> Query:
    """A query without an id of its own: a hash of its text stands for it."""
    id = "q-" + hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return Query(id=id, text=text, metadata={"prompt": prompt} if prompt else {})


def text_example(row: TextExample, source: Source, backend: str) -> Example:
    """Texts as an example."""
    return Example(
        query=text_query(row.query, row.prompt),
        positives=[Passage(text=text) for text in row.positives],
        negatives=[Negative(text=text, source=source, backend=backend) for text in row.negatives],
    )
