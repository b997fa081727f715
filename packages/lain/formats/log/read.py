"""Text and Parquet files in pieces of bounded size, whatever the size of the file.

A text file is read as text; what its columns mean is decided by the schema. Every value keeps its place:
rows are counted from 0, the header not being one.
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from common.errors import ConfigError, DataError, describe_os_error, suggest
from lain.formats.tables import Progress

ROWS_AT_ONCE = 131_072
_READ_BYTES = 4 << 20
_TEXT = (".csv", ".tsv", ".txt", ".dat", ".csv.gz", ".tsv.gz", ".txt.gz")
_TABLES = (".parquet", ".pq")
_SEPARATORS = ("::", "\t", ",", ";", "|", "\x01")
_SNIFF_LINES = 20


def find_files(source: Path, pattern: str | None = None) -> list[Path]:
    """The files of a log, in order of their names.

    Args:
        source: A file, a folder, or a pattern such as ``logs/part-*.csv``.
        pattern: Pattern of the files inside a folder; None: all of them, if they are of one type.

    Raises:
        DataError: There is none, or the folder holds files of several types.
    """
    if pattern is not None and source.is_dir():
        found = sorted(path for path in source.glob(pattern) if path.is_file())
        if not found:
            raise DataError(
                f"{source / pattern}: there is no such file; put it there, or name it in the schema"
            )
        return found
    if source.is_file():
        return [source]
    if not source.is_dir():
        found = sorted(Path(name) for name in glob.glob(str(source), recursive=True) if Path(name).is_file())
        if not found:
            raise DataError(f"{source}: there is no such file or folder")
        return found
    kinds: dict[str, list[Path]] = {}
    for path in sorted(source.iterdir()):
        suffix = _suffix(path)
        if path.is_file() and suffix in (*_TEXT, *_TABLES) and not path.name.startswith((".", "_")):
            kinds.setdefault("Parquet" if suffix in _TABLES else suffix, []).append(path)
    if len(kinds) > 1:  # a README.txt is no log
        kinds.pop(".txt", None)
    if len(kinds) > 1:
        there = ", ".join(path.name for paths in kinds.values() for path in paths[:2])
        raise DataError(f"{source}: holds files of several types ({there}); name the pattern of the log in "
                        "the "
                        "schema, as source: {files: 'log_*.csv'}")  # fmt: skip
    if not kinds:
        raise DataError(f"{source}: holds no CSV, TSV or Parquet file")
    return next(iter(kinds.values()))


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    return "".join(path.suffixes[-2:]).lower() if suffix == ".gz" else suffix


class LogFile:
    """One file of a log or one side table.

    Args:
        path: The file.
        separator: Between the columns of a text file; None: found from its first lines.
        header: Names of the columns of a text file without a header line.
        missing: Texts that mean "no value".

    Raises:
        DataError: The file cannot be read, or its header is not one; one line.
    """

    def __init__(
        self,
        path: Path,
        *,
        separator: str | None = None,
        header: Sequence[str] | None = None,
        missing: Sequence[str] = ("",),
    ) -> None:
        self.path, self.missing = path, tuple(missing)
        self.is_text = _suffix(path) not in _TABLES
        self.rows: int | None = None
        self.separator, self._header = separator, list(header) if header else None
        self._quoted = False
        try:
            if self.is_text:
                self._open_text()
            else:
                self._open_parquet()
        except (OSError, EOFError) as error:
            reason = describe_os_error(error) if isinstance(error, OSError) and error.errno else str(error)
            raise DataError(f"{path}: cannot be read ({reason}); get it again") from error

    def _open_parquet(self) -> None:
        try:
            file = pq.ParquetFile(self.path)
        except pa.ArrowException as error:
            line = f"{self.path}: not a Parquet file, or cut off ({_first_line(error)}); get it again"
            raise DataError(line) from error
        self.rows = file.metadata.num_rows
        self.columns = list(file.schema_arrow.names)
        self.types: dict[str, Any] = {f.name: f.type for f in file.schema_arrow}
        self._refuse_twice()
        for name, kind in self.types.items():
            if _is_list(kind) and (_is_list(kind.value_type) or pa.types.is_struct(kind.value_type)):
                self.types[name] = None  # refused where it is asked for
        if self.rows == 0:
            raise DataError(f"{self.path}: has no rows")

    def _open_text(self) -> None:
        with self._stream() as stream:
            head = stream.read(1 << 16)
        if not head.strip():
            raise DataError(f"{self.path}: is empty")
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(f"{self.path}: is UTF-16 text; save it as UTF-8")
        if b"\0" in head[:4096]:
            raise DataError(f"{self.path}: is not a text file, though its name says so")
        lines = [line for line in head.decode("utf-8-sig", errors="replace").splitlines() if line.strip()]
        lines = lines[:_SNIFF_LINES]
        if self.separator is None:
            self.separator = _sniff(lines)
        elif len(self.separator) != 1 and self.separator != "::":
            raise ConfigError(f"source.separator: must be one character or '::', got {self.separator!r}")
        self._quoted = self.separator not in ("\t", "::", "\x01")
        first = self._split(lines[0])
        if self._header is None:
            self.columns = [name.strip() for name in first]
            if any(not name for name in self.columns):
                raise DataError(f"{self.path}: column {self.columns.index('')} of the header has no name")
        else:
            self.columns = self._header
            if len(first) != len(self.columns):
                raise DataError(f"{self.path}, row 0: {len(first)} values for the {len(self.columns)} "
                                "columns "
                                f"of the schema's header (separator {self.separator!r})")  # fmt: skip
        self._refuse_twice()
        self.types = dict.fromkeys(self.columns, pa.string())

    def _split(self, line: str) -> list[str]:
        assert self.separator is not None
        if not self._quoted:
            return line.split(self.separator)
        return next(csv.reader([line], delimiter=self.separator))

    def _refuse_twice(self) -> None:
        twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
        DataError.raise_if(f"{self.path}: column '{name}' is there twice; rename one" for name in twice)

    def _stream(self) -> io.BufferedIOBase:
        if self.path.suffix.lower() == ".gz":
            return gzip.open(self.path, "rb")
        return self.path.open("rb")

    def require(self, columns: Collection[str]) -> list[str]:
        """What is wrong with the columns that somebody needs of this file, one line each."""
        lines: list[str] = []
        for column in dict.fromkeys(columns):
            if len(self.columns) == 1 and lines:
                break  # the separator is wrong, and that has been said
            if column not in self.columns:
                hint = suggest(column, self.columns)
                if len(self.columns) == 1:
                    hint = (f"; its only column is '{self.columns[0][:80]}': is the separator "
                            f"{self.separator!r}? "
                            "(source.separator)")  # fmt: skip
                lines.append(f"{self.path}: column '{column}' is missing{hint}")
            elif self.types[column] is None:
                lines.append(
                    f"{self.path}: column '{column}' holds lists of lists; one list per row can be read"
                )
        return lines

    def pieces(
        self, columns: Collection[str], progress: Progress, size: int = ROWS_AT_ONCE
    ) -> Iterator[tuple[int, pl.DataFrame]]:
        """The first row and the values of every piece; texts are stripped, and missing ones null.

        Raises:
            DataError: The file is damaged or cut off, or a line has more or fewer columns than the header.
        """
        wanted = list(dict.fromkeys(columns))
        done = 0
        for batch in self._batches(wanted, size):
            for start in range(0, batch.num_rows, size):
                piece = batch.slice(start, size)
                frame = cast("pl.DataFrame", pl.from_arrow(pa.Table.from_batches([piece])))
                yield done, self._clean(frame)
                done += piece.num_rows
                if self.rows is not None:
                    progress(self.path.name, done, self.rows)
        if self.rows is None:
            progress(self.path.name, done, done)
        if done == 0:
            raise DataError(f"{self.path}: has no rows")

    def _clean(self, frame: pl.DataFrame) -> pl.DataFrame:
        texts = [name for name, kind in frame.schema.items() if kind in (pl.String, pl.Categorical)]
        missing = [text for text in self.missing if text] or None
        stripped = [pl.col(name).cast(pl.String).str.strip_chars().alias(name) for name in texts]
        frame = frame.with_columns(stripped)
        empty = [pl.when(pl.col(n) != "").then(pl.col(n)).alias(n) for n in texts]
        frame = frame.with_columns(empty)
        if missing:
            held = [pl.when(~pl.col(n).is_in(missing)).then(pl.col(n)).alias(n) for n in texts]
            frame = frame.with_columns(held)
        return frame

    def _batches(self, columns: list[str], size: int) -> Iterator[Any]:
        if self.is_text:
            yield from self._text_batches(columns)
            return
        done = 0
        try:
            file = pq.ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 20)
            for batch in file.iter_batches(batch_size=size, columns=columns):
                yield batch.select(columns)
                done += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            line = f"{self.path}: damaged or cut off after row {done} ({_first_line(error)}); get it again"
            raise DataError(line) from error

    def _text_batches(self, columns: list[str]) -> Iterator[Any]:
        bad: list[Any] = []

        def keep(row: Any) -> str:
            bad.append(row)
            return "skip"

        separator = "\x1f" if self.separator == "::" else self.separator
        read = pa.csv.ReadOptions(
            block_size=_READ_BYTES,
            column_names=self.columns,
            skip_rows=0 if self._header is not None else 1,
        )
        parse = pa.csv.ParseOptions(
            delimiter=separator,
            quote_char='"' if self._quoted else False,
            newlines_in_values=self._quoted,
            invalid_row_handler=keep,
        )
        convert = pa.csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()),
            include_columns=columns,
            strings_can_be_null=True,
            null_values=[""],
        )
        done = 0
        try:
            stream = self._stream()
            source: Any = io.BufferedReader(_Replaced(stream)) if self.separator == "::" else stream
            with source, pa.csv.open_csv(source, read, parse, convert) as reader:
                for batch in reader:
                    if bad:
                        break
                    yield batch
                    done += batch.num_rows
        except (pa.ArrowException, OSError, EOFError) as error:
            if not bad:
                line = f"{self.path}: damaged or cut off after row {done} ({_first_line(error)})"
                raise DataError(line) from error
        if bad:
            raise DataError(self._ragged_line(bad[0].actual_columns))

    def _ragged_line(self, found: int) -> str:
        """Which row has another number of values than the header, said with its number."""
        wanted, row, last = len(self.columns), -1, False
        assert self.separator is not None
        raw: Any = self._stream()
        with io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace", newline="") as stream:
            lines: Iterator[list[str]]
            if self._quoted:
                lines = (line for line in csv.reader(stream, delimiter=self.separator) if line)
            else:
                lines = (line.rstrip("\r\n").split(self.separator) for line in stream if line.strip())
            if self._header is None:
                next(lines)
            for number, values in enumerate(lines):
                if len(values) != wanted:
                    row, found = number, len(values)
                    last = next(lines, None) is None
                    break
        where = f"row {row}" if row >= 0 else "a row"
        end = "; the file is cut off there" if last and found < wanted else ""
        return (
            f"{self.path}, {where}: {found} values for {wanted} columns (separator {self.separator!r}){end}"
        )


class _Replaced(io.RawIOBase):
    """A stream with ``::`` replaced by one character, for readers that take no longer separator."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self._stream, self._rest = stream, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = b""
        while not block:
            read = self._stream.read(max(len(buffer) - 1, 1) if not self._rest else max(len(buffer) - 2, 1))
            block = self._rest + read
            self._rest = b""
            if not block:
                return 0
            if read and block.endswith(b":") and not block.endswith(b"::"):
                block, self._rest = block[:-1], b":"
        block = block.replace(b"::", b"\x1f")
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self._stream.close()
        super().close()


def _sniff(lines: Sequence[str]) -> str:
    """The separator that every one of the first lines has equally often; of several the most frequent."""

    def fields(line: str, separator: str) -> int:
        if len(separator) > 1 or separator in ("\t", "\x01"):
            return line.count(separator)
        return len(next(csv.reader([line], delimiter=separator))) - 1

    whole = lines[:-1] if len(lines) > 2 else lines  # the last one may be cut by the size of the sample
    best, most = ",", 0
    for separator in _SEPARATORS:
        counts = [fields(line, separator) for line in whole]
        alike = sum(count == counts[0] for count in counts)
        if counts[0] > most and alike * 2 >= len(counts):
            best, most = separator, counts[0]
    return best


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
