"""The prepared data set: an item table, one history per user, and rows that point into them.

A store is a folder::

    dataset.json                     version, name, fingerprint, counts, features, notes
    items/FEATURE.npy                one row per item index; row 0 is the padding item
    users/FEATURE.npy                one row per user index
    histories.values.npy             one chronological sequence of item indices per user ...
    histories.offsets.npy            ... and where each begins
    SPLIT/{user,item,end,length,label}.npy, SPLIT/probability.npy (if known), SPLIT/context/FEATURE.npy

The history of a row is ``histories[user][:end]``. ``length`` is the number of behaviours the user
really had before the row, which is more than ``end`` where the source itself was cut off.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8
from numpy.typing import ArrayLike, DTypeLike

from common.errors import DataError, describe_os_error, suggest
from common.files import atomic_folder
from common.ragged import Ragged

VERSION = 1
Source = Literal["item", "user", "context"]
Kind = Literal["categorical", "list", "vector"]

RESERVED: dict[str, Source] = {"item_id": "item", "user_id": "user"}
"""Features without a file of their own: their value is the item index, the user index."""

ROW_COLUMNS: dict[str, type[np.generic]] = {
    "user": np.int32,
    "item": np.int32,
    "end": np.int32,
    "length": np.int32,
    "label": np.uint8,
}
"""The columns that every split has, and their types on disk."""

_FOLDERS: dict[Source, str] = {"item": "items", "user": "users", "context": "context"}
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Feature:
    """What is known of an item, of a user, or of the moment of a row.

    Value 0 of a categorical or list feature means padding, missing or unknown.

    Args:
        name: Its name, unique in the store and fit for a file name. ``item_id`` and ``user_id`` are
            reserved for the indices themselves.
        source: Whose it is.
        kind: One integer, a list of integers (padded with 0 behind), or a frozen vector.
        size: Number of different integers, 0 included; 0 for a vector. A :class:`StoreWriter` also
            takes 0 for "the largest value written, plus one".
        width: 1, the longest list, or the dimension of the vector.

    Raises:
        DataError: The parts do not fit together.
    """

    name: str
    source: Source
    kind: Kind
    size: int
    width: int = 1

    def __post_init__(self) -> None:
        """Check the parts, all at once."""
        what, found = f"feature '{self.name}'", []
        if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name) is None:
            found.append(f"{what}: a name has letters, digits, '_', '-' and '.' only")
        for part, value, choices in (
            ("source", self.source, get_args(Source)),
            ("kind", self.kind, get_args(Kind)),
        ):
            if value not in choices:
                found.append(f"{what}: {part} must be one of {', '.join(choices)}, got {value!r}")
        if self.width < 1 or (self.kind == "categorical" and self.width != 1):
            found.append(f"{what}: a {self.kind} feature cannot have width {self.width}")
        if self.size < 0 or (self.kind == "vector" and self.size != 0):
            found.append(f"{what}: a {self.kind} feature cannot have size {self.size}")
        if self.name in RESERVED and (self.source, self.kind) != (RESERVED[self.name], "categorical"):
            found.append(f"{what}: the name is reserved for the categorical {RESERVED[self.name]} index")
        DataError.raise_if(found)

    @property
    def dtype(self) -> type[np.generic]:
        """Type of the values on disk."""
        return np.float32 if self.kind == "vector" else np.int32

    def shape(self, rows: int) -> tuple[int, ...]:
        """Shape of the values of so many rows."""
        return (rows,) if self.kind == "categorical" else (rows, self.width)


@dataclass(frozen=True, eq=False)
class Split:
    """Rows to learn from or to predict; arrays are memory-mapped and read-only.

    Args:
        user: User index of each row.
        item: Item index of each row's target.
        end: How many of the user's stored behaviours come before the row.
        length: How many behaviours the user truly had before the row; at least ``end``.
        label: 1 for a click, 0 for none.
        context: Context features by name.
        probability: True click probability, where the world that made the rows knows it.
    """

    user: Int[np.ndarray, " rows"]
    item: Int[np.ndarray, " rows"]
    end: Int[np.ndarray, " rows"]
    length: Int[np.ndarray, " rows"]
    label: UInt8[np.ndarray, " rows"]
    context: dict[str, Shaped[np.ndarray, "rows ..."]]
    probability: Float[np.ndarray, " rows"] | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.label)


def _load(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.ndarray:
    """Memory-map an array and check it against what ``dataset.json`` promises."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; prepare the data again") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}); prepare the data again") from error
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        found, wanted = f"{array.dtype}{list(array.shape)}", f"{np.dtype(dtype)}{list(shape)}"
        raise DataError(f"{path}: holds {found} instead of {wanted}; prepare the data again")
    return array


