"""Search of vectors that stand on disk: exact, or by an index of faiss that is kept beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import faiss
import numpy as np
from jaxtyping import Float, Float32

from causalneg.encoders import Encoder, encode
from causalneg.search.approximate import Index, build_index, search_index
from causalneg.search.base import Found
from causalneg.search.exact import exact_search
from causalneg.search.vectors import VectorFolder
from common.errors import ConfigError, DataError
from common.files import atomic_path, atomic_write

EXACT = "exact"


def write_index(folder: VectorFolder, kind: Index) -> Path:
    """Build an index of faiss over vectors and keep it in their folder.

    Args:
        folder: The vectors.
        kind: ``hnsw`` or ``ivf``.

    Returns:
        The file. One that was made of the same vectors is left as it is.

    Raises:
        ConfigError: There is no such kind.
        DataError: A vector is not finite.
    """
    if kind not in get_args(Index):
        raise ConfigError(f"index must be one of {', '.join(get_args(Index))}, got '{kind}'")
    path = folder.path / f"{kind}.faiss"
    if path.is_file() and _made_of(folder, kind):
        return path
    built = build_index(folder.vectors, kind)
    with atomic_path(path) as temporary:
        faiss.write_index(built, str(temporary))
    atomic_write(path.with_suffix(".json"), json.dumps(_identity(folder, kind), indent=1) + "\n")
    return path


def open_index(folder: VectorFolder, kind: str) -> Any:
    """Read what :func:`write_index` wrote.

    Raises:
        ConfigError: There is no such kind.
        DataError: There is none, it is of other vectors, or it cannot be read.
    """
    if kind not in get_args(Index):
        raise ConfigError(f"index must be one of {EXACT}, {', '.join(get_args(Index))}, got '{kind}'")
    path = folder.path / f"{kind}.faiss"
    advice = f"causalneg index {folder.path} --kind {kind} makes it"
    if not path.is_file():
        raise DataError(f"{path}: missing; {advice}")
    if not _made_of(folder, kind):
        raise DataError(f"{path}: was made of other vectors; {advice}")
    try:
        built = faiss.read_index(str(path))
    except RuntimeError as error:
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0]}); {advice}") from error
    if (built.ntotal, built.d) != (folder.about.count, folder.about.dim):
        raise DataError(f"{path}: holds {built.ntotal} vectors of {built.d} numbers; {advice}")
    return built


def _identity(folder: VectorFolder, kind: str) -> dict[str, Any]:
    about = folder.about
    return {"kind": kind, "content": about.content, "fingerprint": about.fingerprint, "count": about.count}


def _made_of(folder: VectorFolder, kind: str) -> bool:
    try:
        return bool(json.loads((folder.path / f"{kind}.json").read_text()) == _identity(folder, kind))
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class Hit:
    """A document that was found.

    Args:
        id: Its id.
        score: Inner product with the query.
    """

    id: str
    score: float


class StoredSearch:
    """Ranks documents whose vectors stand on disk for queries given as texts or vectors.

    Scores and order are those of :func:`causalneg.search.exact_search`, and so of ``causalneg evaluate``.

    Args:
        folder: Vectors of documents.
        encoder: The encoder that made them; None where queries are vectors.
        index: ``exact``, or the kind of an index that was made.
        effort: Candidates that ``hnsw`` looks at, lists that ``ivf`` looks into.
        devices: Devices that an exact search is spread over; empty: the CPU.

    Raises:
        ConfigError: There is no such index.
        DataError: The vectors are of queries or of another encoder, or the index is not there.
    """

    def __init__(
        self,
        folder: VectorFolder,
        encoder: Encoder | None,
        *,
        index: str = EXACT,
        effort: int = 128,
        devices: Sequence[str] = (),
    ) -> None:
        if folder.about.part != "documents":
            raise DataError(f"{folder.path}: holds vectors of queries; name those of documents")
        self.folder, self.encoder, self.effort, self.devices = folder, encoder, effort, devices
        if encoder is not None and encoder.fingerprint != folder.about.fingerprint:
            raise DataError(
                f"{folder.path}: was made by another encoder than the one at hand "
                f"({folder.about.encoder} as it was then); name that one with --encoder, or encode again"
            )
        self.index, self._built = index, None if index == EXACT else open_index(folder, index)

    def embed(self, texts: Sequence[str], *, query: bool = True) -> Float32[np.ndarray, "texts dim"]:
        """Vectors of texts.

        Raises:
            DataError: There is no encoder.
        """
        if self.encoder is None:
            raise DataError("there is no encoder; name it with --encoder")
        return encode(self.encoder, self.encoder.tokenize(texts, query=query), query=query)

    def find(self, queries: Float[np.ndarray, "queries dim"], k: int) -> Found:
        """Scores and rows of the k best documents of every query; see :mod:`causalneg.search.base`."""
        if self._built is None:
            return exact_search(queries, self.folder.vectors, k, devices=self.devices)
        kind: Any = self.index
        return search_index(self._built, queries, self.folder.vectors, k, index=kind, effort=self.effort)

    def hits(self, queries: Float[np.ndarray, "queries dim"], k: int) -> list[list[Hit]]:
        """The k best documents of every query, best first."""
        scores, rows = self.find(queries, k)
        ids = self.folder.ids
        return [
            [Hit(ids[row], score) for score, row in zip(*pair, strict=True) if row >= 0]
            for pair in zip(scores.tolist(), rows.tolist(), strict=True)
        ]
