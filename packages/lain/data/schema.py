"""What a prepared data set holds: features by name, whose they are, and where they lie on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import quote

import numpy as np

from common.errors import DataError

VERSION = 2
"""Version of the layout that is written."""

READABLE = (1, 2)
"""Versions that can be read: 1 has neither columns of behaviours nor vocabularies."""

Source = Literal["item", "user", "context", "behaviour"]
Kind = Literal["categorical", "list", "vector", "time"]

RESERVED: dict[str, Source] = {"item_id": "item", "user_id": "user"}
"""Features without a file of their own: their value is the item index, the user index."""

UNLABELLED = "unlabelled"
"""Note of a data set that lists the splits whose labels are not known, and stand as 0."""

ROW_COLUMNS: dict[str, type[np.generic]] = {
    "user": np.int32,
    "item": np.int32,
    "end": np.int32,
    "length": np.int32,
    "label": np.uint8,
}
"""The columns that every split has, and their types on disk."""

FOLDERS: dict[Source, str] = {
    "item": "items",
    "user": "users",
    "context": "context",
    "behaviour": "behaviours",
}
"""Folder of the files of each source."""

_LONGEST_STEM = 120


@dataclass(frozen=True)
class Feature:
    """What is known of an item, of a user, of the moment of a row, or of one behaviour of a history.

    Value 0 of a categorical or list feature means padding, missing or unknown.

    Args:
        name: Its name, any text. A behaviour may have a column of the same name as another feature; all
            other names are unique in the store. ``item_id`` and ``user_id`` are reserved for the indices
            themselves.
        source: Whose it is.
        kind: One integer, a list of integers (padded with 0 behind), a frozen vector, or a point in time
            (whole seconds since 1970, of a behaviour or a row).
        size: Number of different integers, 0 included; 0 for a vector and a time. A
            :class:`~lain.data.writer.StoreWriter` also takes 0 for "the largest value written, plus one".
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
        if not self.name:
            found.append("a feature needs a name, got an empty one")
        for part, value, choices in (
            ("source", self.source, get_args(Source)),
            ("kind", self.kind, get_args(Kind)),
        ):
            if value not in choices:
                found.append(f"{what}: {part} must be one of {', '.join(choices)}, got {value!r}")
        if self.width < 1 or (self.kind in ("categorical", "time") and self.width != 1):
            found.append(f"{what}: a {self.kind} feature cannot have width {self.width}")
        if self.size < 0 or (self.kind in ("vector", "time") and self.size != 0):
            found.append(f"{what}: a {self.kind} feature cannot have size {self.size}")
        if self.kind == "time" and self.source in ("item", "user"):
            found.append(f"{what}: only a behaviour or a row has a time, not the {self.source}")
        if self.name in RESERVED and (self.source, self.kind) != (RESERVED[self.name], "categorical"):
            found.append(f"{what}: the name is reserved for the categorical {RESERVED[self.name]} index")
        DataError.raise_if(found)

    @property
    def dtype(self) -> type[np.generic]:
        """Type of the values on disk."""
        if self.kind == "time":
            return np.int64
        return np.float32 if self.kind == "vector" else np.int32

    @property
    def row_width(self) -> int | None:
        """Length of the values of one row; None for a scalar."""
        return None if self.kind in ("categorical", "time") else self.width

    @property
    def file(self) -> str:
        """Name of its file, without the folder."""
        return f"{file_stem(self.name)}.npy"

    def shape(self, rows: int) -> tuple[int, ...]:
        """Shape of the values of so many rows."""
        return (rows,) if self.row_width is None else (rows, self.row_width)


def check_names(features: Iterable[Feature]) -> None:
    """Refuse two columns of a behaviour, or two other features, of the same name.

    Raises:
        DataError: A name is there twice.
    """
    seen: set[tuple[bool, str]] = set()
    twice: set[str] = set()
    for feature in features:
        key = (feature.source == "behaviour", feature.name)
        twice |= {feature.name} & ({feature.name} if key in seen else set())
        seen.add(key)
    DataError.raise_if(f"feature '{name}' is there twice" for name in sorted(twice))


def file_stem(name: str) -> str:
    """A file name for any text: letters, digits, ``_``, ``-`` and ``.`` stay, other bytes become ``%XX``.

    Different names give different file names. A long one is cut, and its SHA-256 put behind.
    """
    stem = quote(name, safe="", errors="surrogatepass").replace("~", "%7E")
    if stem.startswith("."):
        stem = "%2E" + stem[1:]
    if len(stem) > _LONGEST_STEM:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        stem = f"{stem[: _LONGEST_STEM - 33]}~{digest}"
    return stem