@dataclass(frozen=True, eq=False)
class Store:
    """A prepared data set, memory-mapped. Get one with :meth:`open`.

    Args:
        path: Its folder.
        name: Its name.
        fingerprint: 16 hex digits of the SHA-256 over all arrays and the schema.
        features: What is known of items, users and rows.
        items: Item features by name, without ``item_id``; one row per item index.
        users: User features by name, without ``user_id``; one row per user index.
        histories: One chronological sequence of item indices per user.
        num_items: Rows of the item table, the padding item included.
        num_users: Number of users.
        splits: Number of rows of each split.
        notes: How the data was made.
    """

    path: Path
    name: str
    fingerprint: str
    features: tuple[Feature, ...]
    items: dict[str, Shaped[np.ndarray, "items ..."]]
    users: dict[str, Shaped[np.ndarray, "users ..."]]
    histories: Ragged
    num_items: int
    num_users: int
    splits: dict[str, int]
    notes: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> Store:
        """Memory-map a store; types and shapes of all its files are checked, values are not read.

        Raises:
            DataError: There is no store at the path, or a part is missing, cut off or of another shape.
        """
        about = _read_about(path)
        features = tuple(Feature(**feature) for feature in about["features"])
        counts = {"items": about["num_items"], "users": about["num_users"]}
        tables: dict[str, dict[str, np.ndarray]] = {folder: {} for folder in counts}
        for feature in features:
            folder = _FOLDERS[feature.source]
            if folder in counts and feature.name not in RESERVED:
                file = path / folder / f"{feature.name}.npy"
                tables[folder][feature.name] = _load(file, feature.dtype, feature.shape(counts[folder]))
        histories = Ragged.load(path, "histories")
        if len(histories) != about["num_users"]:
            raise DataError(f"{path}: {len(histories)} histories for {about['num_users']} users")
        store = cls(
            path=path,
            name=about["name"],
            fingerprint=about["fingerprint"],
            features=features,
            items=tables["items"],
            users=tables["users"],
            histories=histories,
            num_items=about["num_items"],
            num_users=about["num_users"],
            splits=about["splits"],
            notes=about["notes"],
        )
        for split in store.splits:
            store.split(split)
        return store

    def split(self, name: str) -> Split:
        """One of the splits.

        Raises:
            DataError: There is no split of that name; the line says which there are.
        """
        if name not in self.splits:
            there = ", ".join(self.splits)
            raise DataError(f"{self.path}: no split '{name}', only {there}{suggest(name, self.splits)}")
        rows, folder = self.splits[name], self.path / name
        columns = {c: _load(folder / f"{c}.npy", dtype, (rows,)) for c, dtype in ROW_COLUMNS.items()}
        context = {
            f.name: _load(folder / "context" / f"{f.name}.npy", f.dtype, f.shape(rows))
            for f in self.features
            if f.source == "context"
        }
        known = (folder / "probability.npy").exists()
        probability = _load(folder / "probability.npy", np.float32, (rows,)) if known else None
        return Split(**columns, context=context, probability=probability)

    def verify(self) -> None:
        """Read every byte and compare with the fingerprint.

        Raises:
            DataError: Something was changed after the store was written.
        """
        found = _fingerprint(self.path, _schema(self.features, self.num_items, self.num_users, self.splits))
        if found != self.fingerprint:
            raise DataError(f"{self.path}: was changed after it was made (fingerprint {found}, "
                            f"not {self.fingerprint}); prepare the data again")  # fmt: skip


