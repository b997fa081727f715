"""Training sets of FlagEmbedding: query, pos, neg, and prompt from the query's metadata.

Its ``pos_scores`` and ``neg_scores`` are a teacher's.

Source: github.com/FlagOpen/FlagEmbedding, examples/finetune.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from causalneg.data.dataset import Dataset
from causalneg.data.exchange.base import Format, example_texts, text_query
from causalneg.data.exchange.tevatron import empty_notes
from causalneg.data.jsonl import LineError, Report, filled_text, read_jsonl, text, texts
from causalneg.data.schema import Example, Negative, Passage, Source


class FlagEmbeddingFormat(Format):
    """Texts of positives and negatives in two lists."""

    label = "FlagEmbedding"
    keeps_prompts = True

    def prepare(self, examples: Sequence[Example]) -> tuple[Sequence[Example], list[str]]:
        """Say how many examples FlagEmbedding's loader would stop at."""
        return examples, empty_notes(self.label, examples)

    def rows(self, example: Example, dataset: Dataset | None) -> Iterator[dict[str, Any]]:
        """One row."""
        found = example_texts(example, dataset)
        row: dict[str, Any] = {
            "query": found.query, "pos": list(found.positives), "neg": list(found.negatives)
        }  # fmt: skip
        scores: dict[str, Sequence[Passage]] = {
            "pos_scores": example.positives, "neg_scores": example.negatives
        }  # fmt: skip
        known = {key: [passage.teacher for passage in passages] for key, passages in scores.items()}
        if not any(score is None for several in known.values() for score in several):
            row |= known
        yield row | ({"prompt": found.prompt} if found.prompt else {})

    def read(
        self, path: Path, *, source: Source, skip_bad: bool = False, report: Report | None = None
    ) -> list[Example]:
        """Read a training set; see :meth:`Format.read`."""
        return read_jsonl(path, lambda row: _parse(row, source), skip_bad=skip_bad, report=report)


def _parse(record: dict[str, Any], source: Source) -> Example:
    positives, negatives = texts(record, "pos"), texts(record, "neg")
    of_positives, of_negatives = _scores(record, "pos", positives), _scores(record, "neg", negatives)
    return Example(
        query=text_query(filled_text(record, "query"), text(record, "prompt", required=False)),
        positives=[
            Passage(text=one, teacher=score) for one, score in zip(positives, of_positives, strict=True)
        ],
        negatives=[
            Negative(text=one, source=source, backend="flagembedding", score=score, teacher=score)
            for one, score in zip(negatives, of_negatives, strict=True)
        ],
    )


def _scores(record: dict[str, Any], kind: str, found: Sequence[str]) -> list[Any]:
    """A number for each text, or None for each."""
    scores = record.get(f"{kind}_scores")
    if scores is None:
        return [None] * len(found)
    if not isinstance(scores, list) or len(scores) != len(found):
        raise LineError(f"'{kind}_scores' must be a list with one number for each of '{kind}'")
    return scores
