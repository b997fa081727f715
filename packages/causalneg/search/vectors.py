"""Vectors of texts on disk, their ids beside them, filled block by block so that a killed run goes on.

::

    vectors.npy or vectors.safetensors   float32 [texts, dim]; in safetensors as the tensor "vectors"
    ids.txt                              an id a line, in the order of the rows
    vectors.json                         what was encoded, by which encoder, how it read; written last
    .parts/                              what is done so far, while there is no vectors.json
"""

from __future__ import annotations

import hashlib
import json
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32

from common.errors import ConfigError, DataError
from common.files import atomic_path, atomic_write, locked

Part = Literal["documents", "queries"]
Form = Literal["npy", "safetensors"]

ABOUT, IDS = "vectors.json", "ids.txt"
_PARTS, _TENSOR = ".parts", "vectors"
_ATTEMPTS, _PAUSE = 100, 0.2
BLOCK = 2048
"""Texts that are encoded and marked as done at a time; as many as a killed evaluation loses at most."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What a folder of vectors holds.

    Args:
        part: Whether the texts are documents or queries.
        source: Where they were read from.
        content: Hash of ids and texts.
        count: How many.
        dim: Numbers of a vector.
        encoder: Folder or name of the encoder.
        fingerprint: Hash of its weights and settings.
        reading: What was read otherwise than its folder says.
        form: File format of the vectors.
        block: Texts encoded at a time.
    """

    part: Part
    source: str
    content: str
    count: int
    dim: int
    encoder: str
    fingerprint: str
    reading: dict[str, Any]
    form: Form = "npy"
    block: int = BLOCK

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: One is out of range.
        """
        for name in ("count", "dim", "block"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.count // self.block)

    def differs(self, other: About) -> str | None:
        """In words, what makes vectors of the two different; None where nothing does."""
        for name in ("part", "content", "fingerprint", "count", "dim", "form", "block"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name} {mine}, not {theirs}"
        return None


def content_hash(ids: Sequence[str], texts: Sequence[str]) -> str:
    """What tells texts with their ids apart: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for id, text in zip(ids, texts, strict=True):
        digest.update(f"{id}\0{text}\0".encode(errors="surrogatepass"))
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class VectorFolder:
    """Finished vectors.

    Args:
        path: The folder.
        about: What it holds.
        ids: Id of each row.
    """

    path: Path
    about: About
    ids: list[str]

    @classmethod
    def open(cls, path: Path) -> VectorFolder:
        """Read what :func:`write_vectors` wrote.

        Raises:
            DataError: There are none, they are not finished, or a file is damaged.
        """
        about = _about(path / ABOUT)
        if about is None:
            unfinished = (path / _PARTS).is_dir()
            what = "the vectors are not finished; run the same encode again" if unfinished else "missing"
            raise DataError(f"{path / ABOUT}: {what}{'' if unfinished else '; causalneg encode writes it'}")
        try:
            ids = (path / IDS).read_text(encoding="utf-8").split("\n")[:-1]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path / IDS}: cannot be read ({error}); encode again") from error
        if len(ids) != about.count:
            raise DataError(f"{path / IDS}: has {len(ids)} ids for {about.count} vectors; encode again")
        found = cls(path, about, ids)
        assert found.vectors.shape == (about.count, about.dim)
        return found

    @cached_property
    def vectors(self) -> Float32[np.ndarray, "texts dim"]:
        """The vectors, memory-mapped and read-only.

        Raises:
            DataError: The file is damaged.
        """
        return _mapped(self.path, self.about, write=False)


