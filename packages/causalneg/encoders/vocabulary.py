"""Vocabularies of words, made from a corpus: the same on every machine, and in a form others can load."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from causalneg.encoders.base import TOKENIZER_FILE, WEIGHTS_FILE, Encoder, save_weights
from common.errors import DataError
from common.ragged import Ragged

UNKNOWN = "[UNK]"
"""A word, or a letter, that the corpus never had; always token 0."""

START = "[CLS]"
"""Stands before every text where an encoder wants it."""

WORDS = r"\w+"
"""Runs of letters, digits, marks and underscores."""

WORDS_AND_STOPS = r"\w+|[.;:!?]"
"""The same, and the signs that end a sentence or a part of one."""

_PIECE = "##"
_BATCH = 1024


class WordEncoder(Encoder):
    """An encoder over a vocabulary of :func:`word_tokenizer`."""

    tokenizer: Tokenizer

    def _save_parts(self, folder: Path) -> None:
        save_weights(self, folder / WEIGHTS_FILE)
        (folder / TOKENIZER_FILE).write_text(canonical(self.tokenizer), encoding="utf-8")

    def _hash_vocabulary(self, update: Callable[[bytes], object]) -> None:
        update(canonical(self.tokenizer).encode())


def _splitter(pattern: str) -> tuple[Any, Any]:
    normal = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return normal, pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)


def token_rows(tokenizer: Tokenizer, texts: Sequence[str]) -> Ragged:
    """Token ids (int32) of texts, one row each."""
    values: list[np.ndarray] = []
    lengths = np.zeros(len(texts) + 1, dtype=np.int64)
    for start in range(0, len(texts), _BATCH):
        part = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts[start : start + _BATCH]))]
        lengths[start + 1 : start + 1 + len(part)] = [len(ids) for ids in part]
        values.append(np.fromiter((i for ids in part for i in ids), dtype=np.int32))
    return Ragged(np.concatenate(values) if values else np.zeros(0, np.int32), np.cumsum(lengths))


def document_frequency(rows: Ragged, size: int) -> Int[np.ndarray, " size"]:
    """In how many rows each token occurs."""
    text = np.repeat(np.arange(len(rows), dtype=np.int64), rows.lengths)
    pairs = np.unique(text * size + rows.values)
    return np.bincount(pairs % size, minlength=size)


def inverse_document_frequency(
    frequency: Int[np.ndarray, " size"], documents: int
) -> Float[np.ndarray, " size"]:
    """How much a word tells: ``log(1 + (N - df + 1/2) / (df + 1/2))``, positive for any frequency.

    Source: Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, eq. 3.3,
    with Lucene's 1 inside the logarithm.
    """
    return np.log1p((documents - frequency + 0.5) / (frequency + 0.5))


def word_tokenizer(
    texts: Sequence[str],
    *,
    min_count: int = 1,
    max_words: int | None = None,
    pattern: str = WORDS,
    spell: bool = False,
    start: bool = False,
) -> tuple[Tokenizer, Int[np.ndarray, " size"]]:
    """A tokenizer whose tokens are the lower-cased words of a corpus, numbers included.

    Token 0 is :data:`UNKNOWN`. Words stand in the order of falling document frequency, ties in the
    order of their letters, so that neither a hash seed nor the number of threads changes anything.

    Args:
        texts: The corpus.
        min_count: Times a word must occur.
        max_words: Words to keep, the most frequent; all by default.
        pattern: What a word is, as a regular expression (Oniguruma).
        spell: Whether a word without a token is spelled: its longest beginning that is a word, then
            letter by letter. Without it, it becomes :data:`UNKNOWN`.
        start: Whether every text begins with the token :data:`START`.

    Returns:
        The tokenizer, and in how many texts each token occurs.

    Raises:
        DataError: No word is left.
        ValueError: ``min_count`` or ``max_words`` is not positive.
    """
    for name, value in (("min_count", min_count), ("max_words", max_words)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    normal, split = _splitter(pattern)
    counter = Tokenizer(models.WordLevel({UNKNOWN: 0}, unk_token=UNKNOWN))
    counter.normalizer, counter.pre_tokenizer = normal, split
    counter.train_from_iterator(
        texts,
        trainers.WordLevelTrainer(
            vocab_size=2**31, min_frequency=min_count, show_progress=False, special_tokens=[UNKNOWN]
        ),
    )
    frequency = document_frequency(token_rows(counter, texts), counter.get_vocab_size())
    found = sorted(
        (-int(frequency[index]), word) for word, index in counter.get_vocab().items() if word != UNKNOWN
    )
    words = [word for _, word in found][:max_words]
    if not words:
        raise DataError(f"no word occurs {min_count} times in {len(texts)} texts; give a corpus with words")
    special = [UNKNOWN, START] if start else [UNKNOWN]
    letters = sorted({letter for word in words for letter in word}) if spell else []
    known = set(words)
    listed = [
        *special,
        *(letter for letter in letters if letter not in known),
        *(_PIECE + letter for letter in letters),
        *words,
    ]
    vocabulary = {word: index for index, word in enumerate(listed)}
    model: Any = (
        models.WordPiece(vocabulary, unk_token=UNKNOWN, continuing_subword_prefix=_PIECE)
        if spell
        else models.WordLevel(vocabulary, unk_token=UNKNOWN)
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normal, split
    tokenizer.add_special_tokens(special)
    if start:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{START} $A", special_tokens=[(START, vocabulary[START])]
        )
    return tokenizer, document_frequency(token_rows(tokenizer, texts), len(listed))


def canonical(tokenizer: Tokenizer) -> str:
    """The tokenizer as JSON with sorted keys; equal for equal tokenizers."""
    return json.dumps(json.loads(tokenizer.to_str()), sort_keys=True, ensure_ascii=False)


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer's JSON.

    Raises:
        DataError: The file is missing or holds no tokenizer.
    """
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: missing; save the encoder again") from None
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{path}: holds no tokenizer ({error}); save the encoder again") from error
