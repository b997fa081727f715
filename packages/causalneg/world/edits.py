"""Rewriting a passage so that it misses one requirement of a question and keeps all others.

These are the tools of a counterfactual writer that knows the language of the world. A rewritten passage may
say what is not true of the world; it must never answer the question, nor give it a wrong or partial answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from causalneg.world.language import Clause, Fact, Sentence, kind_of, names_in, parse, read, write_sentence
from causalneg.world.lexicon import RELATIONS, Kind
from causalneg.world.needs import VIA, Need, NeedRequirement, Oracle, is_variable, solve
from causalneg.world.writing import draw_clause, draw_sentences, first_name, fitting_stand_in, join, settle

EditStrategy = Literal[
    "entity shift", "relation break", "constraint violation", "attribute shift", "upstream/downstream"
]
"""The strategies that the world can carry out."""

_TARGETS: dict[EditStrategy, tuple[str, ...]] = {
    "entity shift": ("entity",),
    "relation break": ("relation",),
    "constraint violation": ("year", "entity", "stated:1"),
    "attribute shift": ("stated:0",),
    "upstream/downstream": ("stated:0",),
}
_TRIES = 6

_Sentences = list[Sentence]


@dataclass(frozen=True)
class Edit:
    """A rewritten passage.

    Args:
        text: Its words.
        requirement: The one requirement it violates.
        strategy: How.
    """

    text: str
    requirement: NeedRequirement
    strategy: EditStrategy


def _renamed(fact: Fact, old: str, new: str) -> Fact:
    subject, object = (new if name == old else name for name in fact.ends())
    return replace(fact, subject=subject, object=object)


def _rename(sentence: Sentence, old: str, new: str) -> Sentence:
    """A sentence about another entity of the same kind."""
    text = re.sub(rf"\b{re.escape(old)}\b", new, sentence.text)
    stand_in = sentence.stand_in
    if stand_in and sentence.clauses[0].subject == old:
        stand_in = fitting_stand_in(stand_in, new)
        text = re.sub(rf"\b{sentence.stand_in}\b", stand_in, text, count=1)
        text = re.sub(rf"\b{sentence.stand_in.lower()}\b", stand_in.lower(), text, count=1)
    clauses = tuple(replace(clause, fact=_renamed(clause.fact, old, new)) for clause in sentence.clauses)
    return replace(sentence, text=text, clauses=clauses, stand_in=stand_in)


def _with_clauses(sentence: Sentence, clauses: Sequence[Clause]) -> Sentence:
    return write_sentence(clauses, sentence.layout, sentence.joint, sentence.stand_in)


def _restate(sentences: _Sentences, change: Mapping[Fact, Fact], rng: random.Random) -> _Sentences | None:
    """Sentences that state other facts instead of some; None if a sentence with one is not understood."""
    found = []
    for sentence in sentences:
        if change.keys().isdisjoint(sentence.facts):
            found.append(sentence)
            continue
        if not sentence.whole:
            return None
        subject = sentence.clauses[0].subject
        clauses = []
        for clause in sentence.clauses:
            new = change.get(clause.fact)
            if new is None:
                clauses.append(clause)
            elif new.relation == clause.fact.relation and new.ends() == clause.fact.ends():
                clauses.append(replace(clause, fact=new))
            elif subject in new.ends():
                clauses.append(draw_clause(new, subject, rng))
            else:
                clauses = [draw_clause(new, new.subject if clause.side == "forward" else new.object, rng)]
                if len(sentence.clauses) > 1:
                    return None
        found.append(_with_clauses(sentence, clauses))
    return found


class Editor:
    """Rewrites passages of one world.

    Args:
        entities: Names by kind.
        splits: Split of each name; an entity is replaced by one of its own split.
        facts: All that is true.
        oracle: Decides what a text does for a need.
    """

    def __init__(
        self,
        entities: Mapping[Kind, Sequence[str]],
        splits: Mapping[str, str],
        facts: Sequence[Fact],
        oracle: Oracle,
    ) -> None:
        self._oracle = oracle
        self._peers: dict[tuple[Kind, str], list[str]] = {}
        for kind, names in entities.items():
            for name in names:
                self._peers.setdefault((kind, splits[name]), []).append(name)
        self._splits = splits
        self._facts_of: dict[str, list[Fact]] = {}
        for fact in facts:
            for name in fact.ends():
                self._facts_of.setdefault(name, []).append(fact)
        self._makers: dict[EditStrategy, Callable[[Need, _Sentences, random.Random], _Sentences | None]] = {
            "entity shift": self._shift_entity,
            "relation break": self._break_relation,
            "constraint violation": self._violate_constraint,
            "attribute shift": self._shift_attribute,
            "upstream/downstream": self._shift_in_time,
        }

    def edit(self, need: Need, text: str, strategy: EditStrategy, rng: random.Random) -> Edit | None:
        """Rewrite a text that answers a need so that one requirement is violated and all others hold.

        The result is checked by reading it again. It is on the topic, it answers nothing, not even wrongly or
        in part, and the relaxation of one requirement, which the strategy may break, would make it an answer.

        Args:
            need: What is asked for.
            text: A text that answers it.
            strategy: How to violate a requirement.
            rng: Source of the draws.

        Returns:
            The rewritten text; None where the strategy does not apply to the need or to this text.
        """
        sentences = read(text)
        facts = [fact for sentence in sentences for fact in sentence.facts]
        if self._oracle.verdict(need, facts, ()) != "answers":
            return None
        for _ in range(_TRIES):
            made = self._makers[strategy](need, sentences, rng)
            if made is None:
                continue
            edited = join(settle(made))
            stated, names = parse(edited), names_in(edited)
            if self._oracle.verdict(need, stated, names) != "related":
                continue
            violated = self._oracle.violated(need, stated, names)
            if len(violated) == 1 and violated[0].key.startswith(_TARGETS[strategy]):
                return Edit(edited, violated[0], strategy)
        return None

    def edit_again(self, need: Need, text: str, rng: random.Random) -> str | None:
        """Let a text that violates one requirement violate another one, by an entity that is another.

        The result is checked by reading it again: it is on the topic, and the fewest requirements whose
        relaxation would make it an answer are two.

        Args:
            need: What is asked for.
            text: A text that violates one requirement.
            rng: Source of the draws.

        Returns:
            The rewritten text; None where there is no such one.
        """
        for _ in range(_TRIES):
            made = self._shift_entity(need, read(text), rng)
            if made is None:
                return None
            edited = join(settle(made))
            stated, names = parse(edited), names_in(edited)
            related = self._oracle.verdict(need, stated, names) == "related"
            if related and len(self._oracle.violated(need, stated, names)) == 2:
                return edited
        return None

    def _targets(self, need: Need, sentences: _Sentences, number: int) -> list[Fact]:
        """The stated facts that fill a pattern of the need, with those that differ in the year only."""
        facts = [fact for sentence in sentences for fact in sentence.facts]
        filled = {
            (bound.relation, bound.subject, bound.object)
            for solution in solve(need.patterns, facts)
            for bound in [need.patterns[number].bind(solution)]
        }
        return [fact for fact in dict.fromkeys(facts) if (fact.relation, *fact.ends()) in filled]

    def _draw_peer(self, name: str, taken: set[str], rng: random.Random) -> str | None:
        """Another entity of the kind; half of the time one that has to do with the same things."""
        kind = kind_of(name)
        if kind is None or kind == "number" or name not in self._splits:
            return None
        near = {
            other for fact in self._facts_of[name] for end in fact.ends() for other in self._near(end, kind)
        }
        choices = sorted(near - taken)
        if not choices or rng.random() < 0.5:
            choices = [peer for peer in self._peers[kind, self._splits[name]] if peer not in taken]
        return rng.choice(choices) if choices else None

    def _near(self, name: str, kind: Kind) -> list[str]:
        if kind_of(name) == "number":
            return []
        return [end for fact in self._facts_of.get(name, ()) for end in fact.ends() if kind_of(end) == kind]

    def _shift_entity(self, need: Need, sentences: _Sentences, rng: random.Random) -> _Sentences | None:
        text = join(sentences)
        named = names_in(text)
        choices = [name for name in need.entities if name in named]
        if not choices:
            return None
        old = rng.choice(choices)
        new = self._draw_peer(old, {*named, *need.entities, *need.answers}, rng)
        return None if new is None else [_rename(sentence, old, new) for sentence in sentences]

    def _break_relation(self, need: Need, sentences: _Sentences, rng: random.Random) -> _Sentences | None:
        number = rng.randrange(len(need.patterns))
        targets = self._targets(need, sentences, number)
        relation = RELATIONS[need.patterns[number].relation]
        others = [
            other.name
            for other in RELATIONS.values()
            if (other.subject, other.object) == (relation.subject, relation.object) and other != relation
        ]
        swap = relation.subject == relation.object and (not others or rng.random() < 0.7)
        if not swap and not others:
            return None
        name = relation.name if swap else rng.choice(others)
        change = {}
        for fact in targets:
            ends = fact.ends()[::-1] if swap else fact.ends()
            change[fact] = Fact(name, *ends, fact.year if RELATIONS[name].dated else None)
        return _restate(sentences, change, rng)

    def _violate_constraint(self, need: Need, sentences: _Sentences, rng: random.Random) -> _Sentences | None:
        dated = [number for number, pattern in enumerate(need.patterns) if isinstance(pattern.year, int)]
        if dated:
            number = rng.choice(dated)
            asked = need.patterns[number].year
            targets = [fact for fact in self._targets(need, sentences, number) if fact.year == asked]
            near = {
                fact.year
                for target in targets
                for name in target.ends()
                for fact in self._facts_of.get(name, ())
                if kind_of(name) != "number" and fact.year is not None
            }
            years = sorted(near - {pattern.year for pattern in need.patterns})
            if not years:
                return None
            year = rng.choice(years)
            return _restate(sentences, {fact: replace(fact, year=year) for fact in targets}, rng)
        if need.kind != "constrained":
            return None
        number = rng.randrange(len(need.patterns))
        pattern = need.patterns[number]
        side = "object" if is_variable(pattern.subject) else "subject"
        named = set(names_in(join(sentences)))
        new = self._draw_peer(getattr(pattern, side), {*named, *need.entities, *need.answers}, rng)
        if new is None:
            return None
        targets = self._targets(need, sentences, number)
        change = {
            fact: replace(fact, subject=new) if side == "subject" else replace(fact, object=new)
            for fact in targets
        }
        return _restate(sentences, change, rng)

    def _asked_about(self, need: Need, sentences: _Sentences) -> list[str]:
        """The known entities of the asked fact: those of the question, or the one between two hops."""
        first = need.patterns[0]
        facts = [fact for sentence in sentences for fact in sentence.facts]
        found = list(first.constants())
        found += [str(solution[VIA]) for solution in solve(need.patterns, facts) if VIA in solution]
        return [name for name in dict.fromkeys(found) if kind_of(name) != "number"]

    def _replace_asked(
        self, need: Need, sentences: _Sentences, instead: Fact, rng: random.Random
    ) -> _Sentences | None:
        """Sentences without the asked fact, and with another one in its place."""
        dropped = set(self._targets(need, sentences, 0))
        found: _Sentences = []
        put = False
        for sentence in sentences:
            if dropped.isdisjoint(sentence.facts):
                found.append(sentence)
                continue
            if not sentence.whole:
                return None
            left = [clause for clause in sentence.clauses if clause.fact not in dropped]
            if left:
                found.append(_with_clauses(sentence, left))
            if not put:
                topic = first_name(found) or next(
                    name for name in self._asked_about(need, sentences) if name in instead.ends()
                )
                found += draw_sentences([instead], topic, rng, opening=not first_name(found))
                put = True
        return found

    def _other_facts(self, need: Need, sentences: _Sentences) -> list[Fact]:
        stated = {(fact.relation, *fact.ends()) for sentence in sentences for fact in sentence.facts}
        asked = {pattern.relation for pattern in need.patterns}
        return [
            fact
            for name in self._asked_about(need, sentences)
            for fact in self._facts_of.get(name, ())
            if fact.relation not in asked and (fact.relation, *fact.ends()) not in stated
        ]

    def _shift_attribute(self, need: Need, sentences: _Sentences, rng: random.Random) -> _Sentences | None:
        if need.kind == "constrained" and len(need.patterns) > 1:
            return None
        choices = self._other_facts(need, sentences)
        return self._replace_asked(need, sentences, rng.choice(choices), rng) if choices else None

    def _shift_in_time(self, need: Need, sentences: _Sentences, rng: random.Random) -> _Sentences | None:
        """Tell what came right before or right after what is asked for."""
        if need.kind == "constrained" and len(need.patterns) > 1:
            return None
        years = {
            true.year
            for solution in self._oracle.solutions(need.patterns)
            for true in self._oracle.true_facts(need.patterns[0].bind(solution))
            if solve([need.patterns[0].bind(solution)], [true])
        }
        asked = min((year for year in years if year is not None), default=None)
        if asked is None:
            return None
        before = rng.random() < 0.5
        choices = [
            fact
            for fact in self._other_facts(need, sentences)
            if fact.year is not None and (fact.year < asked if before else fact.year > asked)
        ]
        if not choices:
            return None
        nearest = min(abs(fact.year - asked) for fact in choices if fact.year is not None)
        nearby = [fact for fact in choices if fact.year is not None and abs(fact.year - asked) <= nearest + 5]
        return self._replace_asked(need, sentences, rng.choice(nearby), rng)
