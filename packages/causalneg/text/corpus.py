"""What a corpus teaches a writer without a model: which words are rare, what there is of each kind.

Over 400 lines: what is learned in one pass over the documents, and the questions that it answers.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from causalneg.data.dataset import Dataset
from causalneg.data.schema import Document, StrategyKind
from causalneg.text.words import (
    STOP_WORDS,
    AnswerKind,
    Span,
    answer_kind,
    content_words,
    find_names,
    find_spans,
    split_sentences,
    stem,
    words,
)

EntityKind = Literal["person", "place", "organisation", "event", "people", "acronym", "other"]
"""What a name names, as far as its words and its company say."""

_LAST: dict[EntityKind, frozenset[str]] = {
    "organisation": frozenset(
        (
            "academy agency army association authority band bank board brotherhood bureau cathedral "
            "church club co college commission committee company conference congress consortium corp "
            "corporation council court department division federation fc foundation fund government "
            "group hospital inc institute institution laboratory league library limited ltd ministry "
            "museum navy network office orchestra organisation organization parliament party press "
            "records regiment school senate service society studio studios team theatre theater "
            "times trust union university"
        ).split()
    ),
    "place": frozenset(
        (
            "avenue bay beach bridge building canal castle center centre city coast county creek "
            "desert district forest gardens hall harbor harbour hill hills hotel house island "
            "islands kingdom lake mountain mountains ocean palace park peninsula plain plaza point "
            "province region republic river road sea square stadium state states station street "
            "territory tower town township valley village"
        ).split()
    ),
    "event": frozenset(
        (
            "accord accords act agreement award awards bowl championship championships conference "
            "congress convention crisis crusade cup day election elections festival finals games "
            "massacre olympics rebellion revolt revolution series summit tournament treaty trial war "
            "wars"
        ).split()
    ),
}
_FIRST: dict[EntityKind, frozenset[str]] = {
    "person": frozenset(
        (
            "archbishop baron bishop captain cardinal chancellor colonel count countess dr. duchess "
            "duke earl emperor empress general governor judge justice king lady lieutenant lord "
            "major mr. mrs. ms. pope president prince princess professor queen saint secretary "
            "senator sir sultan tsar viscount"
        ).split()
    ),
    "organisation": frozenset(
        "academy bank church college council department institute ministry university".split()
    ),
    "place": frozenset(
        "cape cathedral county fort ft. isle lake mount mt. port province republic river".split()
    ),
    "event": frozenset("battle siege treaty war".split()),
}
_PEOPLE = re.compile(r".{2,}(?:ish|ese|ian|ean|can|ans|ench|utch|reek|ic|ist|ists|man|i)$")
_PLACE_BEFORE = frozenset("in at near around throughout outside across within".split())
_PERSON_AFTER = frozenset(
    (
        "said wrote argued claimed stated believed died married portrayed played starred who "
        "told asked thought himself herself recalled studied graduated"
    ).split()
)
_LIFE = re.compile(
    r"\((?:(?:also )?(?:born|née|c\.) |[^()]{0,60}?(?:\d{1,2} [A-Z][a-z]+|[A-Z][a-z]+ \d{1,2},) \d{3,4}|"
    r"[^()]{0,40}?\d{3,4} ?[\u2013-]+ ?\d{3,4}\))"
)
_BEFORE = re.compile(r"(\w+) $")
_AFTER = re.compile(r" (\w+)")
_SENTENCE_FIRST = re.compile(r"(?:^|[.!?:;]['\"\u201d\u2019)\]]*\s+)['\"\u201c\u2018(\[]*(\w+)")
_RAW_WORD = re.compile(r"[^\W\d_]+")
_BRACKETS = re.compile(r"\s*\([^)]*\)\s*$")


EDITS: tuple[StrategyKind, ...] = ("entity shift", "constraint violation", "relation break")
"""Strategies that put one thing in the place of another and leave the rest of a passage alone."""

CLOSE = 0.6
"""A sentence with so large a share of the best one's overlap with the query may answer as well."""

ANSWERING = 0.7
"""A sentence that covers so much of a query and has what is asked for is taken for an answer.

On wiki-mix (training questions, BM25's first fifteen) this takes 57 % of the true positives for answers, and
4 % of the mined negatives, some of which are.
"""


ANSWERING_EDITED = 0.9
"""The same for a text in which a thing that the query names gave way to another: it may keep more."""


OFF_TOPIC = 0.1
"""A text that covers less of a query is off its topic."""


