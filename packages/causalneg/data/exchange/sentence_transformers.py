"""Training sets of sentence-transformers: tuples, triplets and labelled lists.

Source: sentence-transformers, docs/sentence_transformer/dataset_overview (dataset formats of the losses).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from causalneg.data.dataset import Dataset
from causalneg.data.exchange.base import TextExample, TextFormat, example_texts
from causalneg.data.jsonl import LineError, counted, filled_text, texts
from causalneg.data.schema import Example
from common.errors import DataError


class TupleFormat(TextFormat):
    """Columns query, positive, negative_1 ... negative_n, one row for each positive.

    What MultipleNegativesRankingLoss takes. All rows have the same columns, so all queries need the same
    number of negatives.
    """

    label = "sentence-transformers"
    keeps_several_positives = False

    def prepare(self, examples: Sequence[Example]) -> tuple[Sequence[Example], list[str]]:
        """Refuse examples with different numbers of negatives."""
        counts = sorted({len(example.negatives) for example in examples})
        if len(counts) > 1:
            raise DataError(
                f"{self.label}: queries have {counts[0]} to {counts[-1]} negatives, but all rows have "
                "the same columns; give a number of negatives, or use sentence-transformers-triplet or -list"
            )
        return examples, []

    def rows(self, example: Example, dataset: Dataset | None) -> Iterator[dict[str, Any]]:
        """One row for each positive."""
        found = example_texts(example, dataset)
        columns = {f"negative_{number}": text for number, text in enumerate(found.negatives, start=1)}
        for positive in found.positives:
            yield {"query": found.query, "positive": positive} | columns

    def parse(self, record: dict[str, Any]) -> TextExample:
        """A row with any number of negative columns."""
        keys = sorted(
            (key for key in record if re.fullmatch(r"negative(_\d+)?", key)),
            key=lambda key: int(key.partition("_")[2] or 0),
        )
        negatives = tuple(filled_text(record, key) for key in keys)
        query, positive = filled_text(record, "query", "anchor"), filled_text(record, "positive")
        return TextExample(query, "", (positive,), negatives)


class TripletFormat(TupleFormat):
    """Columns query, positive, negative, one row for each pair of a positive and a negative.

    Any number of negatives, but none is none: such queries are left out.
    """

    def prepare(self, examples: Sequence[Example]) -> tuple[Sequence[Example], list[str]]:
        """Leave out examples without negatives."""
        some = [example for example in examples if example.negatives]
        without = len(examples) - len(some)
        if not without:
            return examples, []
        return some, [f"{self.label}: {counted(without, 'query')} without negatives left out"]

    def rows(self, example: Example, dataset: Dataset | None) -> Iterator[dict[str, Any]]:
        """One row for each pair."""
        found = example_texts(example, dataset)
        for positive in found.positives:
            for negative in found.negatives:
                yield {"query": found.query, "positive": positive, "negative": negative}

    def same_example(self, row: TextExample) -> object:
        """Rows of the same query."""
        return row.query, row.prompt


class ListFormat(TextFormat):
    """Columns query, docs, labels (1 or 0); any numbers; for the reranking losses."""

    label = "sentence-transformers"

    def rows(self, example: Example, dataset: Dataset | None) -> Iterator[dict[str, Any]]:
        """One row."""
        found = example_texts(example, dataset)
        labels = [1] * len(found.positives) + [0] * len(found.negatives)
        yield {"query": found.query, "docs": [*found.positives, *found.negatives], "labels": labels}

    def parse(self, record: dict[str, Any]) -> TextExample:
        """Documents with their labels."""
        docs, labels = texts(record, "docs"), record.get("labels")
        if (
            not isinstance(labels, list)
            or len(labels) != len(docs)
            or any(label not in (0, 1) for label in labels)
        ):
            raise LineError("'labels' must be a list of 0 and 1, one for each of 'docs'")
        positives = tuple(doc for doc, label in zip(docs, labels, strict=True) if label)
        negatives = tuple(doc for doc, label in zip(docs, labels, strict=True) if not label)
        if not positives:
            raise LineError("none of 'labels' is 1")
        return TextExample(filled_text(record, "query", "anchor"), "", positives, negatives)

    def same_example(self, row: TextExample) -> object:
        """Every row is an example."""
        return None
