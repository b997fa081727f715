"""What a question needs, and what a text that states some facts does for it.

A need is a conjunction of patterns over facts, with variables: "Which town was the person who founded Aldara
Works born in?" is ``born(?via, ?x)`` and ``founded(?via, Aldara Works)``, and asks for ``?x``. A text answers
it if the facts that the text itself states satisfy all patterns with a true value of ``?x``: both conditions
and both hops have to be in the one text. What a text leaves unsaid is not filled in from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal, NamedTuple

from causalneg.data.schema import Facet
from causalneg.world.language import Fact, kind_of
from causalneg.world.lexicon import RELATIONS, SORT_NOUNS, Kind

QuestionKind = Literal["single", "constrained", "two-hop"]
TextVerdict = Literal["answers", "wrong answer", "partial answer", "related", "off topic"]
Binding = Mapping[str, str | int]

SOUGHT = "?x"
"""The variable of what is asked for."""

VIA = "?via"
"""The variable of the thing between two hops."""


def is_variable(value: str | int | None) -> bool:
    """Whether a part of a pattern is a variable."""
    return isinstance(value, str) and value.startswith("?")


@dataclass(frozen=True)
class Pattern:
    """A fact with open parts.

    Args:
        relation: Name of the relation; empty for any relation, either way round.
        subject: A name, or a variable (it begins with "?").
        object: A name, a number in digits, or a variable.
        year: A year that must be stated, a variable for any stated year, None if the year does not matter.
    """

    relation: str
    subject: str
    object: str
    year: int | str | None = None

    def bind(self, binding: Binding) -> Pattern:
        """The pattern with the values of known variables put in."""
        subject, object = (
            str(binding.get(self.subject, self.subject)),
            str(binding.get(self.object, self.object)),
        )
        year = binding.get(self.year, self.year) if isinstance(self.year, str) else self.year
        return Pattern(self.relation, subject, object, year)

    def parts(self) -> tuple[str, str, int | str | None]:
        """Subject, object and year."""
        return self.subject, self.object, self.year

    def variables(self) -> list[str]:
        """The variables in it."""
        return [str(part) for part in self.parts() if is_variable(part)]

    def constants(self) -> list[str]:
        """The names and numbers in it."""
        return [part for part in (self.subject, self.object) if not is_variable(part)]


@dataclass(frozen=True)
class Need:
    """What a question asks for.

    Args:
        query_id: Id of the question.
        kind: One pattern and one condition (single), two conditions on one thing (constrained), or two hops.
        patterns: What a text has to state; the first one has what is asked for.
        kinds: Kind of each variable; "year" for a year.
        answers: The true values of what is asked for, as text, sorted.
        split: Part of the questions it belongs to: train, dev or test.
    """

    query_id: str
    kind: QuestionKind
    patterns: tuple[Pattern, ...]
    kinds: Mapping[str, Kind | Literal["year"]]
    answers: tuple[str, ...]
    split: str

    @property
    def entities(self) -> list[str]:
        """The entities that the question names, in the order of the patterns."""
        return list(dict.fromkeys(name for pattern in self.patterns for name in pattern.constants()))


def _matches(pattern: Pattern, fact: Fact) -> Iterator[dict[str, str | int]]:
    """The bindings with which a pattern becomes a fact of its relation."""
    ways = [fact.ends()] if pattern.relation else [fact.ends(), fact.ends()[::-1]]
    for ends in ways:
        binding: dict[str, str | int] = {}
        for wanted, found in zip(pattern.parts(), (*ends, fact.year), strict=True):
            if wanted is None:
                continue
            if found is None:
                break
            if isinstance(wanted, str) and is_variable(wanted):
                if binding.setdefault(wanted, found) != found:
                    break
            elif wanted != found:
                break
        else:
            yield binding


def solve(
    patterns: Sequence[Pattern],
    facts: Callable[[Pattern], Iterable[Fact]] | Sequence[Fact],
    kinds: Mapping[str, str] | None = None,
) -> list[dict[str, str | int]]:
    """All ways to satisfy patterns at once.

    Args:
        patterns: What must hold.
        facts: Facts, or a function that gives those that may match a pattern.
        kinds: Kind of each variable, where it must be checked; "year" is not.
    """
    found: list[dict[str, str | int]] = [{}]
    for pattern in patterns:
        grown = []
        for binding in found:
            bound = pattern.bind(binding)
            for fact in facts(bound) if callable(facts) else facts:
                if bound.relation not in ("", fact.relation):
                    continue
                for more in _matches(bound, fact):
                    if kinds is None or all(
                        kinds.get(name, "year") in ("year", kind_of(str(value)))
                        for name, value in more.items()
                    ):
                        grown.append({**binding, **more})
        found = grown
    return found


class NeedRequirement(NamedTuple):
    """One thing that a text must do to answer a question.

    Args:
        facet: What it is about.
        text: The requirement in one sentence.
        key: What it is called in code: ``"entity:Aldara Works"``, ``"year:0"``, ``"relation:0"``,
            ``"stated:0"``; the number is that of a pattern.
    """

    facet: Facet
    text: str
    key: str


def _describe(value: str | int | None, kinds: Mapping[str, str]) -> str:
    if not isinstance(value, str) or not is_variable(value):
        return str(value)
    if value == SOUGHT:
        return f"the {SORT_NOUNS.get(kinds[value], kinds[value])} asked for"  # type: ignore[call-overload]
    return f"the {SORT_NOUNS[kinds[value]]} between"  # type: ignore[index]


def requirements_of(need: Need) -> list[NeedRequirement]:
    """The requirements of a need, each of which can be relaxed alone.

    Args:
        need: What is asked for.
    """
    found = [
        NeedRequirement("entity", f"It speaks of {name}, not of another {kind_of(name)}.", f"entity:{name}")
        for name in need.entities
    ]
    for number, pattern in enumerate(need.patterns):
        relation = RELATIONS[pattern.relation]
        said = relation.forward[0].past.format(_describe(pattern.object, need.kinds))
        fact = f"{_describe(pattern.subject, need.kinds)} {said}"
        if isinstance(pattern.year, int):
            dated = f"It says that {fact} in {pattern.year}, not in another year."
            found.append(NeedRequirement("constraint", dated, f"year:{number}"))
        bound = f"It says that {fact}, not the other way round or otherwise."
        found.append(NeedRequirement("relation", bound, f"relation:{number}"))
        facet: Facet = "attribute" if number == 0 else "reasoning" if need.kind == "two-hop" else "constraint"
        when = ", and when" if is_variable(pattern.year) else ""
        found.append(NeedRequirement(facet, f"It tells at all that {fact}{when}.", f"stated:{number}"))
    return found


def _relaxed(need: Need, keys: Sequence[str]) -> tuple[list[Pattern], dict[str, str], list[str]]:
    """Patterns without some requirements, the kinds of their variables, and names that must be there."""
    kinds: dict[str, str] = dict(need.kinds)
    dropped = {int(key.split(":")[1]) for key in keys if key.startswith("stated:")}
    freed = {key.partition(":")[2]: f"?any{n}" for n, key in enumerate(keys) if key.startswith("entity:")}
    for name, variable in freed.items():
        kinds[variable] = str(kind_of(name))
    patterns = []
    for number, pattern in enumerate(need.patterns):
        if number in dropped:
            continue
        if f"relation:{number}" in keys:
            pattern = replace(pattern, relation="")
        if f"year:{number}" in keys:
            pattern = replace(pattern, year=None)
        ends = {
            side: freed.get(getattr(pattern, side), getattr(pattern, side)) for side in ("subject", "object")
        }
        patterns.append(replace(pattern, **ends))
    joint = need.kind == "constrained" and len(need.patterns) > 1
    left = need.patterns[0].constants() if 0 in dropped and not joint else []
    return patterns, kinds, [name for name in left if name not in freed]


class Oracle:
    """Decides what facts do for needs, by the true facts of a world.

    Args:
        facts: All true facts.
    """

    def __init__(self, facts: Iterable[Fact]) -> None:
        self._by_end: dict[tuple[str, str], list[Fact]] = {}
        self._solved: dict[tuple[Pattern, ...], list[dict[str, str | int]]] = {}
        for fact in facts:
            for name in fact.ends():
                self._by_end.setdefault((fact.relation, name), []).append(fact)

    def true_facts(self, pattern: Pattern) -> list[Fact]:
        """The true facts that may match a pattern with at least one known end."""
        name = pattern.constants()[0]
        return self._by_end.get((pattern.relation, name), [])

    def solutions(self, patterns: Sequence[Pattern]) -> list[dict[str, str | int]]:
        """All true ways to satisfy patterns."""
        key = tuple(patterns)
        if key in self._solved:
            return self._solved[key]
        waiting, ordered = list(patterns), []
        known: set[str] = set()
        while waiting:
            ready = next(p for p in waiting if p.constants() or known.intersection(p.variables()))
            waiting.remove(ready)
            ordered.append(ready)
            known.update(ready.variables())
        self._solved[key] = solve(ordered, self.true_facts)
        return self._solved[key]

    def verdict(self, need: Need, facts: Sequence[Fact], names: Iterable[str]) -> TextVerdict:
        """What a text does for a need.

        Args:
            need: What is asked for.
            facts: What the text states.
            names: The entities that the text names.

        Returns:
            "answers"; "wrong answer": all patterns hold, but with an untrue value; "partial answer": the text
            states the fact with a true answer in it, and keeps silent on a condition; "related": it names an
            entity of the question, or speaks of a relation of it; "off topic" otherwise.
        """
        found = [str(binding[SOUGHT]) for binding in solve(need.patterns, facts)]
        if any(value in need.answers for value in found):
            return "answers"
        if found:
            return "wrong answer"
        relations = {pattern.relation for pattern in need.patterns}
        on_topic = any(fact.relation in relations for fact in facts)
        if on_topic and self._is_partial(need, facts):
            return "partial answer"
        return "related" if on_topic or set(need.entities).intersection(names) else "off topic"

    def _is_partial(self, need: Need, facts: Sequence[Fact]) -> bool:
        for solution in self.solutions(need.patterns):
            bound = [pattern.bind(solution) for pattern in need.patterns]
            stated = [any(True for _ in solve([replace(pattern, year=None)], facts)) for pattern in bound]
            asks_year = is_variable(need.patterns[0].year)
            first = bool(solve([bound[0]], facts)) if asks_year else stated[0]
            second = need.kind == "constrained" and len(bound) > 1 and stated[1]
            if (first or second) and not any(
                _is_contradicted(original, pattern, facts)
                for original, pattern in zip(need.patterns, bound, strict=True)
            ):
                return True
        return False

    def violated(self, need: Need, facts: Sequence[Fact], names: Iterable[str]) -> list[NeedRequirement]:
        """The fewest requirements whose relaxation would make the facts an answer; none if they are one.

        Of several smallest sets the first one counts, in the order of :func:`requirements_of`. A text that
        names an entity of the question speaks of it, whatever else it does.

        Args:
            need: What is asked for.
            facts: What the text states.
            names: The entities that the text names.
        """
        there = set(names)
        listed = [r for r in requirements_of(need) if r.key.removeprefix("entity:") not in there]
        for size in range(len(listed) + 1):
            for some in combinations(listed, size):
                patterns, kinds, left = _relaxed(need, [requirement.key for requirement in some])
                if all(name in there for name in left) and self._holds(need, patterns, facts, kinds):
                    return list(some)
        return listed

    def _holds(
        self, need: Need, patterns: Sequence[Pattern], facts: Sequence[Fact], kinds: Mapping[str, str]
    ) -> bool:
        """Whether relaxed patterns hold; a hop that lost the other hop has to be the true one."""
        if need.kind == "two-hop" and len(patterns) == 1 and not patterns[0].constants():
            return any(solve([patterns[0].bind(true)], facts) for true in self.solutions(need.patterns))
        return not patterns or bool(solve(patterns, facts, kinds))


def _is_contradicted(original: Pattern, bound: Pattern, facts: Sequence[Fact]) -> bool:
    """Whether a text says something else in the place of a fact.

    Something else is the same relation of the same open thing with another end or year, or another relation
    between the same two.
    """
    if solve([bound], facts):
        return False
    for fact in facts:
        if fact.relation != bound.relation:
            if set(fact.ends()) == {bound.subject, bound.object}:
                return True
            continue
        if fact.ends() == (bound.object, bound.subject):
            return True
        same = [
            part
            for part, was in zip(("subject", "object"), original.parts(), strict=False)
            if is_variable(was)
        ]
        for part in same or ["subject"]:
            if getattr(fact, part) == getattr(bound, part):
                other_end = fact.ends() != (bound.subject, bound.object)
                other_year = isinstance(bound.year, int) and fact.year not in (None, bound.year)
                if other_end or other_year:
                    return True
    return False
