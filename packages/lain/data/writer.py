"""Writing a prepared data set: in pieces, checked as it comes, whole at the path or not there at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike, DTypeLike

from common.errors import DataError, describe_os_error
from common.files import atomic_folder
from common.ragged import Ragged
from lain.data.schema import FOLDERS, RESERVED, ROW_COLUMNS, VERSION, Feature, Source, check_names
from lain.data.store import sealed, vocabulary_path


class ArrayWriter:
    """A ``.npy`` file written in pieces, its length known at the end: neither memory nor a map is held.

    Args:
        path: The file.
        dtype: Type of the values.
        width: Length of each row, or None for scalars.
    """

    def __init__(self, path: Path, dtype: DTypeLike, width: int | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.dtype, self.tail = path, np.dtype(dtype), () if width is None else (width,)
        self.rows = 0
        self.smallest, self.largest = np.iinfo(np.int64).max, 0
        self._stream: BinaryIO = path.open("xb")
        self._header()

    def _header(self) -> None:
        """Write the header; NumPy leaves room in it for the first dimension to grow."""
        about = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.rows, *self.tail),
        }
        np.lib.format.write_array_header_1_0(self._stream, about)

    def append(self, values: ArrayLike) -> None:
        """Add rows; values are converted to the file's type."""
        array = np.ascontiguousarray(values, dtype=self.dtype)
        if array.shape[1:] != self.tail:
            raise ValueError(f"{self.path.name}: rows of shape {array.shape[1:]} instead of {self.tail}")
        self._stream.write(array.data if array.size else b"")
        self.rows += len(array)
        if self.dtype.kind in "iu" and array.size:
            self.smallest = min(self.smallest, int(array.min()))
            self.largest = max(self.largest, int(array.max()))

    def close(self) -> None:
        """Write the final number of rows and close the file."""
        if not self._stream.closed:
            try:
                self._stream.seek(0)
                self._header()
            finally:
                self._stream.close()


