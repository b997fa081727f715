"""JSON lines: read one by one, every mistake a line of an error with its file and line number."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from common.errors import DataError

Report = Callable[[str], None]
"""Takes a line about what was left out or should be known."""

SHOWN = 5
"""Wrong lines of a file that are named; the others are counted."""

_HINT = "repair it, or leave such lines out with --skip-bad"
_T = TypeVar("_T")


class LineError(Exception):
    """What is wrong with the line in hand."""


class Mistakes:
    """What is wrong with one file: the first few lines in words, the others counted.

    Args:
        path: The file.
        skip_bad: Whether wrong lines are left out instead of refused.
        report: Takes a line about what was left out.
    """

    def __init__(self, path: Path, skip_bad: bool, report: Report | None) -> None:
        self.path, self._skip_bad, self._report = path, skip_bad, report
        self._lines: list[str] = []
        self._count = self._kept = self._rows = 0

    def add(self, line: int, what: str, *, rows: int = 1, kept: bool = False) -> None:
        """Note a mistake.

        Args:
            line: Where it is, or the first of several.
            what: What is wrong.
            rows: How many lines it spoils.
            kept: Whether these are good enough for a reader who skips bad ones.
        """
        self._count += 1
        self._kept += rows * kept
        self._rows += rows * (not kept)
        if len(self._lines) < SHOWN:
            self._lines.append(f"{self.path}:{line}: {what}")

    def settle(self) -> None:
        """Raise what was found, or report how much was left out."""
        if not self._count:
            return
        if not self._skip_bad:
            more = self._count - len(self._lines)
            lines = [f"{line}; {_HINT}" for line in self._lines]
            raise DataError(*lines, *([f"{self.path}: {more} more lines like these"] if more else []))
        if self._report is not None:
            parts = [f"left out {counted(self._rows, 'line')}"] if self._rows or not self._kept else []
            parts += [f"kept {counted(self._kept, 'line')} as far as possible"] if self._kept else []
            first = self._lines[0].removeprefix(f"{self.path}:")
            self._report(f"{self.path}: {', '.join(parts)} (first: line {first})")


def settle_all(all_mistakes: Iterable[Mistakes]) -> None:
    """Raise the mistakes of several files together."""
    lines: list[str] = []
    for mistakes in all_mistakes:
        try:
            mistakes.settle()
        except DataError as error:
            lines += error.messages
    DataError.raise_if(lines)


def counted(count: int, one: str) -> str:
    """``"1 line"``, ``"2 lines"``, ``"3 queries"``."""
    many = f"{one[:-1]}ies" if one.endswith("y") else f"{one}s"
    return f"{count} {one if count == 1 else many}"


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers from 1."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            if line.strip():
                yield number, line


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | LineError]]:
    """The records of a file of JSON lines or, by its ending, of a Parquet file, with their numbers from 1.

    A column of a Parquet file that is null in a row is not there in its record.

    Raises:
        DataError: A Parquet file cannot be read.
    """
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    for number, raw in lines(path):
        try:
            yield number, parse_object(raw)
        except LineError as bad:
            yield number, bad


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    number += 1
                    yield number, {key: value for key, value in record.items() if value is not None}
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from error


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object on a line.

    Raises:
        LineError: There is none.
    """
    try:
        value = json.loads(raw.decode().rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise LineError(f"is not UTF-8 at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise LineError(f"is not JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise LineError(f"is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise LineError(f"must be a JSON object in braces, not {type(value).__name__}")
    if b"\\ud" in raw or b"\\uD" in raw:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise LineError("has half of a surrogate pair (\\ud800 to \\udfff), which is no text") from None
    return value


def identifier(record: Mapping[str, Any], key: str) -> str:
    """The id under a key, a text or a whole number."""
    value = record.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise LineError(f"has no '{key}' (a text or a whole number)")
    return value


def text(record: Mapping[str, Any], key: str, *, required: bool = True) -> str:
    """The text under a key; empty where it may be missing and is."""
    value = record.get(key)
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        found = "is missing" if value is None else f"is {type(value).__name__}"
        raise LineError(f"'{key}' must be a text, but {found}")
    return value


def filled_text(record: Mapping[str, Any], *keys: str) -> str:
    """The text, not blank, under the first of these keys that is there."""
    key = next((key for key in keys if key in record), keys[0])
    value = text(record, key)
    if not value.strip():
        raise LineError(f"'{key}' is empty")
    return value


def texts(record: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The list of texts, none of them blank, under a key."""
    value = record.get(key)
    if not isinstance(value, list) or not all(isinstance(one, str) and one.strip() for one in value):
        raise LineError(f"'{key}' must be a list of texts, none of them empty")
    return tuple(value)


def metadata(record: Mapping[str, Any], *known: str) -> dict[str, Any]:
    """What a record holds besides the known keys, and what stands under ``metadata``."""
    value = record.get("metadata")
    if value is not None and not isinstance(value, dict):
        raise LineError(f"'metadata' must be an object in braces, not {type(value).__name__}")
    return {key: entry for key, entry in record.items() if key not in known} | (value or {})


def json_line(record: Mapping[str, Any]) -> bytes:
    """A record as one line of UTF-8."""
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _validation_line(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]


def read_jsonl(
    path: Path, parse: Callable[[dict[str, Any]], _T], *, skip_bad: bool = False, report: Report | None = None
) -> list[_T]:
    """Every line of a file, or row of a Parquet file, through a parser.

    Args:
        path: The file.
        parse: Makes something of an object; raises :class:`LineError` or pydantic's ``ValidationError``.
        skip_bad: Whether wrong lines are left out instead of refused.
        report: Takes a line about how many were.

    Raises:
        DataError: The file is missing, or has wrong lines.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: {'is a folder' if path.is_dir() else 'missing'}; give a file of JSON lines")
    mistakes = Mistakes(path, skip_bad, report)
    found = []
    for number, record in rows(path):
        try:
            if isinstance(record, LineError):
                raise record
            found.append(parse(record))
        except ValidationError as error:
            mistakes.add(number, _validation_line(error))
        except LineError as bad:
            mistakes.add(number, str(bad))
    mistakes.settle()
    return found