def write_vectors(
    out: Path,
    about: About,
    ids: Sequence[str],
    encode: Callable[[int, int], Float[np.ndarray, "some dim"]],
    *,
    share: tuple[int, int] = (0, 1),
) -> bool:
    """Encode texts into a folder; what is there already is not encoded again.

    Several processes may fill one folder, each its share of the blocks; the last one to end finishes it.

    Args:
        out: The folder.
        about: What goes there.
        ids: Id of each text.
        encode: Gives the vectors of the texts from one row to before another.
        share: Number of this process, from 0, and how many there are.

    Returns:
        Whether the folder is finished.

    Raises:
        ConfigError: There is no such share.
        DataError: Other vectors are there, or a vector is not finite.
    """
    number, processes = share
    if not 0 <= number < processes:
        raise ConfigError(f"shard: must be from 0/{processes} to {processes - 1}/{processes}, got {number}")
    begun = out / _PARTS / ABOUT
    there = _about(out / ABOUT) or _about(begun)
    if there is not None and (differs := there.differs(about)):
        raise DataError(f"{out}: holds vectors of other content ({differs}); remove it or give another name")
    if (out / ABOUT).is_file():
        return True
    if not begun.is_file():
        if not (out / _PARTS).is_dir() and out.is_dir() and any(out.iterdir()):
            raise DataError(f"{out}: the folder is not empty; remove it or give another name")
        _begin(out, about, ids)
    vectors = _mapped(out, about, write=True)
    for block in range(number, about.blocks, processes):
        done = out / _PARTS / f"{block:06d}"
        if done.is_file():
            continue
        first, last = block * about.block, min((block + 1) * about.block, about.count)
        made = np.asarray(encode(first, last), dtype=np.float32)
        bad = ~np.isfinite(made).all(axis=1)
        if bad.any():
            raise DataError(f"the vector of '{ids[first + int(np.argmax(bad))]}' is not finite")
        vectors[first:last] = made
        vectors.flush()  # type: ignore[attr-defined]  # a memory map
        atomic_write(done, "")
    return _finished(out, about)


def _begin(out: Path, about: About, ids: Sequence[str]) -> None:
    """Make the files, once, however many processes start together."""
    for attempt in range(_ATTEMPTS):
        try:
            with locked(out / _PARTS):
                if not (out / _PARTS / ABOUT).is_file():
                    _make_file(out, about)
                    atomic_write(out / IDS, "".join(f"{id}\n" for id in ids))
                    atomic_write(out / _PARTS / ABOUT, json.dumps(asdict(about), indent=1) + "\n")
            return
        except DataError:  # another process is making them
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(_PAUSE)


def _finished(out: Path, about: About) -> bool:
    if not all((out / _PARTS / f"{block:06d}").is_file() for block in range(about.blocks)):
        return (out / ABOUT).is_file()  # another process may have finished it just now
    atomic_write(out / ABOUT, json.dumps(asdict(about), indent=1) + "\n")
    for file in (out / _PARTS).glob("*"):
        file.unlink(missing_ok=True)
    if (out / _PARTS).is_dir():
        (out / _PARTS).rmdir()
    return True


def _about(path: Path) -> About | None:
    try:
        return About(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, ConfigError) as error:
        raise DataError(f"{path}: does not describe vectors ({error}); encode again") from error


def _make_file(out: Path, about: About) -> None:
    """An empty file for all vectors, of their final size."""
    out.mkdir(parents=True, exist_ok=True)
    shape = (about.count, about.dim)
    with atomic_path(out / f"vectors.{about.form}") as temporary:
        if about.form == "npy":
            np.lib.format.open_memmap(temporary, "w+", np.float32, shape).flush()
            return
        size = about.count * about.dim * 4
        tensor = {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]}
        header = json.dumps({_TENSOR: tensor}).encode()
        header += b" " * (-len(header) % 8)
        with temporary.open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + size)


def _mapped(out: Path, about: About, *, write: bool) -> np.ndarray:
    path, shape = out / f"vectors.{about.form}", (about.count, about.dim)
    mode: Literal["r", "r+"] = "r+" if write else "r"
    found: np.ndarray
    try:
        if about.form == "npy":
            found = np.load(path, mmap_mode=mode, allow_pickle=False)
        else:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                tensor = json.loads(file.read(length))[_TENSOR]
            if tensor["dtype"] != "F32":
                raise ValueError(f"numbers of type {tensor['dtype']}")
            offset = 8 + length + tensor["data_offsets"][0]
            found = np.memmap(path, np.float32, mode, offset, tuple(tensor["shape"]))
    except (OSError, ValueError, KeyError, TypeError, EOFError, struct.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); encode again") from error
    if found.shape != shape or found.dtype != np.float32:
        raise DataError(f"{path}: has the shape {found.shape}, not {shape}; encode again")
    return found
