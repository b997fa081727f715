"""Pieces of rows on disk: written one behind the other, read back in the same order or by part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
from jaxtyping import Int


class Spool:
    """One file of rows, or several parts of them; use as a context manager while writing.

    Args:
        folder: Where the files go; made, and removed by its owner.
        parts: Number of files.
    """

    def __init__(self, folder: Path, parts: int = 1) -> None:
        folder.mkdir(parents=True)
        self.folder, self.parts, self.rows = folder, parts, np.zeros(parts, dtype=np.int64)
        self._writers: dict[int, Any] = {}

    def __enter__(self) -> Spool:
        """Nothing yet: files are made when rows come."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files."""
        for writer, stream in self._writers.values():
            try:
                if error is None:
                    writer.close()
            finally:
                stream.close()
        self._writers.clear()

    def write(self, frame: pl.DataFrame, part: int = 0) -> None:
        """Add rows to a part."""
        if not len(frame):
            return
        table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
        if part not in self._writers:
            stream = self._path(part).open("wb")
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._writers[part] = (pa.ipc.new_stream(stream, table.schema, options=options), stream)
        self._writers[part][0].write_table(table)
        self.rows[part] += len(frame)

    def deal(self, frame: pl.DataFrame, part: Int[np.ndarray, " rows"]) -> None:
        """Add every row to its part, keeping their order."""
        order = np.argsort(part, kind="stable")
        sorted_frame = frame[order]
        edges = np.searchsorted(part[order], np.arange(self.parts + 1))
        for number in np.flatnonzero(np.diff(edges)):
            self.write(sorted_frame.slice(edges[number], edges[number + 1] - edges[number]), int(number))

    def _path(self, part: int) -> Path:
        return self.folder / f"{part:05d}.arrow"

    def pieces(self, part: int = 0) -> Iterator[pl.DataFrame]:
        """The rows of a part in the pieces they came in."""
        if not self.rows[part]:
            return
        with self._path(part).open("rb") as stream, pa.ipc.open_stream(stream) as reader:
            for batch in reader:
                yield cast("pl.DataFrame", pl.from_arrow(pa.Table.from_batches([batch])))

    def whole(self, part: int) -> pl.DataFrame | None:
        """All rows of a part; None where there are none."""
        pieces = list(self.pieces(part))
        return pl.concat(pieces).rechunk() if pieces else None

    def remove(self, part: int) -> None:
        """Free the disk space of a part."""
        self._path(part).unlink(missing_ok=True)
