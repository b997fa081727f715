"""Training sets in this project's own form: one :class:`Example` a line; nothing is lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from causalneg.data.dataset import Dataset
from causalneg.data.exchange.base import Format
from causalneg.data.jsonl import LineError, Report, json_line, read_jsonl
from causalneg.data.schema import Example, Source
from common.errors import ConfigError
from common.files import atomic_path


class OwnFormat(Format):
    """One :class:`Example` a line; a key that has its default is left out."""

    label = "own"

    def rows(self, example: Example, dataset: Dataset | None) -> Iterator[dict[str, Any]]:
        """The example itself."""
        yield example.model_dump(exclude_defaults=True)

    def write(self, examples: Sequence[Example], path: Path, dataset: Dataset | None) -> list[str]:
        """Write a training set; nothing is lost.

        Raises:
            ConfigError: The file's name asks for Parquet, whose columns would not hold all of it.
        """
        if path.suffix == ".parquet":
            raise ConfigError(f"{path}: the form own is JSON lines; give a name that ends in .jsonl")
        write_examples(path, examples)
        return []

    def read(
        self, path: Path, *, source: Source, skip_bad: bool = False, report: Report | None = None
    ) -> list[Example]:
        """Read a training set, which says itself what its negatives are."""
        return read_examples(path, skip_bad=skip_bad, report=report)


def read_examples(path: Path, *, skip_bad: bool = False, report: Report | None = None) -> list[Example]:
    """Read a training set in this project's own form: one :class:`Example` a line.

    Args:
        path: The file.
        skip_bad: Whether wrong lines are left out instead of refused.
        report: Takes a line about how many were.

    Raises:
        DataError: The file is missing, or has lines that are no examples.
    """
    return read_jsonl(path, _parse, skip_bad=skip_bad, report=report)


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write a training set in this project's own form, whole or not at all; nothing is lost.

    Args:
        path: The file; one already there is replaced.
        examples: The examples. A key that has its default is left out of the file.
    """
    with atomic_path(Path(path)) as temporary, temporary.open("wb") as file:
        for example in examples:
            file.write(json_line(example.model_dump(exclude_defaults=True)))


def _parse(record: dict[str, Any]) -> Example:
    """An example whose texts are not empty, but for negatives that were rejected for that."""
    example = Example.model_validate(record)
    if not example.query.text.strip():
        raise LineError(f"query '{example.query.id}' has an empty text")
    rejected = [n for n in example.negatives if n.verdict is not None and not n.verdict.valid]
    for passage in (*example.positives, *example.negatives):
        own = passage.text is not None and not f"{passage.title}{passage.text}".strip()
        if own and passage not in rejected:
            raise LineError(f"a passage of query '{example.query.id}' has an empty text")
    return example
