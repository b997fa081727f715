"""The passages that state the facts of the world, and the questions about them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from causalneg.text.style import has_style, stylise
from causalneg.world.communities import Community, entities_in
from causalneg.world.language import Fact
from causalneg.world.lexicon import RELATIONS
from causalneg.world.needs import SOUGHT, VIA, Need, Oracle, Pattern, QuestionKind, solve
from causalneg.world.questions import ask
from causalneg.world.writing import render
from common.errors import ConfigError

MOST_WORDS = 120
LEAST_WORDS = 40
FORMS = {"single": 0.33, "dated": 0.22, "joint": 0.2, "hops": 0.25}
"""Shares of the questions: one fact; one with its year; two conditions on one thing; two hops."""

_TRIES_PER_QUESTION = 200
_MOST_RELEVANT = 15
_MOST_ANSWERS = 3
_SHARE_UNLIKE = 0.2
"""Share that is kept of the questions with fewer confusable than relevant passages."""

_SHARE_DATED = 0.85
_SHARE_BRIDGED = 0.4


@dataclass(frozen=True)
class Stated:
    """A passage.

    Args:
        community: Row of its community.
        topic: What it is about.
        text: Its words.
        facts: What it states.
        style: Whether it has turns of phrase of the simulated writer.
    """

    community: int
    topic: str
    text: str
    facts: tuple[Fact, ...]
    style: bool


class _Passages:
    """Draws passages of a community: facts of one theme, at times with some of another."""

    def __init__(self, row: int, community: Community, rng: random.Random) -> None:
        self.row, self.community, self.rng = row, community, rng
        self.themes = list(community.facts)

    def _grow(self, facts: list[Fact], pool: Sequence[Fact], more: int) -> None:
        """Add facts from a pool, each about something that is named already."""
        for _ in range(more):
            named = {name for fact in facts for name in entities_in(fact)}
            near = [fact for fact in pool if fact not in facts and not named.isdisjoint(entities_in(fact))]
            if near:
                facts.append(self.rng.choice(near))

    def _as_stated(self, fact: Fact) -> Fact:
        """A fact with its year, or at times without; a number is never stated without its year."""
        dated = RELATIONS[fact.relation].object == "number" or self.rng.random() < _SHARE_DATED
        return fact if dated else replace(fact, year=None)

    def draw(self, style_share: float) -> Stated:
        """One passage of 40 to 120 words."""
        rng = self.rng
        while True:
            theme, other = rng.sample(self.themes, 2)
            pool = self.community.facts[theme]
            facts = [rng.choice(pool)]
            topic = rng.choice(entities_in(facts[0]))
            self._grow(facts, [fact for fact in pool if topic in entities_in(fact)], rng.randint(1, 2))
            self._grow(facts, pool, rng.randint(1, 3))
            if rng.random() < _SHARE_BRIDGED:
                self._grow(facts, self.community.facts[other], rng.randint(1, 2))
            stated = [self._as_stated(fact) for fact in facts]
            text = render(stated, rng, topic=topic, remarks=0.5, least_words=LEAST_WORDS)
            style = rng.random() < style_share
            styled = stylise(text, 0.3, rng) if style else text
            while style and not has_style(styled):
                styled = stylise(text, 0.3, rng)
            if LEAST_WORDS <= len(styled.split()) <= MOST_WORDS:
                return Stated(self.row, topic, styled, tuple(dict.fromkeys(stated)), style)


def make_passages(
    communities: Sequence[Community], passages: int, style_share: float, rng: random.Random
) -> list[Stated]:
    """Draw passages, equally many of each community, no two with the same words; in mixed order.

    Args:
        communities: What they are about.
        passages: How many.
        style_share: Share of them with turns of phrase of the simulated writer.
        rng: Source of the draws.
    """
    writers = [_Passages(row, community, rng) for row, community in enumerate(communities)]
    found: dict[str, Stated] = {}
    while len(found) < passages:
        passage = writers[len(found) % len(writers)].draw(style_share)
        found.setdefault(passage.text, passage)
    drawn = list(found.values())
    rng.shuffle(drawn)
    return drawn


class _Asker:
    """Draws needs that the passages of one community answer."""

    def __init__(
        self, split: str, passages: Sequence[Stated], rows: Sequence[int], oracle: Oracle, rng: random.Random
    ) -> None:
        self.split, self.passages, self.rows, self.oracle, self.rng = split, passages, rows, oracle, rng
        self.makers: dict[str, Callable[[Sequence[Fact]], Need | None]] = {
            "single": self._single,
            "dated": self._dated,
            "joint": self._joint,
            "hops": self._hops,
        }
        self.stating: dict[tuple[str, str], list[int]] = {}
        for row in rows:
            for fact in passages[row].facts:
                for name in fact.ends():
                    found = self.stating.setdefault((fact.relation, name), [])
                    if found[-1:] != [row]:
                        found.append(row)

    def _need(self, kind: QuestionKind, patterns: tuple[Pattern, ...], kinds: dict[str, str]) -> Need | None:
        """The need of patterns, unless it is trivial or has too many answers."""
        found = {str(solution[SOUGHT]) for solution in self.oracle.solutions(patterns)}
        need = Need("", kind, patterns, kinds, tuple(sorted(found)), self.split)  # type: ignore[arg-type]
        named = {name for pattern in patterns for name in pattern.constants()}
        return need if 1 <= len(found) <= _MOST_ANSWERS and not found & named else None

    def _single(self, facts: Sequence[Fact]) -> Need | None:
        fact = self.rng.choice(facts)
        relation = RELATIONS[fact.relation]
        choices = ["object"] if relation.object == "number" else ["subject", "object"]
        if fact.year is not None and relation.object != "number":
            choices.append("year")
        sought = self.rng.choice(choices)
        pattern = Pattern(fact.relation, fact.subject, fact.object)
        if sought == "year":
            return self._need("single", (Pattern(*_ends(pattern), SOUGHT),), {SOUGHT: "year"})
        opened, kind = _open(pattern, sought, SOUGHT), str(getattr(relation, sought))
        return self._need("single", (opened,), {SOUGHT: kind})

    def _dated(self, facts: Sequence[Fact]) -> Need | None:
        """One fact with a year that tells it from another."""
        fact = self.rng.choice(facts)
        relation = RELATIONS[fact.relation]
        if fact.year is None:
            return None
        sought = "object" if relation.object == "number" else self.rng.choice(("subject", "object"))
        opened = _open(Pattern(*_ends(fact), fact.year), sought, SOUGHT)
        without = {str(s[SOUGHT]) for s in self.oracle.solutions([Pattern(*_ends(opened))])}
        need = self._need("constrained", (opened,), {SOUGHT: str(getattr(relation, sought))})
        return need if need is not None and len(without) > len(need.answers) else None

    def _two(self, facts: Sequence[Fact]) -> tuple[Fact, Fact, str] | None:
        """Two facts and the entity they share."""
        if len(facts) < 2:
            return None
        one, two = self.rng.sample(list(facts), 2)
        shared = [name for name in entities_in(one) if name in entities_in(two)]
        return (one, two, shared[0]) if len(shared) == 1 else None

    def _joint(self, facts: Sequence[Fact]) -> Need | None:
        """Two conditions on one thing."""
        drawn = self._two(facts)
        if drawn is None:
            return None
        patterns = []
        for fact in drawn[:2]:
            side = "subject" if fact.subject == drawn[2] else "object"
            year = fact.year if self.rng.random() < 0.4 else None
            patterns.append(_open(Pattern(*_ends(fact), year), side, SOUGHT))
            kind = str(getattr(RELATIONS[fact.relation], side))
            if any(RELATIONS[fact.relation].object == "number" for fact in drawn[:2]):
                return None
        return self._need("constrained", (patterns[0], patterns[1]), {SOUGHT: kind})

    def _hops(self, facts: Sequence[Fact]) -> Need | None:
        """One fact of a thing that is named only by another fact."""
        drawn = self._two(facts)
        if drawn is None:
            return None
        first, second, via = drawn
        near, far = ("subject", "object") if first.subject == via else ("object", "subject")
        asked, linked = RELATIONS[first.relation], RELATIONS[second.relation]
        if linked.object == "number" or (asked.object == "number" and far != "object"):
            return None
        pattern = _open(Pattern(*_ends(first)), near, VIA)
        kinds = {VIA: str(getattr(asked, near))}
        if first.year is not None and asked.object != "number" and self.rng.random() < 0.25:
            pattern, kinds[SOUGHT] = Pattern(*_ends(pattern), SOUGHT), "year"
        else:
            pattern, kinds[SOUGHT] = _open(pattern, far, SOUGHT), str(getattr(asked, far))
        link = _open(Pattern(*_ends(second)), "subject" if second.subject == via else "object", VIA)
        return self._need("two-hop", (pattern, link), kinds)

    def draw(self, form: str) -> tuple[Need, list[int]] | None:
        """A need and the rows of the passages that answer it; None where a draw came to nothing."""
        need = self.makers[form](self.passages[self.rng.choice(self.rows)].facts)
        if need is None:
            return None
        known = next(pattern for pattern in need.patterns if pattern.constants())
        rows = self.stating.get((known.relation, known.constants()[0]), [])
        relevant = [row for row in rows if solve(need.patterns, self.passages[row].facts)]
        if not 1 <= len(relevant) <= _MOST_RELEVANT:
            return None
        alike = sum(has_words_of(need, self.passages[row].facts) for row in rows) - len(relevant)
        if alike < len(relevant) and self.rng.random() > _SHARE_UNLIKE:
            return None
        return need, relevant


def has_words_of(need: Need, facts: Sequence[Fact]) -> bool:
    """Whether facts have every entity, relation and year of a need, bound in whatever way.

    Args:
        need: What is asked for.
        facts: What a text states.
    """
    ends = {name for fact in facts for name in fact.ends()}
    years = {fact.year for fact in facts}
    relations = {fact.relation for fact in facts}
    return all(
        pattern.relation in relations
        and ends.issuperset(pattern.constants())
        and (not isinstance(pattern.year, int) or pattern.year in years)
        for pattern in need.patterns
    )


def _ends(thing: Fact | Pattern) -> tuple[str, str, str]:
    return thing.relation, thing.subject, thing.object


def _open(pattern: Pattern, side: str, variable: str) -> Pattern:
    subject = variable if side == "subject" else pattern.subject
    object = variable if side == "object" else pattern.object
    return Pattern(pattern.relation, subject, object, pattern.year)


def make_questions(
    communities: Sequence[Community], passages: Sequence[Stated], questions: int, rng: random.Random
) -> Iterator[tuple[Need, str, list[int]]]:
    """Draw questions, equally many about each community, no two alike.

    Args:
        communities: What they ask about.
        passages: What answers them.
        questions: How many.
        rng: Source of the draws.

    Yields:
        A need without its id, the question, and the rows of exactly the passages that answer it.

    Raises:
        ConfigError: The passages do not answer so many different questions.
    """
    rows: list[list[int]] = [[] for _ in communities]
    for row, passage in enumerate(passages):
        rows[passage.community].append(row)
    for number, community in enumerate(communities):
        quota = questions // len(communities) + (number < questions % len(communities))
        asker = _Asker(community.split, passages, rows[number], Oracle(community.all_facts), rng)
        seen: set[str | tuple[Pattern, ...]] = set()
        for _ in range(quota):
            (form,) = rng.choices(list(FORMS), list(FORMS.values()))
            for _ in range(_TRIES_PER_QUESTION):
                drawn = asker.draw(form)
                if drawn is None or not seen.isdisjoint((drawn[0].patterns, drawn[0].patterns[::-1])):
                    continue
                text = ask(drawn[0], rng)
                if text not in seen:
                    break
            else:
                raise ConfigError(
                    f"questions: {len(passages)} passages do not answer {questions} questions; ask for fewer"
                )
            seen.update((drawn[0].patterns, text))
            yield drawn[0], text, drawn[1]