def _read_about(path: Path) -> dict[str, Any]:
    file = path / "dataset.json"
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: not a prepared data set (no dataset.json); make one with "
                        "'lain prepare' or 'lain world'") from None  # fmt: skip
    except (ValueError, OSError) as error:
        raise DataError(f"{file}: cannot be read ({error}); prepare the data again") from error
    keys = {"version", "name", "fingerprint", "num_items", "num_users", "features", "splits", "notes"}
    missing = sorted(keys - set(about)) if isinstance(about, dict) else sorted(keys)
    if missing:
        raise DataError(f"{file}: lacks {', '.join(missing)}; prepare the data again")
    if about["version"] != VERSION:
        raise DataError(f"{file}: version {about['version']}, this program reads version {VERSION}; "
                        "prepare the data again")  # fmt: skip
    return dict(about)


def _schema(features: Iterable[Feature], num_items: int, num_users: int, splits: Mapping[str, int]) -> str:
    """What the arrays mean, as canonical JSON."""
    parts = [[asdict(f) for f in features], num_items, num_users, splits]
    return json.dumps(parts, sort_keys=True, separators=(",", ":"))


def _fingerprint(folder: Path, schema: str) -> str:
    digest = hashlib.sha256(schema.encode())
    for file in sorted(folder.rglob("*.npy"), key=lambda file: file.relative_to(folder).as_posix()):
        digest.update(b"\0" + file.relative_to(folder).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()[:16]


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
        self._stream: BinaryIO = path.open("wb")
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
            f.name: ArrayWriter(self._folder / "context" / f"{f.name}.npy", f.dtype, _width(f))
            for f in store.features
            if f.source == "context"
        }
        self._probability: ArrayWriter | None = None

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
    ) -> None:
        """Add rows; the arguments are as in :class:`Split`.

        Raises:
            DataError: A row points outside the users, the items or its user's sequence, its label is
                neither 0 nor 1, or a context feature is missing or outside its size.
        """
        context = context or {}
        self._check(user, item, end, length, label, context)
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
        self.written += len(user)

    def _check(
        self,
        user: np.ndarray,
        item: np.ndarray,
        end: np.ndarray,
        length: np.ndarray,
        label: np.ndarray,
        context: Mapping[str, np.ndarray],
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
        report(length < end, "length {} is less than the stored history", length)
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
            for writer in (*self._columns.values(), *self._context.values(), self._probability):
                if writer is not None:
                    stack.callback(writer.close)

    def largest(self, feature: str) -> int:
        """Largest value of a context feature so far."""
        return self._context[feature].largest


def _width(feature: Feature) -> int | None:
    return None if feature.kind == "categorical" else feature.width


def _outside(feature: Feature, values: np.ndarray) -> np.ndarray:
    """Which rows hold a value that the feature cannot have."""
    if feature.kind == "vector":
        bad = ~np.isfinite(values)
    else:
        bad = (values < 0) | ((values >= feature.size) if feature.size else False)
    return np.asarray(bad if bad.ndim == 1 else bad.any(axis=1))


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
        names = [feature.name for feature in self.features]
        twice = sorted({name for name in names if names.count(name) > 1})
        DataError.raise_if(f"feature '{name}' is there twice" for name in twice)
        if num_items < 2 or num_users < 1:
            raise DataError(f"{name}: no items or no users (item table {num_items}, users {num_users})")
        self.folder = path
        self.history_lengths: Int[np.ndarray, " users"] = np.zeros(0, dtype=np.int64)
        self._tables: dict[str, ArrayWriter] = {}
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
        chosen = next((f for f in self.features if f.name == feature and f.name not in RESERVED), None)
        if chosen is None or chosen.source == "context":
            raise ValueError(f"'{feature}' is not an item or user feature with a table")
        if feature not in self._tables:
            file = self.folder / _FOLDERS[chosen.source] / f"{feature}.npy"
            self._tables[feature] = ArrayWriter(file, chosen.dtype, _width(chosen))
        return self._tables[feature]

    def items(self, feature: str, values: Shaped[np.ndarray, "items ..."]) -> None:
        """Write an item feature whole; row 0 belongs to the padding item."""
        self._whole(feature, values, self.num_items)

    def users(self, feature: str, values: Shaped[np.ndarray, "users ..."]) -> None:
        """Write a user feature whole."""
        self._whole(feature, values, self.num_users)

    def _whole(self, feature: str, values: np.ndarray, rows: int) -> None:
        chosen = next(f for f in self.features if f.name == feature)
        if len(values) != rows:
            raise DataError(f"feature '{feature}': {len(values)} rows instead of {rows}")
        bad = _outside(chosen, values)
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(f"feature '{feature}', row {row}: {values[row]} {_allowed(chosen)}")
        self.table(feature).append(values)

    def histories(self, histories: Ragged) -> None:
        """Write all histories, one chronological row of item indices per user."""
        self.history_values(histories.lengths).append(histories.values)

    def history_values(self, lengths: Int[np.ndarray, " users"]) -> ArrayWriter:
        """Fix the length of every user's sequence; the item indices then go where this returns, in pieces."""
        if len(lengths) != self.num_users:
            raise DataError(f"{len(lengths)} histories for {self.num_users} users")
        self.history_lengths = np.asarray(lengths, dtype=np.int64)
        offsets = np.zeros(self.num_users + 1, dtype=np.int64)
        np.cumsum(self.history_lengths, out=offsets[1:])
        np.save(self.folder / "histories.offsets.npy", offsets, allow_pickle=False)
        self._values = ArrayWriter(self.folder / "histories.values.npy", np.int32)
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
        schema = _schema(features, self.num_items, self.num_users, splits)
        about = {
            "version": VERSION,
            "name": self.name,
            "fingerprint": _fingerprint(self.folder, schema),
            "num_items": self.num_items,
            "num_users": self.num_users,
            "features": [asdict(feature) for feature in features],
            "splits": splits,
            "notes": self.notes,
        }
        text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
        (self.folder / "dataset.json").write_text(text, encoding="utf-8")

    def _complete(self) -> None:
        """Check that every table and the histories have all their rows."""
        rows = {"item": self.num_items, "user": self.num_users}
        found = [
            f"split {split.name}: {split.written} rows were written, {split.rows} announced"
            for split in self._splits.values()
            if split.written != split.rows
        ]
        for feature in self.features:
            if feature.source in rows and feature.name not in RESERVED:
                written = self._tables[feature.name].rows if feature.name in self._tables else 0
                if written != rows[feature.source]:
                    found.append(
                        f"feature '{feature.name}': {written} rows instead of {rows[feature.source]}"
                    )
        total = int(self.history_lengths.sum())
        if self._values is None or self._values.rows != total:
            found.append(f"histories: {self._values.rows if self._values else 0} behaviours, not {total}")
        elif total:
            for item in (self._values.smallest, self._values.largest):
                if not 1 <= item < self.num_items:
                    last = self.num_items - 1
                    found.append(f"histories: item {item} is outside the item table (1 to {last})")
        DataError.raise_if(found)

    def _measured(self, feature: Feature) -> Feature:
        """The feature with its size known."""
        if feature.kind == "vector":
            return feature
        if feature.name in RESERVED:
            size = self.num_items if feature.source == "item" else self.num_users
        elif feature.size:
            return feature
        elif feature.source == "context":
            size = 1 + max((split.largest(feature.name) for split in self._splits.values()), default=0)
        else:
            size = 1 + self._tables[feature.name].largest
        return Feature(feature.name, feature.source, feature.kind, size, feature.width)
