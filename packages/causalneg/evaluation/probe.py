"""The source shortcut of an encoder, measured on held-out queries: texts in, one report out."""

from __future__ import annotations

import hashlib
import json
import random
import zlib
from collections.abc import Sequence

import numpy as np

from causalneg.data import Dataset, resolve_passage
from causalneg.data.dataset import PassagePool
from causalneg.data.schema import Example
from causalneg.encoders import Encoder, encode
from causalneg.evaluation.diagnostics import SourceReport, diagnose_sources
from causalneg.text.style import strip_style, stylise
from common.ragged import Ragged


class Probe:
    """Held-out queries with their negatives, and documents in two styles, ready for any encoder.

    The documents are positives and mined negatives of the queries, half of them each as far as they go. Each
    is compared with its query twice: without turns of phrase, and with one in every sentence.

    Args:
        examples: Queries that are not trained on, with mined and generated negatives.
        dataset: The corpus that passages without a text of their own are read from.
        documents: How many documents are restyled.
        temperature: tau of the training loss, for the gradients.

    Raises:
        DataError: A passage refers to a document that is not in the corpus.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        dataset: Dataset,
        *,
        documents: int = 1000,
        temperature: float = 0.05,
    ) -> None:
        self.temperature = temperature
        self.queries = [e.query.text for e in examples]
        pool = PassagePool()
        row = pool.row
        self.positive = np.array([row(e.positives[0]) for e in examples], dtype=np.int64)
        negatives = [
            (i, row(n), n.source == "generated") for i, e in enumerate(examples) for n in e.negatives
        ]
        self.row = np.array([i for i, _, _ in negatives], dtype=np.int64)
        self.negative = np.array([r for _, r, _ in negatives], dtype=np.int64)
        self.generated = np.array([g for _, _, g in negatives], dtype=bool)
        self.texts = [resolve_passage(p, dataset) for p in pool.passages]
        answers = [(i, int(r)) for i, r in enumerate(self.positive)]
        mined = [(i, r) for i, r, generated in negatives if not generated]
        half = documents // 2
        chosen = _some(mined, documents - min(half, len(answers))) + _some(answers, half)
        self.document_row = np.array([i for i, _ in chosen], dtype=np.int64)
        self.plain = [strip_style(self.texts[r]) for _, r in chosen]
        self.styled = [stylise(t, 1.0, random.Random(zlib.crc32(t.encode()))) for t in self.plain]
        self._tokens: dict[str, dict[str, Ragged]] = {}

    def report(self, encoder: Encoder, *, whole: bool = True) -> SourceReport:
        """Measure an encoder.

        Args:
            encoder: The encoder.
            whole: False leaves out the slow parts, the probe on the embeddings and most permutations.
        """
        parts = self._tokenized(encoder)
        query, texts, plain, styled = (
            encode(encoder, parts[name], query=name == "queries") for name in parts
        )
        return diagnose_sources(
            query,
            texts[self.negative],
            self.row,
            self.generated,
            positive=texts[self.positive],
            plain=plain,
            styled=styled,
            document_row=self.document_row,
            temperature=self.temperature,
            probe=whole,
            permutations=200 if whole else 20,
        )

    @property
    def fingerprint(self) -> str:
        """A hash of all that is measured: probes that share it say the same of an encoder."""
        texts = [self.queries, self.texts, self.plain, self.styled, self.temperature]
        digest = hashlib.sha256(json.dumps(texts).encode())
        for rows in (self.positive, self.row, self.negative, self.generated, self.document_row):
            digest.update(rows.tobytes())
        return digest.hexdigest()[:16]

    def figures(self, encoder: Encoder) -> dict[str, float]:
        """The quick figures, to follow through training; what cannot be measured is left out."""
        found = self.report(encoder, whole=False).figures()
        return {name: value for name, value in found.items() if np.isfinite(value)}

    def _tokenized(self, encoder: Encoder) -> dict[str, Ragged]:
        key = encoder.tokenizer_fingerprint
        if key not in self._tokens:
            named = {"queries": self.queries, "texts": self.texts, "plain": self.plain, "styled": self.styled}
            self._tokens[key] = {n: encoder.tokenize(t, query=n == "queries") for n, t in named.items()}
        return self._tokens[key]


def _some(pairs: Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """So many of the pairs, the same on every machine."""
    chosen = np.random.default_rng(0).permutation(len(pairs))[: max(count, 0)]
    return [pairs[i] for i in sorted(chosen.tolist())]
