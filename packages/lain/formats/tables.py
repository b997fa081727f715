"""Source tables read in pieces; every mistake in them becomes one line with file, column and row.

Rows are counted from 0, the header of a CSV file not being one.

Over 400 lines: Parquet and CSV side by side, with the same checks and the same error lines.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from jaxtyping import Bool, Shaped

from common.errors import DataError, suggest
from common.ragged import Ragged

ROWS_AT_ONCE = 65_536
_READ_BYTES = 1 << 20

Mistake = tuple[int, str, int]


@runtime_checkable
class HasPath(Protocol):
    """A file that mistakes are in."""

    @property
    def path(self) -> Path:
        """Where it is."""


class Mistakes:
    """Collects what is wrong with the sources, one line for each file, column and kind of mistake."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Mistake | None] = {}
        self._bad: dict[str, tuple[int, Bool[np.ndarray, " rows"]]] = {}

    def add(self, line: str) -> None:
        """Note a mistake that belongs to no row."""
        self._found.setdefault((line, ""), None)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note a DataError that stops the block, and go on behind it."""
        try:
            yield
        except DataError as error:
            for message in error.messages:
                self.add(message)

    def check(
        self,
        bad: Bool[np.ndarray, " rows"],
        table: HasPath,
        column: str,
        first: int,
        line: str,
        *values: Shaped[np.ndarray, "rows ..."],
    ) -> None:
        """Note the bad rows of a piece of a column, less those that an earlier check of it has noted.

        Args:
            bad: Which rows are bad.
            table: The table.
            column: The column.
            first: Row of the table at which the piece begins.
            line: What is wrong, with one ``{}`` for each of the values.
            values: What the line shows of the first bad row.
        """
        where = f"{table.path}: column '{column}'"
        begin, noted = self._bad.get(where, (-1, bad))
        if begin == first and len(noted) == len(bad):
            bad, noted = bad & ~noted, bad | noted
        else:
            noted = bad
        count = int(np.count_nonzero(bad))
        if count:
            self._bad[where] = (first, noted)
            row = int(np.argmax(bad))
            key = (where, line)
            before = self._found.get(key)
            if before is None:
                self._found[key] = (first + row, line.format(*(value[row] for value in values)), count)
            else:
                self._found[key] = (before[0], before[1], before[2] + count)

    def __bool__(self) -> bool:
        """Whether anything is wrong."""
        return bool(self._found)

    def raise_all(self) -> None:
        """Raise one error with every line, or nothing.

        Raises:
            DataError: Something is wrong.
        """
        lines = []
        for (where, _), mistake in self._found.items():
            if mistake is None:
                lines.append(where)
                continue
            row, line, count = mistake
            more = f" (and {count - 1} more row{'s' if count > 2 else ''})" if count > 1 else ""
            lines.append(f"{where}, row {row}: {line}{more}")
        DataError.raise_if(lines)


class Progress:
    """One line on standard error that says how far a file is read.

    Args:
        shown: False for silence.
    """

    def __init__(self, shown: bool) -> None:
        self._shown, self._last = shown, 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Say that so many rows of a file are done; at most twice a second, and at the end."""
        now = time.monotonic()
        if not self._shown or (done < total and now - self._last < 0.5):
            return
        self._last = now
        terminal = sys.stderr.isatty()
        if done < total and not terminal:
            return
        end = "\n" if done >= total else ""
        sys.stderr.write(f"{chr(13) if terminal else ''}{what}: {done:,} of {total:,} rows{end}")
        sys.stderr.flush()