class SplitWriter:
    """Takes the rows of one split in pieces; every piece is checked against the store.

    Made by :meth:`StoreWriter.split`.
    """

    def __init__(self, store: StoreWriter, name: str, rows: int) -> None:
        self._store, self.name, self.rows, self.written = store, name, rows, 0
        self._folder = store.folder / name
        self._columns = {c: ArrayWriter(self._folder / f"{c}.npy", t) for c, t in ROW_COLUMNS.items()}
        self._context = {
            f.name: ArrayWriter(self._folder / FOLDERS[f.source] / f.file, f.dtype, f.row_width)
            for f in store.features
            if f.source == "context"
        }
        self._probability: ArrayWriter | None = None
        self._start: ArrayWriter | None = None

    def append(
        self,
        *,
        user: Int[np.ndarray, " rows"],
        item: Int[np.ndarray, " rows"],
        end: Int[np.ndarray, " rows"],
        length: Int[np.ndarray, " rows"],
        label: Shaped[np.ndarray, " rows"],
        context: Mapping[str, Shaped[np.ndarray, "rows ..."]] | None = None,
        probability: Float[np.ndarray, " rows"] | None = None,
        start: Int[np.ndarray, " rows"] | None = None,
    ) -> None:
        """Add rows; the arguments are as in :class:`Split`.

        Raises:
            DataError: A row points outside the users, the items or its user's sequence, its label is
                neither 0 nor 1, or a context feature is missing or outside its size.
        """
        context = context or {}
        self._check(user, item, end, length, label, context, start)
        for name, values in (("user", user), ("item", item), ("end", end), ("length", length)):
            self._columns[name].append(values)
        self._columns["label"].append(label)
        for name, writer in self._context.items():
            writer.append(context[name])
        if (probability is None) != (self._probability is None) and self.written:
            raise ValueError("either all pieces of a split have probabilities or none has")
        if probability is not None:
            if self._probability is None:
                self._probability = ArrayWriter(self._folder / "probability.npy", np.float32)
            self._probability.append(probability)
        if (start is None) != (self._start is None) and self.written:
            raise ValueError("either all pieces of a split have starts or none has")
        if start is not None:
            if self._start is None:
                self._start = ArrayWriter(self._folder / "start.npy", np.int32)
            self._start.append(start)
        self.written += len(user)

    def _check(
        self,
        user: np.ndarray,
        item: np.ndarray,
        end: np.ndarray,
        length: np.ndarray,
        label: np.ndarray,
        context: Mapping[str, np.ndarray],
        start: np.ndarray | None,
    ) -> None:
        store, where, found = self._store, f"split {self.name}, row", []
        users, items = store.num_users, store.num_items

        def report(bad: np.ndarray, line: str, values: np.ndarray) -> None:
            if bad.any():
                first = int(np.argmax(bad))
                found.append(f"{where} {self.written + first}: {line.format(values[first])}")

        strange = (user < 0) | (user >= users)
        report(strange, f"user {{}} is outside the {users} users", user)
        report((item < 1) | (item >= items), f"item {{}} is outside the item table (1 to {items - 1})", item)
        stored = store.history_lengths[np.where(strange, 0, user)]
        report(~strange & (end > stored), "end {} is beyond the user's sequence", end)
        report(end < 0, "end {} is negative", end)
        first = np.zeros_like(end) if start is None else start
        report((first < 0) | (first > end), "start {} is outside 0 to the end of the history", first)
        report(length < end - first, "length {} is less than the stored history", length)
        report((label != 0) & (label != 1), "label {} is neither 0 nor 1", label)
        for feature in store.features:
            if feature.source != "context":
                continue
            if feature.name not in context:
                found.append(f"split {self.name}: context feature '{feature.name}' is missing")
                continue
            values = context[feature.name]
            report(
                _outside(feature, values), f"feature '{feature.name}' has {{}} {_allowed(feature)}", values
            )
        DataError.raise_if(found)

    def close(self) -> None:
        """Close the files."""
        with ExitStack() as stack:
            for writer in (*self._columns.values(), *self._context.values(), self._probability, self._start):
                if writer is not None:
                    stack.callback(writer.close)

    def largest(self, feature: str) -> int:
        """Largest value of a context feature so far."""
        return self._context[feature].largest


def _outside(feature: Feature, values: np.ndarray) -> np.ndarray:
    """Which rows hold a value that the feature cannot have."""
    if feature.kind in ("vector", "time"):
        bad = ~np.isfinite(values)
    else:
        bad = (values < 0) | ((values >= feature.size) if feature.size else False)
    return np.asarray(bad if bad.ndim == 1 else bad.any(axis=1))


def _refuse_outside(feature: Feature, values: np.ndarray) -> None:
    bad = _outside(feature, values)
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(f"feature '{feature.name}', row {row}: {values[row]} {_allowed(feature)}")


def _allowed(feature: Feature) -> str:
    if feature.kind == "vector":
        return "(every number must be finite)"
    return f"outside 0 to {feature.size - 1}" if feature.size else "below 0"


