"""Training sets of Tevatron: query_id, query, positive_passages, negative_passages (docid, title, text).

Tevatron's newer form with document ids instead of passages is read too.

Source: github.com/texttron/tevatron, docs/data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from causalneg.data.dataset import Dataset, title_and_text
from causalneg.data.exchange.base import Format
from causalneg.data.jsonl import LineError, Report, counted, filled_text, identifier, read_jsonl, text
from causalneg.data.schema import Example, Negative, Passage, Query, Source


class TevatronFormat(Format):
    """Passages with docid, title and text."""

    label = "Tevatron"
    keeps_query_ids = keeps_documents = True

    def prepare(self, examples: Sequence[Example]) -> tuple[Sequence[Example], list[str]]:
        """Say how many examples Tevatron's loader would stop at."""
        return examples, empty_notes(self.label, examples)

    def rows(self, example: Example, dataset: Dataset | None) -> Iterator[dict[str, Any]]:
        """One row."""

        def passages(found: Sequence[Passage]) -> list[dict[str, str]]:
            named = ((passage.document_id or "", *title_and_text(passage, dataset)) for passage in found)
            return [{"docid": id, "title": title, "text": text} for id, title, text in named]

        yield {
            "query_id": example.query.id,
            "query": example.query.text,
            "positive_passages": passages(example.positives),
            "negative_passages": passages(example.negatives),
        }

    def read(
        self, path: Path, *, source: Source, skip_bad: bool = False, report: Report | None = None
    ) -> list[Example]:
        """Read a training set; see :meth:`Format.read`."""
        return read_jsonl(path, lambda row: _parse(row, source), skip_bad=skip_bad, report=report)


def empty_notes(label: str, examples: Sequence[Example]) -> list[str]:
    """What a loader does at examples without negatives."""
    none = sum(not example.negatives for example in examples)
    if not none:
        return []
    return [
        f"{label}: its loader stops at a query without negatives ({counted(none, 'query')}) unless "
        "train_group_size is 1"
    ]


def _parse(record: dict[str, Any], source: Source) -> Example:
    def passages(kind: str) -> list[dict[str, Any]]:
        ids = record.get(f"{kind}_document_ids")
        if isinstance(ids, list):
            return [{"document_id": id} for id in ids]
        rows = record.get(f"{kind}_passages")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise LineError(f"'{kind}_passages' must be a list of passages with docid, title and text")
        return [
            {
                "document_id": text(row, "docid", required=False) or None,
                "title": text(row, "title", required=False),
                "text": filled_text(row, "text"),
            }
            for row in rows
        ]

    return Example(
        query=Query(id=identifier(record, "query_id"), text=filled_text(record, "query", "query_text")),
        positives=[Passage(**passage) for passage in passages("positive")],
        negatives=[Negative(**one, source=source, backend="tevatron") for one in passages("negative")],
    )
