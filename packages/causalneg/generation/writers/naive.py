"""The writer that does not ask what a query needs: on-topic text without a point, in a manner of its own.

It plays the language model that is asked "write a hard negative" and no more. What it writes is put together
from sentences of the corpus, so little but the dialled manner tells it from the corpus.
"""

from __future__ import annotations

import random
from collections import defaultdict
from functools import cached_property
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le

from causalneg.data.schema import Document, Negative, Passage
from causalneg.generation.jobs import Failure, Job, done
from causalneg.generation.writers.base import MAX_NEGATIVES, Pair, Writer, Written, draws
from causalneg.generation.writers.rules import check_artifact, rewritten
from causalneg.text.corpus import Corpus
from causalneg.text.style import stylise
from causalneg.text.words import content_words, split_sentences, words

VERSION = 1
_TOPICAL = 4
_NEAREST = 24
_SOURCES = 5
_COMMON = 1000
_TRIES = 6


class NaiveWriter(Writer):
    """On-topic negatives without analysis; see :class:`causalneg.generation.writers.base.Writer`.

    A negative has a few sentences from passages that share the query's rarest words, and may go on with
    sentences that could stand anywhere. Its length is drawn from the corpus. Nothing keeps it from answering
    by accident.

    Args:
        corpus: Where the sentences come from.
        artifact: Share of the sentences that get a turn of phrase of the simulated writer; with 0 sentences
            stay as they are in the corpus.
        seed: Decides every draw.

    Raises:
        ConfigError: ``artifact`` is not a share.
    """

    name = "naive"

    def __init__(
        self, *, corpus: Corpus, artifact: Annotated[float, Ge(0), Le(1)] = 0.0, seed: int = 0
    ) -> None:
        check_artifact(artifact)
        self.corpus, self.artifact, self.seed = corpus, artifact, seed

    @property
    def identity(self) -> dict[str, str]:
        """What decides its texts; see the base class."""
        settings = f"version {VERSION}, artifact {self.artifact:g}, corpus {self.corpus.fingerprint}"
        return {"writer": self.name, "seed": str(self.seed), "settings": settings}

    def write(self, pair: Pair) -> Job[Written]:
        """Write three negatives without a view of the need; see the base class."""
        found = self._write(pair)
        return done(Written(failure=found) if isinstance(found, Failure) else Written(None, tuple(found)))

    def rewrite(self, document: Document) -> Job[Passage | Failure]:
        """Say the same in the writer's own voice; see the base class."""
        text = self._rewritten(document.text, draws(self.seed, "rewrite", document.id or document.text))
        return done(rewritten(document, text, self.name))

    def _rewritten(self, text: str, rng: random.Random) -> str:
        return stylise(text, self.artifact, rng) if self.artifact > 0 else text

    def _write(self, pair: Pair) -> list[Negative] | Failure:
        rng = draws(self.seed, "write", pair.query.id, pair.positive.id)
        # A query whose words no other passage has gets what was mined for it.
        near = self._near(pair) or {
            row: frozenset() for c in pair.candidates if (row := self._row_of.get(c.id)) is not None
        }
        if not near:
            return Failure("nothing on the topic", f"no other passage has a word of query {pair.query.id}")
        found: dict[str, Negative] = {}
        for _ in range(2 * MAX_NEGATIVES):
            if len(found) == MAX_NEGATIVES:
                break
            title, text = self._compose(near, rng)
            found.setdefault(
                text,
                Negative(
                    title=title,
                    text=self._rewritten(text, rng),
                    source="generated",
                    backend=self.name,
                    seed=self.seed,
                ),
            )
        return list(found.values())

    def _near(self, pair: Pair) -> dict[int, frozenset[str]]:
        """The other passages that have most of the query's rarest words, and which they have."""
        weights = self.corpus.weights(pair.query.text)
        rarest = sorted(weights, key=lambda s: (-round(weights[s], 9), s))
        found: dict[int, set[str]] = defaultdict(set)
        for place, stemmed in enumerate(rarest):
            if place >= _TOPICAL and len(found) > _SOURCES:
                break
            rows = self._rows.get(stemmed, [])
            if len(rows) > _COMMON and len(found) > _SOURCES:
                continue
            for row in rows:
                if self.corpus.documents[row].id != pair.positive.id:
                    found[row].add(stemmed)
        share = {row: round(sum(weights[s] for s in sorted(stems)), 9) for row, stems in found.items()}
        nearest = sorted(found, key=lambda row: (-share[row], row))[:_NEAREST]
        return {row: frozenset(found[row]) for row in nearest}

    def _compose(self, near: dict[int, frozenset[str]], rng: random.Random) -> tuple[str, str]:
        """Sentences of passages on the topic, then sentences that could stand anywhere."""
        length = int(rng.choice(self._usual_lengths))
        rows = rng.sample(list(near), min(_SOURCES, len(near)))
        sentences: list[str] = []
        count = 0
        for row in rows:
            view = self.corpus.view(self.corpus.documents[row])
            topical = [i for i, stems in enumerate(view.stems) if not near[row].isdisjoint(stems)]
            start = rng.choice(topical) if topical else rng.randrange(max(1, len(view.sentences)))
            sentences += view.sentences[start : start + 2]
            count += sum(view.lengths[start : start + 2])
            if count > 0.8 * length:
                break
        for _ in range(_TRIES):
            if count >= length or not self._generic:
                break
            sentence = rng.choice(self._generic)
            sentences.append(sentence)
            count += len(words(sentence))
        title = self.corpus.documents[rows[0]].title
        return title, " ".join(dict.fromkeys(sentences))

    @cached_property
    def _rows(self) -> dict[str, list[int]]:
        """Documents of each stem, as rows."""
        found: dict[str, list[int]] = defaultdict(list)
        for row, document in enumerate(self.corpus.documents):
            for stemmed in sorted(set(content_words(document.content))):
                found[stemmed].append(row)
        return found

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {document.id: row for row, document in enumerate(self.corpus.documents)}

    @cached_property
    def _usual_lengths(self) -> list[int]:
        low, high = np.quantile(self.corpus.lengths, (0.1, 0.9))
        return [int(n) for n in self.corpus.lengths if low <= n <= high]

    @cached_property
    def _generic(self) -> list[str]:
        """The half of the corpus's sentences whose words are the most common ones."""
        weighed = []
        for document in self.corpus.documents:
            for sentence in split_sentences(document.text):
                stems = set(content_words(sentence))
                if stems:
                    mean = sum(self.corpus.weight(s) for s in sorted(stems)) / len(stems)
                    weighed.append((round(mean, 9), sentence))
        weighed.sort()
        return list(dict.fromkeys(sentence for _, sentence in weighed[: max(1, len(weighed) // 2)]))
