"""A training set as a data set of its own: its texts are the corpus, its positives the split ``train``."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

from causalneg.data.dataset import passage_key
from causalneg.data.exchange import read_training_set
from causalneg.data.exchange.detect import detect_format
from causalneg.data.jsonl import LineError
from causalneg.data.readers.base import Judgement, Lines, Reader
from causalneg.data.schema import Document, Example, Passage, Query


class TrainingSetReader(Reader):
    """Reads a training set of any form (JSON lines or Parquet) that holds its texts.

    Args:
        path: The file.
    """

    layout = "a training set is a .jsonl or .parquet file in one of the forms that export writes"

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether it is a file whose columns are those of a known form."""
        return path.suffix in (".jsonl", ".parquet") and detect_format(path) is not None

    def splits(self) -> list[str]:
        """Train."""
        return ["train"]

    def file(self, part: str) -> Path:
        """The file; there is none for other splits."""
        return self.path if part in ("documents", "queries", "train") else self.path / part

    @cached_property
    def _examples(self) -> list[Example]:
        return read_training_set(self.path)

    def documents(self) -> Lines[Document]:
        """Every passage once."""
        seen: set[str] = set()
        for number, example in enumerate(self._examples, start=1):
            for passage in (*example.positives, *example.negatives):
                id = _id(passage)
                if id in seen:
                    continue
                seen.add(id)
                if passage.text is None:
                    yield (
                        number,
                        LineError(f"document '{id}' has no text here; name the data set that has it"),
                    )
                else:
                    yield number, Document(id=id, title=passage.title, text=passage.text)

    def queries(self) -> Lines[Query]:
        """The queries."""
        for number, example in enumerate(self._examples, start=1):
            yield number, example.query

    def judgements(self, split: str) -> Lines[Judgement]:
        """The positives."""
        for number, example in enumerate(self._examples, start=1):
            for id in dict.fromkeys(map(_id, example.positives)):
                yield number, Judgement(example.query.id, id, 1)


def _id(passage: Passage) -> str:
    if passage.document_id is not None:
        return passage.document_id
    told = "\0".join(str(part) for part in passage_key(passage))
    return "t-" + hashlib.blake2b(told.encode(), digest_size=8).hexdigest()