def answering_limit(strategy: StrategyKind | None) -> float:
    """From which :meth:`Corpus.answering` on a text is taken for an answer.

    Args:
        strategy: How it was made not to answer; None if nobody said.
    """
    return ANSWERING_EDITED if strategy in EDITS else ANSWERING


def plain_title(title: str) -> str:
    """A title without what stands in brackets behind it, which only tells it from others of the same name."""
    return _BRACKETS.sub("", title).strip()


@dataclass(frozen=True, eq=False)
class View:
    """A document as rules see it.

    Args:
        document: The document.
        sentences: Its sentences.
        stems: Stems of the content words of each sentence.
    """

    document: Document
    sentences: list[str]
    stems: list[frozenset[str]]

    @cached_property
    def lengths(self) -> list[int]:
        """Number of words of each sentence."""
        return [len(words(s)) for s in self.sentences]

    @cached_property
    def title_stems(self) -> frozenset[str]:
        """Stems of the content words of the title."""
        return frozenset(content_words(self.document.title))

    @cached_property
    def all_stems(self) -> frozenset[str]:
        """Stems of the content words of title and text."""
        return self.title_stems.union(*self.stems)


def cut(document: Document) -> View:
    """Cut a document into sentences."""
    parts = split_sentences(document.text)
    return View(document, parts, [frozenset(content_words(s)) for s in parts])