class StoreWriter:
    """Writes a store into a temporary folder that takes its place when everything is there.

    Use as a context manager; first the tables and the histories, then the splits. On an error nothing
    is left behind, and a store that was at the path before is still there.

    Args:
        path: The folder to make. A store already there is replaced, another non-empty folder is not.
        name: Name of the data set.
        features: What is known of items, users and rows. Size 0 of a categorical or list feature means
            "the largest value written, plus one".
        num_items: Rows of the item table, the padding item included.
        num_users: Number of users.
        notes: How the data is made; must fit into JSON.

    Raises:
        DataError: Two features have the same name, or the path is taken by something else.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        features: Iterable[Feature],
        num_items: int,
        num_users: int,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.name, self.features = path, name, tuple(features)
        self.num_items, self.num_users, self.notes = num_items, num_users, dict(notes or {})
        check_names(self.features)
        if num_items < 2 or num_users < 1:
            raise DataError(f"{name}: no items or no users (item table {num_items}, users {num_users})")
        self.folder = path
        self.history_lengths: Int[np.ndarray, " users"] = np.zeros(0, dtype=np.int64)
        self._tables: dict[tuple[Source, str], ArrayWriter] = {}
        self._vocabularies: list[str] = []
        self._splits: dict[str, SplitWriter] = {}
        self._values: ArrayWriter | None = None
        self._stack = ExitStack()

    def __enter__(self) -> StoreWriter:
        """Make the temporary folder."""
        try:
            replace = (self.path / "dataset.json").is_file()
            self.folder = self._stack.enter_context(atomic_folder(self.path, replace=replace))
        except OSError as error:
            raise self._unwritable(error) from error
        self._stack.callback(self._close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the store and move it into place, or remove what was written."""
        try:
            if error is not None:
                self._stack.__exit__(kind, error, trace)
            else:
                with self._stack:
                    self._finish()
        except OSError as failure:
            raise self._unwritable(failure) from failure
        if isinstance(error, OSError):
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(f"{self.path}: cannot be written ({describe_os_error(error)})")

    def table(self, feature: str) -> ArrayWriter:
        """Where the rows of an item or user feature go, in pieces, row 0 first."""
        sources: tuple[Source, ...] = ("item", "user")
        return self._array(feature, sources, "an item or user feature with a table")

    def behaviours(self, column: str) -> ArrayWriter:
        """Where the values of a column of the behaviours go, in pieces, in the order of the histories."""
        return self._array(column, ("behaviour",), "a column of the behaviours")

    def _array(self, name: str, sources: tuple[Source, ...], what: str) -> ArrayWriter:
        chosen = next((f for f in self.features if f.name == name and f.source in sources), None)
        if chosen is None or name in RESERVED:
            raise ValueError(f"'{name}' is not {what}")
        key = (chosen.source, name)
        if key not in self._tables:
            file = self.folder / FOLDERS[chosen.source] / chosen.file
            self._tables[key] = ArrayWriter(file, chosen.dtype, chosen.row_width)
        return self._tables[key]

    def vocabulary(self, name: str) -> Path:
        """The file to write what the indices of a column stand for into; part of the fingerprint."""
        path = vocabulary_path(self.folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if name not in self._vocabularies:
            self._vocabularies.append(name)
        return path

    def items(self, feature: str, values: Shaped[np.ndarray, "items ..."]) -> None:
        """Write an item feature whole; row 0 belongs to the padding item."""
        self._whole(feature, values, self.num_items)

    def users(self, feature: str, values: Shaped[np.ndarray, "users ..."]) -> None:
        """Write a user feature whole."""
        self._whole(feature, values, self.num_users)

    def _whole(self, feature: str, values: np.ndarray, rows: int) -> None:
        chosen = next(f for f in self.features if f.name == feature and f.source != "behaviour")
        if len(values) != rows:
            raise DataError(f"feature '{feature}': {len(values)} rows instead of {rows}")
        _refuse_outside(chosen, values)
        self.table(feature).append(values)

    def histories(
        self, histories: Ragged, columns: Mapping[str, Shaped[np.ndarray, "total ..."]] | None = None
    ) -> None:
        """Write all histories, one chronological row of item indices per user.

        Args:
            histories: The item indices.
            columns: Columns of the behaviours by name, aligned with ``histories.values``.
        """
        self.history_values(histories.lengths).append(histories.values)
        for name, values in (columns or {}).items():
            array = self.behaviours(name)
            feature = next(f for f in self.features if f.name == name and f.source == "behaviour")
            _refuse_outside(feature, values)
            array.append(values)

    def history_values(self, lengths: Int[np.ndarray, " users"]) -> ArrayWriter:
        """Fix the length of every user's sequence; the item indices then go where this returns, in pieces."""
        if len(lengths) != self.num_users:
            raise DataError(f"{len(lengths)} histories for {self.num_users} users")
        self.history_lengths = np.asarray(lengths, dtype=np.int64)
        offsets = np.zeros(self.num_users + 1, dtype=np.int64)
        np.cumsum(self.history_lengths, out=offsets[1:])
        np.save(self.folder / "histories.offsets.npy", offsets, allow_pickle=False)
        self._values = ArrayWriter(self.folder / "histories.values.npy", np.int32)
        for feature in self.features:
            if feature.source == "behaviour":
                self.behaviours(feature.name)
        return self._values

    def split(self, name: str, rows: int) -> SplitWriter:
        """Begin a split of so many rows; its pieces go to :meth:`SplitWriter.append`."""
        if self._values is None:
            raise ValueError("write the histories before the splits")
        self._splits[name] = SplitWriter(self, name, rows)
        return self._splits[name]

    def _close(self) -> None:
        """Close every file, whatever state it is in."""
        with ExitStack() as stack:
            for writer in self._tables.values():
                stack.callback(writer.close)
            for split in self._splits.values():
                stack.callback(split.close)
            if self._values is not None:
                stack.callback(self._values.close)

    def _finish(self) -> None:
        self._close()
        self._complete()
        features = tuple(self._measured(feature) for feature in self.features)
        splits = {name: split.rows for name, split in self._splits.items()}
        about = {
            "version": VERSION,
            "name": self.name,
            "num_items": self.num_items,
            "num_users": self.num_users,
            "features": [asdict(feature) for feature in features],
            "splits": splits,
            "vocabularies": self._vocabularies,
            "notes": self.notes,
        }
        text = json.dumps(sealed(self.folder, about), indent=2, ensure_ascii=False) + "\n"
        (self.folder / "dataset.json").write_text(text, encoding="utf-8")

    def _complete(self) -> None:
        """Check that every table, the histories and their columns have all their rows."""
        total = int(self.history_lengths.sum())
        rows: dict[Source, int] = {"item": self.num_items, "user": self.num_users, "behaviour": total}
        found = [
            f"split {split.name}: {split.written} rows were written, {split.rows} announced"
            for split in self._splits.values()
            if split.written != split.rows
        ]
        for feature in self.features:
            if feature.source not in rows or feature.name in RESERVED:
                continue
            array = self._tables.get((feature.source, feature.name))
            written, wanted = array.rows if array else 0, rows[feature.source]
            if written != wanted:
                found.append(f"feature '{feature.name}': {written} rows instead of {wanted}")
            elif array and feature.source == "behaviour":
                found += _beyond(feature, array)
        if self._values is None or self._values.rows != total:
            found.append(f"histories: {self._values.rows if self._values else 0} behaviours, not {total}")
        elif total:
            for item in (self._values.smallest, self._values.largest):
                if not 1 <= item < self.num_items:
                    last = self.num_items - 1
                    found.append(f"histories: item {item} is outside the item table (1 to {last})")
        found += [
            f"vocabulary '{name}' was not written"
            for name in self._vocabularies
            if not vocabulary_path(self.folder, name).is_file()
        ]
        DataError.raise_if(found)

    def _measured(self, feature: Feature) -> Feature:
        """The feature with its size known."""
        if feature.kind in ("vector", "time"):
            return feature
        if feature.name in RESERVED:
            return replace(feature, size=self.num_items if feature.source == "item" else self.num_users)
        if feature.size:
            return feature
        if feature.source == "context":
            largest = max((split.largest(feature.name) for split in self._splits.values()), default=0)
        else:
            array = self._tables.get((feature.source, feature.name))
            largest = array.largest if array else 0
        return replace(feature, size=largest + 1)


def _beyond(feature: Feature, array: ArrayWriter) -> list[str]:
    """What a column of the behaviours, written in pieces, holds that its feature cannot have."""
    if feature.kind not in ("categorical", "list") or not array.rows:
        return []
    values = np.array([array.smallest, array.largest])
    bad = _outside(feature, values)
    return [f"column '{feature.name}' has {value} {_allowed(feature)}" for value in values[bad]]