def require_files(folder: Path, names: Collection[str], format_name: str) -> None:
    """Check that a source folder has the files its format needs.

    Raises:
        DataError: The folder or files are missing; every one is named.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "there is no such folder"
        raise DataError(f"{folder}: {what}; {format_name} needs a folder with {', '.join(names)}")
    missing = [name for name in names if not (folder / name).is_file()]
    DataError.raise_if(f"{folder / name}: missing; {format_name} needs it in this folder" for name in missing)


class Table:
    """A Parquet file, read in pieces; one that is not there is left to :func:`require_files`.

    ``sound`` are the required columns that are there and have the right type.

    Args:
        path: The file.
        mistakes: Where mistakes go.
        progress: Says how far reading is.
    """

    def __init__(self, path: Path, mistakes: Mistakes, progress: Progress) -> None:
        self.path, self.mistakes, self._progress = path, mistakes, progress
        self._file: Any = None
        self.rows = 0
        self.types: dict[str, pa.DataType] = {}
        self.sound: list[str] = []
        self._ambiguous: set[str] = set()
        if not path.is_file():
            return
        try:
            self._file = pq.ParquetFile(path, pre_buffer=False, buffer_size=_READ_BYTES)
            self.rows = self._file.metadata.num_rows
            fields = list(self._file.schema_arrow)
            self.types = {
                f.name: f.type.value_type if pa.types.is_dictionary(f.type) else f.type for f in fields
            }
        except (pa.ArrowException, OSError) as error:
            mistakes.add(f"{path}: not a Parquet file, or cut off ({_first_line(error)}); get it again")
            return
        if self.rows == 0:
            mistakes.add(f"{path}: has no rows")
        often = Counter(field.name for field in fields)
        for column in [name for name, count in often.items() if count > 1]:
            mistakes.add(f"{path}: column '{column}' is there {often[column]} times")
            del self.types[column]
            self._ambiguous.add(column)

    def require(self, column: str, kind: Callable[[pa.DataType], bool], wanted: str) -> bool:
        """Note it as a mistake when a column is missing or of a wrong type.

        Args:
            column: The column.
            kind: Whether a type will do.
            wanted: That type in words, as in "a whole number".
        """
        if self._file is None or column in self._ambiguous:
            return False
        if column not in self.types:
            hint = suggest(column, self.types)
            self.mistakes.add(f"{self.path}: column '{column}' is missing{hint}")
            return False
        if not kind(self.types[column]):
            found = self.types[column]
            self.mistakes.add(f"{self.path}: column '{column}' must hold {wanted}, but its type is {found}")
            return False
        self.sound.append(column)
        return True

    def pieces(self, columns: Collection[str], size: int = ROWS_AT_ONCE) -> Iterator[tuple[int, Any]]:
        """The first row and the record batch of every piece of the table; none without columns.

        Columns that hold each value once and numbers for it (categories of pandas) come as the values.

        Raises:
            DataError: The file cannot be read to its end.
        """
        done = 0
        if not columns:
            return
        try:
            for piece in self._file.iter_batches(batch_size=size, columns=list(dict.fromkeys(columns))):
                yield done, _decoded(piece)
                done += piece.num_rows
                self._progress(self.path.name, done, self.rows)
        except (pa.ArrowException, OSError) as error:
            # an OSError of the writer that uses the pieces would not come from here
            line = f"{self.path}: damaged or cut off after row {done} ({_first_line(error)}); get it again"
            raise DataError(line) from error

    def whole(self, columns: Collection[str]) -> Any:
        """Some columns of the whole table, for tables that fit into memory; none of a table without rows."""
        pieces = [piece for _, piece in self.pieces(columns)]
        return pa.Table.from_batches(pieces).combine_chunks() if pieces else pa.table({})

    def integers(
        self, column: str, array: Any, first: int, low: int = 0, high: int | None = None
    ) -> Shaped[np.ndarray, " rows"]:
        """A piece of a column as integers from ``low`` to ``high``; bad ones are noted and become ``low``."""
        values = self._numbers(column, array, first, pa.int64(), low)
        bad = (values < low) | ((values > high) if high is not None else False)
        allowed = f"{low} to {high}" if high is not None else f"{low} and above"
        self.mistakes.check(bad, self, column, first, f"{{}} is outside {allowed}", values)
        return np.asarray(np.where(bad, low, values))

    def labels(self, column: str, array: Any, first: int) -> Shaped[np.ndarray, " rows"]:
        """A piece of a column as labels, 0 or 1."""
        values = self._numbers(column, array, first, pa.float64(), 0)
        bad = (values != 0) & (values != 1)
        self.mistakes.check(bad, self, column, first, "a label must be 0 or 1, got {}", values)
        return np.asarray(values == 1, dtype=np.uint8)

    def _numbers(self, column: str, array: Any, first: int, kind: Any, fill: int) -> np.ndarray:
        empty = array.is_null().to_numpy(zero_copy_only=False)
        self.mistakes.check(empty, self, column, first, "no value")
        values = array.fill_null(False if pa.types.is_boolean(array.type) else 0).cast(kind, safe=False)
        return np.asarray(np.where(empty, fill, values.to_numpy(zero_copy_only=False)))

    def lists(self, column: str, array: Any, first: int, *, empty_rows: Collection[int] = ()) -> Ragged:
        """A piece of a column of lists; missing lists and entries are noted, and become empty and 0.

        Args:
            column: The column.
            array: The piece.
            first: Row of the table at which it begins.
            empty_rows: Rows of the table that may have no list.
        """
        empty = array.is_null().to_numpy(zero_copy_only=False).copy()
        lengths = array.value_lengths() if not pa.types.is_fixed_size_list(array.type) else None
        if lengths is None:
            count = np.where(empty, 0, array.type.list_size).astype(np.int64)
        else:
            count = lengths.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        for row in empty_rows:
            if first <= row < first + len(empty):
                empty[row - first] = False
        self.mistakes.check(empty, self, column, first, "no list")
        entries = array.flatten()
        offsets = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(count)))
        if entries.null_count:
            where = entries.is_null().to_numpy(zero_copy_only=False)
            holes = np.zeros(len(array), dtype=bool)
            holes[np.searchsorted(offsets, np.flatnonzero(where), side="right") - 1] = True
            self.mistakes.check(holes, self, column, first, "a list with a missing entry")
            entries = entries.fill_null(0)
        return Ragged(entries.to_numpy(zero_copy_only=False), offsets)


def _decoded(piece: Any) -> Any:
    if not any(pa.types.is_dictionary(kind) for kind in piece.schema.types):
        return piece
    columns = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in piece.columns]
    return pa.RecordBatch.from_arrays(columns, names=piece.schema.names)


def owners(lists: Ragged) -> Shaped[np.ndarray, " values"]:
    """To which row of a ragged array each value belongs."""
    return np.repeat(np.arange(len(lists)), lists.lengths)


def is_whole(kind: pa.DataType) -> bool:
    """Whether a type holds whole numbers."""
    return bool(pa.types.is_integer(kind))


def is_number(kind: pa.DataType) -> bool:
    """Whether a type holds numbers or truth values."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def is_any(kind: pa.DataType) -> bool:
    """Any type that is not nested."""
    return not pa.types.is_nested(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether a type holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_whole_list(kind: pa.DataType) -> bool:
    """Whether a type holds lists of whole numbers."""
    return _is_list(kind) and is_whole(kind.value_type)


def is_number_list(kind: pa.DataType) -> bool:
    """Whether a type holds lists of numbers."""
    return _is_list(kind) and bool(is_whole(kind.value_type) or pa.types.is_floating(kind.value_type))


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


class CsvTable:
    """A CSV file with a header, read in pieces as text; one not there is left to :func:`require_files`.

    ``columns`` are the needed columns that are there.

    Args:
        path: The file.
        columns: The columns that are needed; others are not read.
        mistakes: Where mistakes go.
        progress: Says how far reading is.
    """

    def __init__(self, path: Path, columns: Collection[str], mistakes: Mistakes, progress: Progress) -> None:
        self.path, self.mistakes, self._progress = path, mistakes, progress
        self.columns: list[str] = []
        if not path.is_file():
            return
        try:
            with pa.csv.open_csv(path) as reader:
                there = reader.schema.names
        except (pa.ArrowException, OSError) as error:
            mistakes.add(f"{path}: cannot be read as CSV with a header ({_first_line(error)})")
            return
        for column in columns:
            if column in there:
                self.columns.append(column)
            else:
                mistakes.add(f"{path}: column '{column}' is missing{suggest(column, there)}")

    def pieces(self) -> Iterator[tuple[int, Any]]:
        """The first row and the record batch of every piece, all columns being text; none without columns.

        Raises:
            DataError: A line has more or fewer columns than the header.
        """
        done = 0
        if not self.columns:
            return
        text = {column: pa.string() for column in self.columns}
        convert = pa.csv.ConvertOptions(
            column_types=text, include_columns=self.columns, strings_can_be_null=True, null_values=[""]
        )
        read = pa.csv.ReadOptions(block_size=_READ_BYTES)
        parse = pa.csv.ParseOptions(newlines_in_values=True)
        try:
            with pa.csv.open_csv(
                self.path, convert_options=convert, read_options=read, parse_options=parse
            ) as reader:
                for piece in reader:
                    yield done, piece
                    done += piece.num_rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{self.path}: cannot be read as CSV after row {done} ({_first_line(error)})"
            ) from error
        if done == 0:
            self.mistakes.add(f"{self.path}: has no rows")
        self._progress(self.path.name, done, done)

    def numbers(self, column: str, array: Any, first: int, kind: Any) -> Shaped[np.ndarray, " rows"]:
        """A piece of a column as numbers of an Arrow type; bad ones are noted and become 0."""
        empty = array.is_null().to_numpy(zero_copy_only=False)
        self.mistakes.check(empty, self, column, first, "no value")
        array = array.fill_null("0")
        try:
            values = pc.cast(array, kind)
        except pa.ArrowInvalid:
            texts = array.to_numpy(zero_copy_only=False)
            bad = np.array([not _castable(text, kind) for text in texts])
            self.mistakes.check(bad, self, column, first, f"{{}} is not {_in_words(kind)}", texts)
            values = pc.cast(pa.array(np.where(bad, "0", texts).tolist(), pa.string()), kind)
        result = values.to_numpy(zero_copy_only=False)
        if pa.types.is_floating(kind):
            strange = ~np.isfinite(result)
            self.mistakes.check(strange, self, column, first, "{} is not a finite number", result)
            result = np.where(strange, 0, result)
        return np.asarray(result)


def _castable(text: str, kind: Any) -> bool:
    try:
        number = float(text)
    except ValueError:
        return False
    return pa.types.is_floating(kind) or (math.isfinite(number) and text.strip().lstrip("-").isdigit())


def _in_words(kind: Any) -> str:
    return "a number" if pa.types.is_floating(kind) else "a whole number"


def encode(column: Any, vocabulary: Any) -> Shaped[np.ndarray, " rows"]:
    """Position of every value in the vocabulary, counted from 1; 0 for missing and unknown ones."""
    found = pc.index_in(column, value_set=vocabulary).fill_null(-1)
    found = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
    return np.asarray(found.to_numpy(zero_copy_only=False)).astype(np.int32) + 1


def vocabulary(column: Any) -> Any:
    """The different values of a column in ascending order, without missing ones."""
    values = pc.unique(column).drop_null()
    return values.take(pc.array_sort_indices(values))
