"""The prepared data set: an item table, one history per user, and rows that point into them.

A store is a folder::

    dataset.json                     version, name, fingerprint, counts, features, vocabularies, notes
    items/FEATURE.npy                one row per item index; row 0 is the padding item
    users/FEATURE.npy                one row per user index
    histories.values.npy             one chronological sequence of item indices per user ...
    histories.offsets.npy            ... and where each begins
    behaviours/COLUMN.npy            what else is known of each behaviour, aligned with the item indices
    vocabularies/NAME                what the indices of a column stand for (see Store.vocabularies)
    SPLIT/{user,item,end,length,label}.npy, SPLIT/context/FEATURE.npy
    SPLIT/start.npy, SPLIT/probability.npy    where there are any

The history of a row is ``histories[user][start:end]``, ``start`` being 0 where nothing else is said.
``length`` is the number of behaviours the user really had before the row, which is more than are stored where
the source itself was cut off.
:class:`lain.data.writer.StoreWriter` makes one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8
from numpy.typing import DTypeLike

from common.errors import DataError, suggest
from common.ragged import Ragged
from lain.data.schema import FOLDERS, READABLE, RESERVED, ROW_COLUMNS, UNLABELLED, Feature, file_stem

_CHUNK_BYTES = 1 << 22
_SMALL_BYTES = 1 << 20
"""Files up to this size are compared with their checksums whenever a store is opened."""


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
        start: The first stored behaviour that belongs to the row's history; None: 0 everywhere.
        labelled: Whether the labels are known; where not they are 0.
    """

    user: Int[np.ndarray, " rows"]
    item: Int[np.ndarray, " rows"]
    end: Int[np.ndarray, " rows"]
    length: Int[np.ndarray, " rows"]
    label: UInt8[np.ndarray, " rows"]
    context: dict[str, Shaped[np.ndarray, "rows ..."]]
    probability: Float[np.ndarray, " rows"] | None = None
    start: Int[np.ndarray, " rows"] | None = None
    labelled: bool = True

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.label)