class Corpus:
    """A corpus and what rules learn from it.

    - A word's weight is its idf, log(1 + N / df), over stems.
    - A word is *common* when it is written small more often than not inside sentences.
    - A name's kind comes from its words (``River``, ``University of``), from first names, which are learned
      from the titles and openings of biographies, and from the words around it.

    Args:
        documents: The corpus.
    """

    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = list(documents)
        self.by_id = {d.id: d for d in self.documents}
        self.by_title: dict[str, list[Document]] = defaultdict(list)
        self._views: dict[str, View] = {}
        self._kinds: dict[str, EntityKind] = {}
        frequency: Counter[str] = Counter()
        lengths, functions = [], []
        for document in self.documents:
            if document.title:
                self.by_title[document.title].append(document)
            content = document.content
            found = words(content)
            frequency.update({stem(w) for w in set(found)})
            lengths.append(len(found))
            functions.append(sum(w in STOP_WORDS for w in found) / max(1, len(found)))
        self._frequency = frequency
        self.lengths = np.sort(np.array(lengths, dtype=np.int64))
        self.function_shares = np.sort(np.array(functions, dtype=np.float64))
        self._idf = {w: math.log(1 + len(self.documents) / n) for w, n in frequency.items()}
        self._rarest = math.log(1 + max(1, len(self.documents)))

    @classmethod
    def of(cls, dataset: Dataset) -> Corpus:
        """The statistics of a data set's documents, learned once and kept with it, for that takes seconds.

        Args:
            dataset: The data set.
        """
        return dataset.derived(cls)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all documents in their order."""
        hasher = hashlib.blake2b(digest_size=8)
        for document in self.documents:
            hasher.update(f"{document.id}\0{document.title}\0{document.text}\0".encode())
        return hasher.hexdigest()

    @cached_property
    def _common(self) -> frozenset[str]:
        inside: Counter[str] = Counter()
        first: Counter[str] = Counter()
        for document in self.documents:
            inside.update(_RAW_WORD.findall(document.text))
            first.update(_SENTENCE_FIRST.findall(document.text))
        small: Counter[str] = Counter()
        capital: Counter[str] = Counter()
        for word, count in inside.items():
            low = word.lower()
            if word == low:
                small[low] += count
            else:
                capital[low] += count - first[word]
        return frozenset(w for w, count in small.items() if count > capital[w])

    def common(self, word: str) -> bool:
        """Whether a word in small letters is usually written so."""
        return word in self._common

    def weight(self, stemmed: str) -> float:
        """Idf of a stem; a stem that the corpus lacks weighs as much as one that a single document has."""
        return self._idf.get(stemmed, self._rarest)

    def knows(self, stemmed: str) -> bool:
        """Whether any document has a stem."""
        return stemmed in self._frequency

    def weights(self, text: str) -> dict[str, float]:
        """Stems of the content words of a text with their weights, as shares of their sum."""
        found = {s: self.weight(s) for s in sorted(set(content_words(text)))}
        total = sum(found.values())
        return {s: w / total for s, w in found.items()} if total else {}

    def view(self, document: Document) -> View:
        """A document cut into sentences; kept, for the same ones are asked for again and again."""
        known = self._views.get(document.id)
        if known is None or known.document != document:
            known = self._views[document.id] = cut(document)
        return known

    def coverage(self, weights: Mapping[str, float], stems: Collection[str]) -> float:
        """Share of a query's weight whose stems are there.

        Args:
            weights: Of the query, from :meth:`weights`.
            stems: Of a sentence or text.
        """
        return sum((weight for stemmed, weight in weights.items() if stemmed in stems), 0.0)

    def answer_sentences(self, query: str, view: View) -> set[int]:
        """Where a passage answers, as far as words tell.

        The sentences that cover the most of the query's weight, those within ``CLOSE`` of the best, and those
        that hold a thing of the kind asked for while they share something with the query.

        Args:
            query: The query's text.
            view: A passage that answers it.
        """
        weights, kind, asked = self.weights(query), answer_kind(query), set(words(query))
        covered = [self.coverage(weights, stems) for stems in view.stems]
        best = max(covered, default=0.0)
        if best == 0:
            return set(range(min(1, len(covered))))
        return {
            i
            for i, share in enumerate(covered)
            if share >= CLOSE * best
            or (kind != "other" and share >= 0.4 * best and self.holds(kind, view.sentences[i], asked))
        }

    def holds(self, kind: AnswerKind, sentence: str, asked: Collection[str]) -> bool:
        """Whether a sentence has a thing of the kind asked for that is not in the question itself.

        Args:
            kind: What is asked for; ``"other"`` holds everywhere.
            sentence: The sentence.
            asked: Words of the question.
        """
        if kind == "other":
            return True
        if kind in ("number", "time"):
            wanted = ("number",) if kind == "number" else ("year", "date")
            return any(
                s.kind in wanted and not set(words(s.text)) <= set(asked)
                for s in find_spans(sentence, common=self.common)
            )
        kinds = ("person", "other") if kind == "person" else ("place", "organisation", "other")
        return any(
            not set(words(s.text)) <= set(asked) and self.kind(s.text) in kinds for s in self.names(sentence)
        )

    def answering(self, query: str, title: str, text: str) -> float:
        """How much of a query one sentence of a text covers together with a thing of the kind asked for.

        The words of the title count for every sentence, for passages leave their subject to the title.

        Args:
            query: The query's text.
            title: Title of the text.
            text: The text.

        Returns:
            The largest share of the query's weight; 0 if no sentence has what is asked for.
        """
        weights, kind, asked = self.weights(query), answer_kind(query), set(words(query))
        titled = set(content_words(title))
        best = 0.0
        for sentence in split_sentences(text):
            share = self.coverage(weights, titled.union(content_words(sentence)))
            if share > best and self.holds(kind, sentence, asked):
                best = share
        return best

    def on_topic(
        self, query: str, strategy: StrategyKind | None, title: str, text: str, titles: Collection[str]
    ) -> bool:
        """Whether a text has to do with a query.

        One in which a thing of a passage that answers gave way to another has, and so has one under the title
        of such a passage; any other text must share something with the query.

        Args:
            query: The query's text.
            strategy: How the text was made not to answer; None if nobody said.
            title: Title of the text.
            text: The text.
            titles: Titles of the query's positives.
        """
        if strategy in EDITS or (title and title in titles):
            return True
        weights = self.weights(query)
        return not weights or self.coverage(weights, set(content_words(f"{title} {text}"))) >= OFF_TOPIC

    def names(self, text: str) -> list[Span]:
        """The names in a text; see :func:`causalneg.text.words.find_names`."""
        return find_names(text, self.common)

    def kind(self, name: str) -> EntityKind:
        """What a name names."""
        known = self._kinds.get(name)
        if known is None:
            known = self._kinds[name] = self._kind(name)
        return known

    def pool(self, kind: EntityKind, *, parts: int, article: bool, plural: bool) -> list[str]:
        """Names of one kind in the corpus, sorted.

        Args:
            kind: What they name.
            parts: Number of their words; longer than three counts as three.
            article: Whether they usually follow ``the``.
            plural: Whether they look like a plural.
        """
        return self._pools.get((kind, min(parts, 3), article, plural), [])

    def documents_with(self, name: str) -> int:
        """In how many documents a name is found."""
        known = self._inventory.get(name)
        return 0 if known is None else known["documents"]

    def is_topic(self, title: str) -> bool:
        """Whether a title is a subject that is no name (``Prime number``)."""
        rest = title.split()[1:]
        return (
            bool(title)
            and len(rest) < 4
            and all(w.islower() for w in rest)
            and all(w.isalpha() for w in words(title))
            and all(self.common(w) for w in words(title))
            and not title.split()[0].endswith("ing")
        )

    @cached_property
    def topics(self) -> dict[int, list[str]]:
        """Titles that are no names, by their number of words, sorted."""
        found: dict[int, list[str]] = defaultdict(list)
        for title in sorted({plain_title(t) for t in self.by_title}):
            if self.is_topic(title):
                found[len(title.split())].append(title)
        return dict(found)

    def shape(self, name: str) -> tuple[int, bool, bool]:
        """What a name's substitute must share: number of words, whether ``the`` precedes it, plural."""
        known = self._inventory.get(name)
        article = known is not None and 2 * known["the"] > known["all"]
        last = name.split()[-1]
        return min(len(name.split()), 3), article, last.endswith("s") and not last.endswith("ss")

    @cached_property
    def _inventory(self) -> dict[str, Counter[str]]:
        """For each name: how often it occurs, and in what company."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for document in self.documents:
            text = document.text
            seen = set()
            for span in self.names(text):
                company = found[span.text]
                company["all"] += 1
                if span.text not in seen:
                    seen.add(span.text)
                    company["documents"] += 1
                before = _BEFORE.search(text, max(0, span.start - 15), span.start)
                if before is not None:
                    word = before.group(1).lower()
                    company["the"] += word == "the"
                    company["place"] += word in _PLACE_BEFORE
                after = _AFTER.match(text, span.end)
                if after is not None:
                    company["person"] += after.group(1) in _PERSON_AFTER
                    company["adjective"] += after.group(1)[0].islower() and after.group(1) not in STOP_WORDS
        return dict(found)

    @cached_property
    def first_names(self) -> frozenset[str]:
        """First names: what titles begin with whose text says when somebody was born."""
        found: Counter[str] = Counter()
        for document in self.documents:
            title = plain_title(document.title)
            parts = title.split()
            if 2 <= len(parts) <= 4 and all(p[:1].isupper() for p in parts) and not self._cue(parts):
                opening = document.text[:200]
                place = opening.find(parts[-1])
                if 0 <= place < 60 and _LIFE.search(opening, place, place + 140):
                    found[parts[0]] += 1
        return frozenset(w for w in found if not self.common(w.lower()) and len(w) > 1)

    @staticmethod
    def _cue(parts: list[str]) -> EntityKind | None:
        low = [p.lower().rstrip(".") if len(p) > 4 else p.lower() for p in parts]
        if len(parts) > 1:
            for kind, cues in _FIRST.items():
                if low[0] in cues and (kind == "person" or kind == "place" or low[1] == "of"):
                    return kind
            for kind, cues in _LAST.items():
                if low[-1].rstrip(".") in cues or (kind == "event" and len(parts) > 2 and low[-2] in cues):
                    return kind
        return None

    def _kind(self, name: str) -> EntityKind:
        parts = name.split()
        cue = self._cue(parts)
        if cue is not None:
            return cue
        if len(parts) == 1 and len(name) <= 6 and sum(c.isupper() for c in name) >= 2:
            return "acronym"
        company = self._inventory.get(name, Counter())
        often = company["all"]
        named = 2 * company["the"] <= often and parts[0] in self.first_names
        if named and 2 <= len(parts) <= 4 and not parts[-1][0].isdigit():
            return "person"
        if len(parts) == 1 and _PEOPLE.match(name.lower()) and 5 * company["adjective"] > often:
            return "people"
        if (
            2 * company["the"] <= often
            and company["person"] > company["place"]
            and 20 * company["person"] > often
        ):
            return "person"
        if 8 * company["place"] > often:
            return "place"
        if len(parts) == 1 and name in self._last_names and not self.common(name.lower()):
            return "person"
        return "other"

    @cached_property
    def _last_names(self) -> frozenset[str]:
        return frozenset(
            parts[-1]
            for name in self._inventory
            if len(parts := name.split()) in (2, 3) and parts[0] in self.first_names and not self._cue(parts)
        )

    @cached_property
    def _pools(self) -> dict[tuple[EntityKind, int, bool, bool], list[str]]:
        pools: dict[tuple[EntityKind, int, bool, bool], list[str]] = defaultdict(list)
        for name in sorted(self._inventory):
            if len(name) > 2 and name[0].isalpha() and not name.endswith("."):
                parts, article, plural = self.shape(name)
                pools[self.kind(name), parts, article, plural].append(name)
        # Names that only one passage has are often misread; where there are enough others they stay out.
        return {
            key: frequent
            if len(frequent := [n for n in names if self._inventory[n]["documents"] > 1]) >= 20
            else names
            for key, names in pools.items()
        }
