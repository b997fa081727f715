"""Counterfactual edits of any English text by rule: what query and passage share, one piece of it broken.

Over 400 lines: one way of writing for each strategy, on the same view of a passage.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from causalneg.data.schema import Analysis, Disruption, Document, Facet, Requirement, StrategyKind
from causalneg.generation.jobs import Failure
from causalneg.generation.writers.base import MAX_NEGATIVES, Pair
from causalneg.text.corpus import Corpus, View, answering_limit, plain_title
from causalneg.text.edits import (
    FORMS,
    break_relation,
    initials,
    name_swaps,
    replace_phrases,
    shift_value,
    topic_swaps,
    verb_forms,
    verb_pattern,
)
from causalneg.text.words import (
    MONTHS,
    NUMBER_WORDS,
    STOP_WORDS,
    content_words,
    find_spans,
    has_phrase,
    is_yes_no,
    overlap,
    shingles,
    stem,
    words,
)

ABOUT = "The passage is about “{}”."
HOLDS_FOR = "What the passage says holds for “{}”."
RELATION = "The passage says who or what “{}”."
STATES = "The passage states what is asked: {}"

_QUOTED = re.compile(r"“([^”]+)”")

# Rare ones first, so that every kind gets its share of the negatives.
_ORDER: tuple[StrategyKind, ...] = (
    "relation break",
    "constraint violation",
    "entity shift",
    "intent drift",
    "attribute shift",
)

_PRONOUNS = frozenset(
    (
        "he she it they this these those that his her its their however also such another other both each "
        "then thus therefore instead although though moreover furthermore nevertheless here there but and or "
        "so yet"
    ).split()
)
_BEFORE_NOUN = frozenset("whose the a an of how its his her their with in for from on at into as".split())
_SOMEBODY = re.compile(r"\b(?:did|do|does|to|would|could|will|can)\b")


_COUNTED = frozenset(NUMBER_WORDS) - {"zero", "one"}
_CRITICAL = 0.15
_QUIET = 0.45
_MOST_KEPT = 0.75
_SAME = 0.9
_FEWEST_WORDS, _MOST_WORDS = 5, 60


@dataclass(frozen=True)
class Edited:
    """A negative as far as it is text.

    Args:
        title: Its title.
        text: Its text.
        base: Id of the document that it was made from.
        requirement: What it violates.
        kind: How.
    """

    title: str
    text: str
    base: str
    requirement: Requirement
    kind: StrategyKind


def quoted(requirement: str) -> str:
    """What a requirement of the rules names between its quotation marks; empty if nothing."""
    found = _QUOTED.search(requirement)
    return found.group(1) if found else ""


def _requirement(
    text: str, facet: Facet, kind: StrategyKind, instruction: str, *, critical: bool = True
) -> Requirement:
    """A requirement with the one way to break it that there is, if it is critical."""
    ways = [Disruption(kind=kind, instruction=instruction)] if critical else []
    return Requirement(text=text, facet=facet, critical=critical, disruptions=ways)


class EnglishRules:
    """Reads off what query and passage share, and edits a passage so that one piece of it is gone.

    Args:
        corpus: Where substitutes and other sentences come from.
    """

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    def analyse(self, pair: Pair) -> Analysis | Failure:
        """Name the requirements that query and positive show; the critical ones have disruptions.

        Args:
            pair: What to analyse.
        """
        view = self.corpus.view(pair.positive)
        weights = self.corpus.weights(pair.query.text)
        if not view.sentences:
            return Failure("empty positive", f"document {pair.positive.id} has no text")
        if not weights:
            return Failure("empty query", f"query {pair.query.id} has no words that say anything")
        requirements = [
            *self._subjects(pair, view, weights),
            *self._constraints(pair.query.text, view),
            *self._relations(pair.query.text, view),
            Requirement(
                text=STATES.format(pair.query.text),
                facet="attribute",
                critical=True,
                disruptions=[
                    Disruption(
                        kind="attribute shift",
                        instruction="Tell another aspect in place of the sentences that answer.",
                    ),
                    Disruption(
                        kind="intent drift",
                        instruction="Rewrite a passage on the same subject that serves another need.",
                    ),
                ],
            ),
        ]
        answers = self.corpus.answer_sentences(pair.query.text, view)
        return Analysis(
            core_need=f"To learn: {pair.query.text}",
            how_met=" ".join(view.sentences[i] for i in sorted(answers)),
            answer_boundary="Only a passage that meets every critical requirement answers.",
            requirements=requirements,
        )

    def write(self, pair: Pair, analysis: Analysis, rng: random.Random) -> list[Edited] | Failure:
        """Write up to three drafts, each for another kind of disruption where there are as many.

        Args:
            pair: What to write for.
            analysis: Its analysis.
            rng: Source of the draws.
        """
        options = [(d.kind, r) for r in analysis.requirements if r.critical for d in r.disruptions]
        rng.shuffle(options)
        options.sort(key=lambda option: _ORDER.index(option[0]) if option[0] in _ORDER else len(_ORDER))
        seen: dict[StrategyKind, int] = {}
        ranked: list[tuple[int, int, StrategyKind, Requirement]] = []
        for kind, requirement in options:
            ranked.append((seen.get(kind, 0), len(ranked), kind, requirement))
            seen[kind] = seen.get(kind, 0) + 1
        view = self.corpus.view(pair.positive)
        drafts: list[Edited] = []
        runs: list[set[tuple[str, ...]]] = []
        first = [(kind, requirement) for _, _, kind, requirement in sorted(ranked, key=lambda o: o[:2])]
        # Where there are few kinds, the same ones are drawn again with other words.
        for kind, requirement in (*first, *first):
            if len(drafts) == MAX_NEGATIVES:
                break
            made = self._draft(kind, requirement, pair, view, rng)
            if made is None or not self._fits(pair, made):
                continue
            own = shingles(words(f"{made.title} {made.text}"))
            if all(overlap(own, other) < _SAME for other in runs):
                drafts.append(made)
                runs.append(own)
        if not drafts:
            return Failure("nothing to break", "no edit keeps the subject and leaves the answer out")
        weights = self.corpus.weights(pair.query.text)
        # The more of the query is still there, the more the negative tells about the one thing that is not.
        covered = [self.corpus.coverage(weights, set(content_words(f"{d.title} {d.text}"))) for d in drafts]
        order = sorted(range(len(drafts)), key=lambda i: (-round(covered[i], 9), i))
        return [drafts[i] for i in order]

    def _fits(self, pair: Pair, draft: Edited) -> bool:
        """Whether a draft is on the topic and does not look like an answer."""
        if not self.corpus.on_topic(
            pair.query.text, draft.kind, draft.title, draft.text, [pair.positive.title]
        ):
            return False
        limit = answering_limit(draft.kind)
        return self.corpus.answering(pair.query.text, draft.title, draft.text) < limit

    def _draft(
        self, kind: StrategyKind, requirement: Requirement, pair: Pair, view: View, rng: random.Random
    ) -> Edited | None:
        term = quoted(requirement.text)
        made: tuple[str, str] | None = None
        base = pair.positive
        if kind == "entity shift":
            made = self._shift_entity(term, pair, view, rng)
        elif kind == "constraint violation":
            made = shift_value(base, term, rng, set(words(pair.query.text)))
        elif kind == "relation break":
            made = break_relation(base, term, rng)
        elif kind == "attribute shift":
            made = self._shift_attribute(pair, view, rng)
        elif kind == "intent drift":
            drifted = self._drift(pair, view, rng)
            if drifted is not None:
                base, text = drifted
                made = base.title, text
        return None if made is None else Edited(*made, base.id, requirement, kind)

    # What query and positive share

    def _subjects(self, pair: Pair, view: View, weights: Mapping[str, float]) -> Iterator[Requirement]:
        title, text = plain_title(pair.positive.title), pair.positive.text
        asked = pair.query.text
        asked_words = {stem(w) for w in words(asked)}
        names = sorted({s.text for s in self.corpus.names(text)} | {s.text for s in self.corpus.names(title)})
        found: dict[str, tuple[float, frozenset[str]]] = {}
        for name in dict.fromkeys(self._asked_part(name, asked, asked_words) for name in names):
            matched = frozenset(content_words(name))
            if matched:
                found[name] = sum(weights.get(s, 0.0) for s in matched), matched
        if title and not self.corpus.names(title) and has_phrase(text, title):
            matched = frozenset(content_words(title))
            if matched and matched <= asked_words:
                found[title] = sum(weights.get(s, 0.0) for s in matched), matched
        taken: set[str] = set()
        named: set[str] = set()
        for name in sorted(found, key=lambda n: (-round(found[n][0], 9), n)):
            share, matched = found[name]
            if matched & taken:
                continue
            taken |= matched
            name = self._full_name(name, names)
            if name in named:
                continue
            named.add(name)
            # One thing swapped for another may say no to a yes-or-no question, unless it is the subject.
            critical = share >= _CRITICAL and (not is_yes_no(asked) or has_phrase(title, name))
            way = f"Speak of another {self.corpus.kind(name)} than “{name}” throughout."
            yield _requirement(ABOUT.format(name), "entity", "entity shift", way, critical=critical)
        if not found:
            yield from self._terms(view, weights)

    def _terms(self, view: View, weights: Mapping[str, float]) -> Iterator[Requirement]:
        """Without a name or title to go by: the weightiest word that query and passage share."""
        shared = {s: w for s, w in weights.items() if w >= _CRITICAL and s in view.all_stems}
        for stemmed in sorted(shared, key=lambda s: (-round(shared[s], 9), s))[:1]:
            forms = [w for w in words(view.document.content) if stem(w) == stemmed and w.isalpha()]
            if forms:
                form = max(sorted(set(forms)), key=forms.count)
                way = f"Put another thing in the place of “{form}”."
                yield _requirement(ABOUT.format(form), "entity", "entity shift", way)

    def _asked_part(self, name: str, asked: str, asked_words: set[str]) -> str:
        """The longest run of words of a name that a query has; empty if it says nothing by itself."""
        parts = name.split()
        for length in range(len(parts), 0, -1):
            for start in range(len(parts) - length + 1):
                part = " ".join(parts[start : start + length])
                own = [w for w in words(part) if w not in STOP_WORDS]
                if not own or stem(own[0]) not in asked_words or own[0] != words(part)[0]:
                    continue
                special = any(not self.corpus.common(w) for w in own) or (length > 1 and length == len(parts))
                if special and part[:1].isupper() and has_phrase(asked, part):
                    return part
        return ""

    def _full_name(self, name: str, names: Sequence[str]) -> str:
        """What a short form stands for: the longest name of a person, the name that has these initials."""
        if name.isupper():
            return next((other for other in names if initials(other) == name), name)
        longer = [
            other
            for other in names
            if len(other.split()) > 1
            and len(other.split()) <= 4
            and name in (other.split()[-1], other.split()[0])
            and self.corpus.kind(other) == "person"
        ]
        return max(longer, key=lambda n: (len(n), n)) if longer else name

    def _constraints(self, asked: str, view: View) -> Iterator[Requirement]:
        content = view.document.content
        spans = [s for s in find_spans(asked) if s.kind in ("year", "number", "date")]
        terms = []
        for span in spans:
            parts = span.text.replace(",", "").split() if span.kind == "date" else [span.text]
            terms += [p for p in parts if p in MONTHS or p[0].isdigit() or p.lower() in _COUNTED]
        for term in dict.fromkeys(terms):
            if has_phrase(content, term) and term.lower() not in ("one", "1"):
                way = f"Put another value in the place of “{term}”."
                yield _requirement(HOLDS_FOR.format(term), "constraint", "constraint violation", way)

    def _relations(self, asked: str, view: View) -> Iterator[Requirement]:
        helped = _SOMEBODY.search(asked.lower()) is not None
        said = words(asked)
        forms = [
            word
            for before, word in pairwise(["", *said])
            if word in FORMS and before not in _BEFORE_NOUN and (helped or word != FORMS[word])
        ]
        for verb in dict.fromkeys(FORMS[form] for form in forms):
            if verb_pattern(verb).search(view.document.text):
                way = f"Let another thing happen than “{verb}”."
                yield _requirement(RELATION.format(verb_forms(verb)[3]), "relation", "relation break", way)

    # Edits

    def _shift_entity(self, name: str, pair: Pair, view: View, rng: random.Random) -> tuple[str, str] | None:
        document = pair.positive
        named = bool(self.corpus.names(name))
        other = self._other_name(name, pair, view, rng) if named else self._other_topic(name, pair, view, rng)
        if other is None:
            return None
        if named:
            person = self.corpus.kind(name) == "person"
            swaps = name_swaps(name, other, document.content, person=person, common=self.corpus.common)
        else:
            swaps = topic_swaps(name, other, document.content)
        title, text = (replace_phrases(part, swaps, cased=named) for part in (document.title, document.text))
        changed = f"{title} {text}"
        special = {w for w in words(name) if w not in STOP_WORDS and not self.corpus.common(w)}
        if has_phrase(changed, name) or not special.isdisjoint(words(changed)):
            return None
        return title, text

    def _other_name(self, name: str, pair: Pair, view: View, rng: random.Random) -> str | None:
        """Another name of the same kind and shape; of the candidates if they have one, else of the corpus."""
        fits = self._stranger(pair, view)
        kind, shape = self.corpus.kind(name), self.corpus.shape(name)
        near = [
            span.text
            for candidate in pair.candidates
            for span in self.corpus.names(f"{plain_title(candidate.title)}. {candidate.text}")
            if self.corpus.kind(span.text) == kind and self.corpus.shape(span.text) == shape
        ]
        usual = [n for n in dict.fromkeys(near) if self.corpus.documents_with(n) > 1 and fits(n)]
        if usual:
            return rng.choice(usual[:8])
        parts, article, plural = shape
        for wanted in (
            (parts, article, plural),
            (parts, article, not plural),
            (max(1, parts - 1), article, plural),
        ):
            pool = self.corpus.pool(kind, parts=wanted[0], article=wanted[1], plural=wanted[2])
            for other in rng.sample(pool, min(8, len(pool))):
                if fits(other):
                    return other
        return None

    def _other_topic(self, name: str, pair: Pair, view: View, rng: random.Random) -> str | None:
        """Another subject that is no name: the title of another passage, or a word as rare."""
        fits = self._stranger(pair, view)
        count = len(name.split())
        if name == plain_title(pair.positive.title):
            near = [plain_title(candidate.title) for candidate in pair.candidates]
            near = [n for n in dict.fromkeys(near) if self.corpus.is_topic(n) and fits(n)]
            if near:
                return rng.choice(near)
            pool = self.corpus.topics.get(count, [])
            return next((n for n in rng.sample(pool, min(8, len(pool))) if fits(n)), None)
        weight, many = self.corpus.weight(stem(name.lower())), name.endswith("s")
        own = words(pair.positive.text)
        company = {before for before, word in pairwise(own) if word == name}
        likeness: dict[str, int] = {}
        for candidate in pair.candidates:
            for before, word in pairwise(words(candidate.text)):
                if self._is_plain(word) and word.endswith("s") == many:
                    like = 2 * (word[-3:] == name[-3:]) + (before in company)
                    if like and abs(self.corpus.weight(stem(word)) - weight) < 1.5:
                        likeness[word] = max(like, likeness.get(word, 0))
        near = sorted(filter(fits, likeness))
        most = max((likeness[word] for word in near), default=0)
        return rng.choice([word for word in near if likeness[word] == most]) if near else None

    def _is_plain(self, word: str) -> bool:
        return len(word) > 3 and word.isalpha() and word not in NUMBER_WORDS and self.corpus.common(word)

    def _stranger(self, pair: Pair, view: View) -> Callable[[str], bool]:
        taken = view.all_stems.union(content_words(pair.query.text))

        def fits(other: str) -> bool:
            stems = content_words(other)
            return bool(stems) and taken.isdisjoint(stems)

        return fits

    def _shift_attribute(self, pair: Pair, view: View, rng: random.Random) -> tuple[str, str] | None:
        """The positive without the sentences that answer; others on the same subject stand in their place."""
        answers = self.corpus.answer_sentences(pair.query.text, view)
        weights = self.corpus.weights(pair.query.text)
        kept = [i for i in range(len(view.sentences)) if i not in answers]
        # What is most like an answer goes first, until a good part of the passage is new.
        while kept and sum(view.lengths[i] for i in kept) > _MOST_KEPT * sum(view.lengths):
            kept.remove(max(kept, key=lambda i: (round(self.corpus.coverage(weights, view.stems[i]), 9), i)))
        goal = self._length(pair, view, rng)
        room = goal - sum(view.lengths[i] for i in kept)
        runs = self._runs(pair, view, rng)
        found: list[str] = []
        used = 0
        for run in runs:
            if room < _FEWEST_WORDS or (kept and used) or used == 2:
                break
            part = _fill(run, room if kept or used else max(_FEWEST_WORDS, room // 2))
            if part:
                found += part
                room -= sum(len(words(s)) for s in part)
                used += 1
        if not used or used + bool(kept) < 2:
            return None
        at = min(answers, default=0)
        sentences = (
            [view.sentences[i] for i in kept if i < at] + found + [view.sentences[i] for i in kept if i > at]
        )
        if sentences and _leans(sentences[0]):
            first = next((n for n, s in enumerate(sentences) if not _leans(s)), 0)
            sentences = sentences[first:] + sentences[:first]
        long_enough = sum(len(words(s)) for s in sentences) >= 0.6 * goal
        return (pair.positive.title, " ".join(sentences)) if long_enough else None

    def _drift(self, pair: Pair, view: View, rng: random.Random) -> tuple[Document, str] | None:
        """A candidate on the same subject that takes in what the positive says besides its answer."""
        near = [c for c in pair.candidates if self._same_subject(c, pair.positive)]
        answers = self.corpus.answer_sentences(pair.query.text, view)
        kept = [view.sentences[i] for i in range(len(view.sentences)) if i not in answers]
        if not near or not kept:
            return None
        base = rng.choice(near[:3])
        own = self._quiet(pair.query.text, self.corpus.view(base))
        if not own:
            return None
        taken = _fill(kept[rng.randrange(len(kept)) :], max(12, sum(self.corpus.view(base).lengths) // 3))
        if not taken:
            return None
        room = max(20, sum(self.corpus.view(base).lengths) - sum(len(words(s)) for s in taken))
        rest = _fill(own, room) or own[:1]
        at = rng.randint(1, len(rest))
        sentences = rest[:at] + taken + rest[at:]
        long_enough = sum(len(words(s)) for s in sentences) >= 0.6 * self._length(pair, view, rng)
        return (base, " ".join(sentences)) if long_enough else None

    def _length(self, pair: Pair, view: View, rng: random.Random) -> int:
        """How long a text to write: as one of the candidates, or as the positive if all are far off."""
        own = sum(view.lengths)
        others = [sum(self.corpus.view(c).lengths) for c in pair.candidates]
        near = [n for n in others if 0.6 * own <= n <= 1.5 * own]
        return rng.choice(near) if near else own

    def _same_subject(self, one: Document, other: Document) -> bool:
        return bool(one.title) and one.title == other.title and one.id != other.id

    def _runs(self, pair: Pair, view: View, rng: random.Random) -> Iterator[list[str]]:
        """Sentences on the subject of a passage that do not answer: of candidates, then of the corpus."""
        near = [c for c in pair.candidates if self._same_subject(c, pair.positive)]
        rng.shuffle(near)
        known = {c.id for c in pair.candidates}
        rest = [d for d in self.corpus.by_title.get(pair.positive.title, []) if d.id not in known]
        rest = rng.sample(rest, min(4, len(rest)))
        far = [c for c in pair.candidates if c not in near]
        for document in (*near, *(d for d in rest if self._same_subject(d, pair.positive)), *far[:3]):
            sentences = self._quiet(pair.query.text, self.corpus.view(document))
            starts = [i for i, s in enumerate(sentences) if not _leans(s)]
            if starts:
                weights = self.corpus.weights(pair.query.text)
                some = rng.sample(starts, min(3, len(starts)))
                shares = [self.corpus.coverage(weights, set(content_words(sentences[i]))) for i in some]
                yield sentences[some[shares.index(max(shares))] :]

    def _quiet(self, query: str, view: View) -> list[str]:
        """The sentences of a passage that have little to do with a query."""
        weights = self.corpus.weights(query)
        return [
            sentence
            for sentence, stems, length in zip(view.sentences, view.stems, view.lengths, strict=True)
            if _FEWEST_WORDS <= length <= _MOST_WORDS and self.corpus.coverage(weights, stems) < _QUIET
        ]


def _leans(sentence: str) -> bool:
    """Whether a sentence leans on the one before it."""
    return (words(sentence) or [""])[0] in _PRONOUNS or not sentence[:1].isupper()


def _fill(sentences: Sequence[str], room: int) -> list[str]:
    """The first sentences that together come closest to so many words."""
    found: list[str] = []
    for sentence in sentences:
        length = len(words(sentence))
        if room < length / 2:
            break
        found.append(sentence)
        room -= length
    return found
