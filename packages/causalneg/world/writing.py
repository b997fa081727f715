"""Putting facts into words: passages in drawn wording, and the same facts in other words."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from causalneg.world.language import (
    Clause,
    Fact,
    Layout,
    Sentence,
    kind_of,
    names_in,
    read,
    write_sentence,
)
from causalneg.world.lexicon import RELATIONS, REMARKS, STAND_INS, WOMEN, Side

_SHARE_JOINED = 0.3
_SHARE_STAND_INS = 0.3
_WOMEN = frozenset(WOMEN)


def pronoun_of(person: str) -> str:
    """The pronoun that goes with the first name: "She" or "He"."""
    return "She" if person.split(" ")[0] in _WOMEN else "He"


def _draw_stand_in(subject: str, rng: random.Random) -> str:
    kind = kind_of(subject)
    return pronoun_of(subject) if kind in (None, "person") else rng.choice(STAND_INS[kind])


def fitting_stand_in(stand_in: str, subject: str) -> str:
    """A stand-in that may stand for another subject now: the right pronoun, or the one it was."""
    return pronoun_of(subject) if stand_in in STAND_INS["person"] else stand_in


def _draw_side(fact: Fact, subject: str) -> Side:
    return "forward" if fact.subject == subject else "inverse"


def draw_clause(fact: Fact, subject: str, rng: random.Random) -> Clause:
    """A clause that says a fact of one of its ends, in words that are drawn.

    Args:
        fact: What to say.
        subject: The end of it that is to be the subject of the sentence.
        rng: Source of the draw.
    """
    side = _draw_side(fact, subject)
    return Clause(fact, side, rng.randrange(len(RELATIONS[fact.relation].phrases(side))))


def _subjects(fact: Fact) -> list[str]:
    """The ends of a fact that can be the subject of a sentence."""
    return [fact.subject] if RELATIONS[fact.relation].object == "number" else [fact.subject, fact.object]


def topic_of(facts: Sequence[Fact]) -> str:
    """The entity that most facts are about; the first one of several."""
    count: dict[str, int] = {}
    for fact in facts:
        for name in _subjects(fact):
            count[name] = count.get(name, 0) + 1
    return max(count, key=lambda name: count[name])


def _draw_subject(fact: Fact, topic: str, rng: random.Random) -> str:
    choices = _subjects(fact)
    if topic in choices and rng.random() < 0.7:
        return topic
    return rng.choice(choices)


def _draw_sentence(clauses: Sequence[Clause], topic: str, first: bool, rng: random.Random) -> Sentence:
    draw = rng.random()
    layout: Layout = "plain"
    if len(clauses) == 2 and draw < 0.2:
        layout = "relative"
    elif draw > 0.8:
        layout = "fronted"
    joint = rng.choice((" and ", " and also "))
    subject = clauses[0].subject
    stand_in = ""
    may_stand_in = subject == topic and not first and layout != "relative"
    if may_stand_in and rng.random() < _SHARE_STAND_INS:
        stand_in = _draw_stand_in(subject, rng)
    return write_sentence(clauses, layout, joint, stand_in)


def draw_sentences(
    facts: Sequence[Fact], topic: str, rng: random.Random, *, opening: bool = True
) -> list[Sentence]:
    """Put facts into sentences, in this order.

    Some facts in a row that can share a subject share a sentence.

    Args:
        facts: What to say.
        topic: What the passage is about.
        rng: Source of the draws.
        opening: Whether these are the first sentences that name anything. Then the first has the topic for
            its subject, so the first fact has to be about it.
    """
    found: list[Sentence] = []
    at = 0
    while at < len(facts):
        fact = facts[at]
        first = opening and not found
        subject = topic if first else _draw_subject(fact, topic, rng)
        clauses = [draw_clause(fact, subject, rng)]
        if at + 1 < len(facts) and subject in _subjects(facts[at + 1]) and rng.random() < _SHARE_JOINED:
            clauses.append(draw_clause(facts[at + 1], subject, rng))
        found.append(_draw_sentence(clauses, topic, first, rng))
        at += len(clauses)
    return found


def join(sentences: Iterable[Sentence]) -> str:
    """The text of sentences."""
    return " ".join(sentence.text for sentence in sentences)


def first_name(sentences: Iterable[Sentence]) -> str:
    """The topic: the first entity that sentences name; empty for none."""
    return next((name for sentence in sentences for name in names_in(sentence.text)), "")


def settle(sentences: Iterable[Sentence]) -> list[Sentence]:
    """Sentences in which every stand-in stands for the topic of just these sentences.

    Where one stood for something else, because sentences before it were changed, the name takes its place.

    Args:
        sentences: What a passage is to be made of.
    """
    found: list[Sentence] = []
    for sentence in sentences:
        if sentence.stand_in and sentence.clauses[0].subject != first_name(found):
            name = sentence.clauses[0].subject
            if sentence.whole:
                sentence = write_sentence(sentence.clauses, sentence.layout, sentence.joint)
            else:
                pattern = re.compile(re.escape(sentence.stand_in), re.IGNORECASE)
                sentence = replace(sentence, text=pattern.sub(name, sentence.text, count=1), stand_in="")
        found.append(sentence)
    return found


def count_words(sentences: Iterable[Sentence]) -> int:
    """Words of sentences, by white space."""
    return sum(len(sentence.text.split()) for sentence in sentences)


def render(
    facts: Sequence[Fact],
    rng: random.Random,
    *,
    topic: str | None = None,
    remarks: float = 0.8,
    least_words: int = 0,
) -> str:
    """A passage that states these facts and no other, in words that are drawn.

    Args:
        facts: What to say; at least one.
        rng: Source of the draws.
        topic: What the passage is about; the entity of most facts by default. A topic that no fact names is
            not possible.
        remarks: Expected number of sentences that state nothing, besides what ``least_words`` asks for.
        least_words: Remarks are added, as long as there are any left, until the text has so many words.

    Raises:
        ValueError: There is no fact, or none is about the topic.
    """
    if not facts:
        raise ValueError("a passage needs at least one fact")
    topic = topic or topic_of(facts)
    own = [fact for fact in facts if topic in _subjects(fact)]
    if not own:
        raise ValueError(f"no fact is about '{topic}'")
    first = rng.choice(own)
    rest = list(facts)
    rest.remove(first)
    rng.shuffle(rest)
    sentences = draw_sentences([first, *rest], topic, rng)
    kind = kind_of(topic)
    ideas = list(REMARKS[kind] if kind is not None else ())
    rng.shuffle(ideas)
    while ideas and (count_words(sentences) < least_words or rng.random() < remarks / (1 + remarks)):
        remark = rng.choice(ideas.pop())
        sentences.insert(rng.randint(1, len(sentences)), Sentence(remark))
    return join(sentences)


_SAME_REMARKS: dict[str, tuple[str, ...]] = {
    wording: idea for ideas in REMARKS.values() for idea in ideas for wording in idea
}


def paraphrase(text: str, rng: random.Random) -> str:
    """The same facts in other words: other phrases, the other way round, sentences cut and joined anew.

    Remarks are put in their other wording. A sentence that is not understood as a whole stays as it is, and
    turns of phrase of the simulated writer are dropped. The first sentence keeps its subject, for it is what
    stand-ins stand for.

    Args:
        text: A text of the world's language.
        rng: Source of the draws.
    """
    sentences = read(text)
    topic = first_name(sentences)
    found: list[Sentence] = []
    pending: list[Fact] = []
    for sentence in [*sentences, None]:
        if sentence is not None and sentence.clauses and sentence.whole:
            pending += sentence.facts
            continue
        if pending:
            found += draw_sentences(pending, topic, rng, opening=not first_name(found))
            pending = []
        if sentence is not None:
            others = [wording for wording in _SAME_REMARKS.get(sentence.text, ()) if wording != sentence.text]
            found.append(Sentence(rng.choice(others)) if others else sentence)
    return join(settle(found))
