"""What is encoded and searched for: documents or queries of a data set, or queries of a plain file."""

from __future__ import annotations

from pathlib import Path

from causalneg.data import Dataset, Report, read_dataset
from causalneg.data.jsonl import LineError, filled_text, identifier, read_jsonl
from causalneg.data.readers.base import check_id
from causalneg.data.schema import Query
from common.errors import DataError


def data_queries(dataset: Dataset, split: str | None) -> list[Query]:
    """The judged queries of a split, as ``evaluate`` ranks for; without a split all queries."""
    return list(dataset.queries.values()) if split is None else dataset.judged_queries(split)


def read_queries(
    path: Path, *, split: str | None = None, skip_bad: bool = False, report: Report | None = None
) -> list[Query]:
    """Queries of a data set, or of a file.

    Args:
        path: A data set; a ``.jsonl`` file with ``_id`` (or ``id``) and ``text`` (or ``query``) on every
            line; a ``.tsv`` file of ids and texts; any other file, a query a line, whose ids are the numbers
            of lines.
        split: Split whose judged queries are taken; only with a data set. None: all queries.
        skip_bad: Whether wrong lines are left out instead of refused.
        report: Takes a line about what was left out.

    Raises:
        DataError: There is no such path, no query in it, or a line is wrong.
    """
    if path.is_dir():
        splits = [] if split is None else [split]
        found = data_queries(read_dataset(path, splits=splits, skip_bad=skip_bad, report=report), split)
    elif split is not None:
        raise DataError(f"{path}: is a file; only a data set has a split")
    elif path.suffix == ".jsonl":
        found = read_jsonl(path, _query, skip_bad=skip_bad, report=report)
    else:
        found = list(_lines(path))
    if not found:
        raise DataError(f"{path}: holds no queries")
    seen: set[str] = set()
    for query in found:
        if query.id in seen:
            raise DataError(f"{path}: query id '{query.id}' is there twice")
        seen.add(query.id)
    return found


def _query(record: dict[str, object]) -> Query:
    id = identifier(record, "_id" if "_id" in record else "id")
    check_id(id, "query")
    return Query(id=id, text=filled_text(record, "text", "query"))


def _lines(path: Path) -> list[Query]:
    try:
        content = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file or data set") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 at byte {error.start + 1}") from None
    table = path.suffix == ".tsv"
    found = []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        id, tab, text = line.rstrip("\r").partition("\t") if table else (str(number), "\t", line.strip())
        try:
            if not tab or not text.strip():
                raise LineError("must be an id, a tab and a text")
            check_id(id, "query")
        except LineError as bad:
            raise DataError(f"{path}:{number}: {bad}") from None
        found.append(Query(id=id, text=text.strip()))
    return found
