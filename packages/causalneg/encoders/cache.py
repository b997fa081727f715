"""What encoders made, kept on disk: embeddings by text and encoder, token ids by corpus and tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from causalneg.encoders.base import Encoder, encode
from common.errors import DataError
from common.files import atomic_path, fill_once, reserve
from common.ragged import Ragged

_CHECKED = 16_384  # embeddings in memory at a time
_TOKENIZED = 16_384  # texts whose tokens are in memory at a time where only their number matters


def tokenize(
    encoder: Encoder, texts: Sequence[str], *, query: bool, cache: Path | None = None, key: str = ""
) -> Ragged:
    """Token ids of texts, kept on disk for the next encoder with the same tokenizer.

    Args:
        encoder: Whose tokenizer.
        texts: The texts.
        query: Whether they are queries.
        cache: Folder to keep them in; None keeps nothing.
        key: Fingerprint of the texts, such as that of the corpus.
    """
    if cache is None or not key:
        return encoder.tokenize(texts, query=query)
    folder = cache / f"{key}-{'queries' if query else 'documents'}-{encoder.tokenizer_fingerprint}"

    def fill(empty: Path) -> None:
        made, cut = encoder.tokenize_and_cut(texts, query=query)
        made.save(empty, "tokens")
        Ragged(cut, np.array([0, len(cut)])).save(empty, "cut")

    fill_once(folder, fill)
    found = Ragged.load(folder, "tokens")
    if len(found) != len(texts):
        raise DataError(f"{folder}: holds {len(found)} texts, not {len(texts)}; remove it")
    if (folder / "cut.offsets.npy").exists():
        encoder.count_cut((texts[at] for at in Ragged.load(folder, "cut").values.tolist()), query=query)
    return found


def corpus_embeddings(
    encoder: Encoder,
    texts: Sequence[str],
    *,
    cache: Path | None = None,
    progress: bool = False,
    batch_tokens: int | None = None,
    block: int = 16_384,
) -> Float32[np.ndarray, "documents dim"]:
    """Embeddings of documents; with a cache only texts that it has not seen are encoded.

    Args:
        encoder: The encoder.
        texts: The documents.
        cache: Folder of :func:`cached_embeddings`; None keeps nothing.
        progress: Whether to show a progress bar.
        batch_tokens: Tokens per forward pass; None takes the encoder's own number.
        block: Texts encoded and written at a time: what a run that is killed loses at most.
    """

    def run(some: Sequence[str]) -> Float32[np.ndarray, "some dim"]:
        tokens = encoder.tokenize(some, query=False)
        return encode(encoder, tokens, query=False, batch_tokens=batch_tokens, progress=progress)

    if cache is None:
        return run(texts)
    encoded: set[str] = set()

    def vectors(some: list[str]) -> Float32[np.ndarray, "some dim"]:
        encoded.update(some)
        return run(some)

    found = cached_embeddings(vectors, texts, cache, encoder.fingerprint, encoder.dim, block=block)
    known = [text for text in texts if text not in encoded]
    for start in range(0, len(known), _TOKENIZED):  # so that what is cut is counted in these too
        encoder.tokenize(known[start : start + _TOKENIZED], query=False)
    return found


def cached_embeddings(
    encode: Callable[[list[str]], Float[np.ndarray, "some dim"]],
    texts: Sequence[str],
    cache: Path | None,
    fingerprint: str,
    dim: int,
    *,
    block: int = 16_384,
) -> Float[np.ndarray, "texts dim"]:
    """Embeddings of texts; a text that this encoder has encoded before is read, not encoded.

    The folder of an encoder holds one pair of files for each list of texts: ``NAME.npy`` with the embeddings
    and ``NAME.keys.npy`` with the hashes of the texts. New texts are encoded in blocks, each written at once,
    so a run that is killed loses one block. Runs may share a cache at the same time.

    Args:
        encode: Gives the embeddings of some texts, in their order.
        texts: The texts.
        cache: Folder of the cache; None: nothing is kept, and the result is in memory.
        fingerprint: Identity of the encoder, weights and settings.
        dim: Dimension of its embeddings.
        block: Texts encoded and written at a time.

    Returns:
        One row for each text; memory-mapped and read-only with a cache.

    Raises:
        DataError: Embeddings have the wrong shape or are not finite, or a cached file is damaged or has
            another dimension.
    """
    if cache is None:
        out = np.empty((len(texts), dim), dtype=np.float32)
        for start in range(0, len(texts), block):
            out[start : start + block] = _encoded(encode, list(texts[start : start + block]), dim)
        return out
    if not len(texts):
        return np.zeros((0, dim), dtype=np.float32)
    folder = Path(cache) / hashlib.blake2b(fingerprint.encode(), digest_size=12).hexdigest()
    keys = _text_keys(texts)
    whole = _Part(folder, hashlib.blake2b(keys.tobytes(), digest_size=12).hexdigest())
    if whole.keys.is_file() and whole.vectors.is_file():
        return whole.open(dim)[1]
    store = _Store(folder, dim)
    different, first = np.unique(keys, return_index=True)
    missing = np.sort(first[~np.isin(different, store.keys())])
    for start in range(0, len(missing), block):
        chosen = missing[start : start + block]
        store.add(keys[chosen], _encoded(encode, [texts[at] for at in chosen], dim))
    whole.write(keys, lambda out: store.copy(keys, out, block), dim)
    store.remove_blocks(keys)
    return whole.open(dim)[1]


def _encoded(
    encode: Callable[[list[str]], Float[np.ndarray, "some dim"]], texts: list[str], dim: int
) -> Float32[np.ndarray, "some dim"]:
    vectors = np.asarray(encode(texts), dtype=np.float32)
    if vectors.shape != (len(texts), dim):
        raise DataError(
            f"the encoder gave embeddings of shape {vectors.shape} for {len(texts)} texts of dimension {dim}"
        )
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        text = texts[int(np.argmax(bad))]
        raise DataError(f"the encoder gave an embedding that is not finite for the text '{text[:60]}'")
    return vectors


@dataclass(frozen=True)
class _Part:
    """A file of embeddings and the file of their keys, which is written last."""

    folder: Path
    name: str

    @property
    def vectors(self) -> Path:
        return self.folder / f"{self.name}.npy"

    @property
    def keys(self) -> Path:
        return self.folder / f"{self.name}.keys.npy"

    def open(self, dim: int) -> tuple[np.ndarray, Float32[np.ndarray, "texts dim"]]:
        """Keys and embeddings; the latter memory-mapped."""
        keys, vectors = _load(self.keys), _load(self.vectors, mapped=True)
        if vectors.ndim != 2 or vectors.shape[1] != dim:
            found = vectors.shape[1] if vectors.ndim == 2 else f"shape {vectors.shape}"
            raise DataError(
                f"{self.vectors}: cached embeddings have dimension {found}, the encoder gives {dim}; "
                f"remove the folder {self.folder}"
            )
        if len(vectors) != len(keys) or vectors.dtype != np.float32:
            raise DataError(f"{self.vectors}: does not fit its keys; remove the folder {self.folder}")
        for start in range(0, len(vectors), _CHECKED):
            bad = ~np.isfinite(vectors[start : start + _CHECKED]).all(axis=1)
            if bad.any():
                row = start + int(np.argmax(bad))
                raise DataError(
                    f"{self.vectors}: the cached embedding in row {row} is not finite; "
                    f"remove the folder {self.folder}"
                )
        return keys, vectors

    def write(self, keys: np.ndarray, fill: Callable[[np.ndarray], None], dim: int) -> None:
        with atomic_path(self.vectors) as temporary:
            array = np.lib.format.open_memmap(temporary, "w+", np.float32, (len(keys), dim))
            reserve(temporary)
            fill(array)
            array.flush()
        with atomic_path(self.keys) as temporary, temporary.open("wb") as file:
            np.save(file, keys, allow_pickle=False)


def _load(path: Path, *, mapped: bool = False) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove the folder {path.parent}") from error
    return array


def _text_keys(texts: Sequence[str]) -> np.ndarray:
    """A hash of each text, 16 bytes."""
    digests = (
        hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest() for text in texts
    )
    return np.frombuffer(b"".join(digests), dtype="S16")


class _Store:
    """All embeddings that an encoder's folder holds, by key; files once open stay readable when removed."""

    def __init__(self, folder: Path, dim: int) -> None:
        self._folder, self._dim = folder, dim
        self._parts: list[tuple[_Part, np.ndarray, np.ndarray]] = []
        for path in sorted(folder.glob("*.keys.npy")):
            part = _Part(folder, path.name.removesuffix(".keys.npy"))
            try:
                self._parts.append((part, *part.open(dim)))
            except FileNotFoundError:  # another run has just put this block into its whole list
                continue

    def keys(self) -> np.ndarray:
        """Keys of all embeddings."""
        return np.concatenate([np.zeros(0, dtype="S16"), *(keys for _, keys, _ in self._parts)])

    def add(self, keys: np.ndarray, vectors: Float32[np.ndarray, "texts dim"]) -> None:
        """Write a block."""
        part = _Part(self._folder, f"block-{hashlib.blake2b(keys.tobytes(), digest_size=12).hexdigest()}")

        def fill(out: np.ndarray) -> None:
            out[:] = vectors

        part.write(keys, fill, self._dim)
        self._parts.append((part, *part.open(self._dim)))

    def copy(self, keys: np.ndarray, out: np.ndarray, block: int) -> None:
        """Copy the embeddings of keys, in their order."""
        for _, own, vectors in self._parts:
            order = np.argsort(own, kind="stable")
            place = np.searchsorted(own, keys, sorter=order)
            row = order[np.minimum(place, len(own) - 1)]
            wanted = np.flatnonzero(own[row] == keys)
            for start in range(0, len(wanted), block):
                some = wanted[start : start + block]
                out[some] = vectors[row[some]]

    def remove_blocks(self, keys: np.ndarray) -> None:
        """Remove the blocks that hold nothing but these keys."""
        for part, own, _ in self._parts:
            if part.name.startswith("block-") and np.isin(own, keys).all():
                part.keys.unlink(missing_ok=True)
                part.vectors.unlink(missing_ok=True)