def _load(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.ndarray:
    """Memory-map an array and check it against what ``dataset.json`` promises."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; prepare the data again") from None
    except Exception as error:  # broken bytes raise anything
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
        fingerprint: 16 hex digits of the SHA-256 over all arrays, the vocabularies and the schema.
        features: What is known of items, users and rows.
        items: Item features by name, without ``item_id``; one row per item index.
        users: User features by name, without ``user_id``; one row per user index.
        histories: One chronological sequence of item indices per user.
        behaviours: Columns of the behaviours by name, aligned with ``histories.values``.
        vocabularies: Files that say what the indices of a column stand for, by the column's name.
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
    behaviours: dict[str, Shaped[np.ndarray, "total ..."]]
    vocabularies: dict[str, Path]
    num_items: int
    num_users: int
    splits: dict[str, int]
    notes: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> Store:
        """Memory-map a store; what can be checked of it without reading it all is checked.

        That are dataset.json, the sizes, types and shapes of all files, and the content of small ones.
        :meth:`verify` reads everything.

        Raises:
            DataError: There is no store at the path, or a part is missing, cut off, changed or of another
                shape.
        """
        about = _read_about(path)
        features = tuple(Feature(**feature) for feature in about["features"])
        counts = {"items": about["num_items"], "users": about["num_users"]}
        tables: dict[str, dict[str, np.ndarray]] = {folder: {} for folder in counts}
        for feature in features:
            folder = FOLDERS[feature.source]
            if folder in counts and feature.name not in RESERVED:
                file = path / folder / feature.file
                tables[folder][feature.name] = _load(file, feature.dtype, feature.shape(counts[folder]))
        histories = Ragged.load(path, "histories")
        if len(histories) != about["num_users"]:
            raise DataError(f"{path}: {len(histories)} histories for {about['num_users']} users")
        behaviours = {
            f.name: _load(path / FOLDERS[f.source] / f.file, f.dtype, f.shape(len(histories.values)))
            for f in features
            if f.source == "behaviour"
        }
        vocabularies = {name: vocabulary_path(path, name) for name in about["vocabularies"]}
        for file in vocabularies.values():
            if not file.is_file():
                raise DataError(f"{file}: missing; prepare the data again")
        store = cls(
            path=path,
            name=about["name"],
            fingerprint=about["fingerprint"],
            features=features,
            items=tables["items"],
            users=tables["users"],
            histories=histories,
            behaviours=behaviours,
            vocabularies=vocabularies,
            num_items=about["num_items"],
            num_users=about["num_users"],
            splits=about["splits"],
            notes=about["notes"],
        )
        for split in store.splits:
            store.split(split)
        _check_files(path, about.get("files", {}))
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
            f.name: _load(folder / "context" / f.file, f.dtype, f.shape(rows))
            for f in self.features
            if f.source == "context"
        }
        known = (folder / "probability.npy").exists()
        probability = _load(folder / "probability.npy", np.float32, (rows,)) if known else None
        windowed = (folder / "start.npy").exists()
        start = _load(folder / "start.npy", np.int32, (rows,)) if windowed else None
        labelled = name not in self.notes.get(UNLABELLED, ())
        return Split(**columns, context=context, probability=probability, start=start, labelled=labelled)

    def column(self, name: str) -> Feature:
        """One of the columns of the behaviours.

        Raises:
            DataError: There is no column of that name; the line says which there are.
        """
        columns = {f.name: f for f in self.features if f.source == "behaviour"}
        if name not in columns:
            there = f"only {', '.join(columns)}" if columns else "its behaviours are item ids alone"
            raise DataError(f"{self.path}: no column '{name}' of the behaviours, {there}"
                            f"{suggest(name, columns)}")  # fmt: skip
        return columns[name]

    def verify(self) -> None:
        """Read every byte and compare with the fingerprint.

        Raises:
            DataError: Something was changed after the store was written.
        """
        text = schema_text(self.features, self.num_items, self.num_users, self.splits)
        found = fingerprint(self.path, text)
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
    if about["version"] not in READABLE:
        readable = " and ".join(map(str, READABLE))
        raise DataError(f"{file}: version {about['version']}, this program reads versions {readable}; "
                        "prepare the data again")  # fmt: skip
    if "checksum" in about and about["checksum"] != _checksum(about):
        raise DataError(f"{file}: was changed after it was made; prepare the data again")
    return {"vocabularies": [], **about}


def sealed(folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """What ``dataset.json`` says of a store, with all that shows later whether something was changed.

    Args:
        folder: The store, all of its files written.
        about: Everything else that ``dataset.json`` says.
    """
    features = [Feature(**feature) for feature in about["features"]]
    schema = schema_text(features, about["num_items"], about["num_users"], about["splits"])
    whole = {**about, "fingerprint": fingerprint(folder, schema), "files": _file_sums(folder)}
    return {**whole, "checksum": _checksum(whole)}


def _checksum(about: Mapping[str, Any]) -> str:
    """What tells two contents of ``dataset.json`` apart, but for the checksum itself in it."""
    rest = {key: value for key, value in about.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]


def _file_sums(folder: Path) -> dict[str, list[Any]]:
    """Size of every file of a store, and the checksum of its content if it is small, by its path inside."""
    found = {}
    for file in _content(folder):
        size = file.stat().st_size
        content = _digest(file) if size <= _SMALL_BYTES else None
        found[file.relative_to(folder).as_posix()] = [size, content]
    return dict(sorted(found.items()))


def _check_files(folder: Path, sums: Mapping[str, Sequence[Any]]) -> None:
    """Compare sizes and the content of small files with what :func:`_file_sums` found when they were made."""
    wrong = []
    for name, (size, content) in sums.items():
        file = folder / name
        try:
            now = file.stat().st_size
            same = now == size and (content is None or content == _digest(file))
        except OSError as error:
            what = "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
            wrong.append(f"{file}: {what}; prepare the data again")
            continue
        if now != size:
            wrong.append(f"{file}: has {now} bytes instead of {size}; prepare the data again")
        elif not same:
            wrong.append(f"{file}: was changed after it was made; prepare the data again")
    DataError.raise_if(wrong)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def vocabulary_path(folder: Path, name: str) -> Path:
    """Where a prepared data set keeps what the indices of a column stand for."""
    return folder / "vocabularies" / file_stem(name)


def schema_text(
    features: Iterable[Feature], num_items: int, num_users: int, splits: Mapping[str, int]
) -> str:
    """What the arrays mean, as canonical JSON."""
    parts = [[asdict(f) for f in features], num_items, num_users, splits]
    return json.dumps(parts, sort_keys=True, separators=(",", ":"))


def fingerprint(folder: Path, schema: str) -> str:
    """16 hex digits of the SHA-256 over the schema, all arrays and all vocabularies of a store."""
    digest = hashlib.sha256(schema.encode())
    for file in sorted(_content(folder), key=lambda file: file.relative_to(folder).as_posix()):
        digest.update(b"\0" + file.relative_to(folder).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def _content(folder: Path) -> Iterator[Path]:
    vocabularies = folder / "vocabularies"
    yield from (f for f in folder.rglob("*.npy") if f.parent != vocabularies)
    if vocabularies.is_dir():
        yield from (f for f in vocabularies.iterdir() if f.is_file())
