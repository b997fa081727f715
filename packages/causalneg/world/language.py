"""The language of the world: its sentences, and how they are read back.

A passage is a row of sentences. A sentence that states facts has one subject and one or two predicates::

    [In YEAR, ] SUBJECT PREDICATE [ in YEAR] [ and PREDICATE [ in YEAR]] .
    SUBJECT , who|which PREDICATE [ in YEAR] , PREDICATE [ in YEAR] .

The subject is a name, or a stand-in ("The company", "She") for the topic, which is the first entity that
the text names. A predicate is a phrase of a relation with a name or a number in it.

Others may write in the language as well, so the reader takes more than the writer gives: parts of a sentence
joined by commas, "but" or ";", each with a subject of its own if it begins with one; stand-ins for the last
entity of a kind where the topic is of another; "later", "had been", a year in the middle. What does not fit,
such as a denial, states nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from causalneg.text.style import strip_style
from causalneg.world.lexicon import (
    NAME_PARTS,
    RELATIONS,
    STAND_INS,
    Kind,
    Relation,
    Side,
)

Layout = Literal["plain", "fronted", "relative"]

FIRST_YEAR, LAST_YEAR = 1921, 1990
"""The years of the world. No other number of the world is from 1800 to 2099: that is a year to the reader."""


@dataclass(frozen=True, order=True)
class Fact:
    """A relation between two things, as a text states it.

    Args:
        relation: Name of the relation.
        subject: Name of its first part.
        object: Name of its second part, or a number in digits.
        year: When; None where no year is stated.
    """

    relation: str
    subject: str
    object: str
    year: int | None = None

    def ends(self) -> tuple[str, str]:
        """Subject and object."""
        return self.subject, self.object


@dataclass(frozen=True)
class Clause:
    """A fact and the words that state it.

    Args:
        fact: What is stated.
        side: Whether the subject of the sentence is the fact's subject (forward) or its object (inverse).
        phrase: Which of the relation's phrases.
    """

    fact: Fact
    side: Side
    phrase: int

    @property
    def subject(self) -> str:
        """The subject of the sentence."""
        return self.fact.subject if self.side == "forward" else self.fact.object

    def predicate(self, *, year: bool = True) -> str:
        """The predicate in the past tense, with its year unless that is said elsewhere."""
        relation, fact = RELATIONS[self.fact.relation], self.fact
        other = fact.object if self.side == "forward" else fact.subject
        said = relation.phrases(self.side)[self.phrase].past.format(other)
        return f"{said} in {fact.year}" if year and fact.year is not None else said


@dataclass(frozen=True)
class Sentence:
    """A sentence of a passage.

    Args:
        text: Its words. They stand as long as nothing in it is changed.
        clauses: The facts it states, in order; all of one subject. Empty for a remark.
        layout: How the clauses are put together.
        joint: What stands between two clauses of a plain or fronted sentence.
        stand_in: What it begins with instead of its subject's name; empty for the name.
        whole: Whether ``clauses`` say all of it. A sentence with parts that were not understood is not whole.
    """

    text: str
    clauses: tuple[Clause, ...] = ()
    layout: Layout = "plain"
    joint: str = " and "
    stand_in: str = ""
    whole: bool = True

    @property
    def facts(self) -> list[Fact]:
        """What it states."""
        return [clause.fact for clause in self.clauses]


def _split_pattern(template: str) -> tuple[str, str]:
    before, after = template.split("{}")
    return before.strip(), after.strip()


_KIND_OF_PARTS: dict[tuple[str, str], Kind] = {}
_FIRST_PARTS: dict[str, Kind] = {first: kind for kind, (parts, _) in NAME_PARTS.items() for first in parts}
_LAST_PARTS: dict[Kind, frozenset[str]] = {kind: frozenset(parts) for kind, (_, parts) in NAME_PARTS.items()}
_PREDICATES: dict[tuple[str, str], list[tuple[Relation, Side, int]]] = {}
for _relation in RELATIONS.values():
    for _side in ("forward", "inverse"):
        for _number, _phrase in enumerate(_relation.phrases(_side)):
            _PREDICATES.setdefault(_split_pattern(_phrase.past), []).append((_relation, _side, _number))

_STAND_IN_KINDS: dict[str, tuple[Kind, ...]] = {}
for _kind, _words in STAND_INS.items():
    for _word in _words:
        _STAND_IN_KINDS[_word] = (*_STAND_IN_KINDS.get(_word, ()), _kind)

_STAND_IN = re.compile(rf"(?:{'|'.join(sorted(_STAND_IN_KINDS, key=len, reverse=True))})\b")
_CAPITALS = re.compile(r"\b[A-Z][\w-]*(?: [A-Z][\w-]*)*")
_FRONTED = re.compile(r"(?:In|During) (?:the year )?((?:18|19|20)\d\d)(?: |$)")
_YEAR = re.compile(r" (?:in|during) (?:the year )?((?:18|19|20)\d\d)\b")
_PARTS = re.compile(r"(,? and also |,? and |,? but |; |, )")
_ADVERBS = re.compile(r"(?:(?:also|later|then|subsequently|eventually|soon|once|in turn) )+")
_NUMBER = re.compile(r"(?<!\S)\d[\d,]*(?!\S)")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_SMALL_THE = re.compile(
    rf"\bthe (?=(?:{'|'.join(first.removeprefix('The ') for first in NAME_PARTS['film'][0])}) "
    rf"(?:{'|'.join(NAME_PARTS['film'][1])})\b)"
)


def kind_of(name: str) -> Kind | None:
    """What a name names, by its parts; "number" for digits, None for words that are no name.

    Args:
        name: Words of a text.
    """
    if name.isdigit():
        return "number"
    first, _, last = name.rpartition(" ")
    kind = _FIRST_PARTS.get(first)
    return kind if kind is not None and last in _LAST_PARTS[kind] else None


def _names_with_places(text: str) -> Iterable[tuple[int, int, str]]:
    for run in _CAPITALS.finditer(text):
        words, start = run.group().split(" "), run.start()
        at = 0
        while at < len(words):
            for length in (3, 2):
                name = " ".join(words[at : at + length])
                if len(words) - at >= length and kind_of(name) is not None:
                    yield start, start + len(name), name
                    break
            else:
                length = 1
            start += len(" ".join(words[at : at + length])) + 1
            at += length


def names_in(text: str) -> list[str]:
    """Names of entities in a text, each once, in the order in which they are first named.

    Args:
        text: Any text.
    """
    return list(dict.fromkeys(name for _, _, name in _names_with_places(_SMALL_THE.sub("The ", text))))


def plain(text: str) -> str:
    """What is read of a text: it without turns of phrase of the simulated writer, titles with their capital.

    Args:
        text: Any text.
    """
    return _SMALL_THE.sub("The ", strip_style(text).strip())


def _find_predicate(
    before: str, after: str, kinds: tuple[Kind | None, Kind | None]
) -> tuple[Relation, Side, int] | None:
    for relation, side, number in _PREDICATES.get((before, after), ()):
        if (relation.kind(side), relation.other(side)) == kinds:
            return relation, side, number
    return None


def _read_predicate(text: str, subject: str, year: int | None) -> Clause | None:
    """The clause that a predicate makes with its subject; None for words of another language."""
    dated = _YEAR.search(text)
    if dated is not None:
        year, text = int(dated.group(1)), text[: dated.start()] + text[dated.end() :]
    places = [(start, end, name, kind_of(name)) for start, end, name in _names_with_places(text)]
    places += [(m.start(), m.end(), m.group().replace(",", ""), "number") for m in _NUMBER.finditer(text)]
    if len(places) != 1:
        return None
    start, end, other, kind = places[0]
    before, after = _ADVERBS.sub("", text[:start]).strip(), text[end:].strip()
    kinds = (kind_of(subject), kind)
    found = _find_predicate(before, after, kinds)
    if found is None:
        # "founded by", "had been founded by", "had acquired"
        bare = before.removeprefix("had ").removeprefix("been ")
        found = _find_predicate(bare, after, kinds) or _find_predicate(f"was {bare}", after, kinds)
    if found is None:
        return None
    relation, side, number = found
    ends = (subject, other) if side == "forward" else (other, subject)
    return Clause(Fact(relation.name, *ends, year), side, number)


def _name_at_start(text: str) -> str | None:
    return next((name for start, _, name in _names_with_places(text) if start == 0), None)


class _Reader:
    """Reads the sentences of one text in order."""

    def __init__(self) -> None:
        self.topic: str | None = None
        self.named: dict[Kind, str] = {}

    def _note(self, part: str) -> None:
        for name in names_in(part):
            self.topic = self.topic or name
            kind = kind_of(name)
            if kind is not None:
                self.named.pop(kind, None)
                self.named[kind] = name

    def _stand_in(self, part: str) -> tuple[str, str | None]:
        """The stand-in that a part begins with, and what it stands for: the topic if that is of its kind."""
        match = _STAND_IN.match(part[:1].upper() + part[1:])
        if match is None:
            return "", None
        kinds = _STAND_IN_KINDS[match.group()]
        if self.topic is not None and kind_of(self.topic) in kinds:
            return match.group(), self.topic
        return match.group(), next((self.named[kind] for kind in reversed(self.named) if kind in kinds), None)

    def read(self, text: str) -> Sentence:
        """Read one sentence."""
        subject = ""
        opening = ""
        clauses: list[Clause] = []
        pieces = _PARTS.split(text.rstrip(".!?"))
        year: int | None = None
        for part in pieces[::2]:
            last = next(reversed(self.named.values()), "") if clauses or subject else ""
            fronted = _FRONTED.match(part)
            if fronted is not None:
                year, part = int(fronted.group(1)), part[fronted.end() :]
            name, (stand_in, stood_for) = _name_at_start(part), self._stand_in(part)
            about = subject
            if name is not None:
                about = subject = name
                part = part[len(name) :]
            elif stood_for is not None:
                opening = opening if subject else stand_in
                about = subject = stood_for
                part = part[len(stand_in) :]
            elif part.startswith(("who ", "which ")):
                about, part = last, part.partition(" ")[2]
            self._note(f"{name or ''} {part}")
            clause = _read_predicate(part.strip(), about, year) if about and part.strip() else None
            if clause is not None:
                clauses.append(clause)
                year = None
        if not clauses:
            return Sentence(text)
        relative = len(pieces) > 2 and pieces[2].startswith(("who ", "which "))
        layout: Layout = "relative" if relative else "fronted" if _FRONTED.match(pieces[0]) else "plain"
        joint = next((piece for piece in pieces[1::2] if "and" in piece), " and ")
        again = write_sentence(clauses, layout, joint, opening)
        whole = again.text == text and all(clause.subject == subject for clause in clauses)
        return replace(again, text=text, whole=whole)


def read(text: str) -> list[Sentence]:
    """Read a text sentence by sentence.

    Turns of phrase of the simulated writer are dropped first: they are no part of what is said.

    Args:
        text: Any text.
    """
    reader = _Reader()
    return [reader.read(part) for part in _SENTENCE_END.split(plain(text))]


def parse(text: str) -> list[Fact]:
    """Every fact that a text states, in order, each as often as it is stated.

    Args:
        text: Any text; sentences of another language state nothing.
    """
    return [fact for sentence in read(text) for fact in sentence.facts]


def write_sentence(
    clauses: Sequence[Clause], layout: Layout = "plain", joint: str = " and ", stand_in: str = ""
) -> Sentence:
    """Put one or two clauses of one subject into a sentence.

    Args:
        clauses: What to say.
        layout: How; a layout that does not fit (a date in front where there is none) becomes a plain one.
        joint: Between two clauses.
        stand_in: Instead of the subject's name; empty for the name.
    """
    first, subject = clauses[0], clauses[0].subject
    head = stand_in or subject
    if layout == "relative" and (len(clauses) < 2 or stand_in):
        layout = "plain"
    if layout == "fronted" and first.fact.year is None:
        layout = "plain"
    if layout == "relative":
        pronoun = "who" if kind_of(subject) == "person" else "which"
        text = f"{head}, {pronoun} {first.predicate()}, {clauses[1].predicate()}."
    else:
        said = [
            clause.predicate(year=layout == "plain" or number > 0) for number, clause in enumerate(clauses)
        ]
        text = f"{head} {joint.join(said)}."
        if layout == "fronted":
            text = text[0].lower() + text[1:] if stand_in else text
            text = f"In {first.fact.year}, {text}"
    return Sentence(text, tuple(clauses), layout, joint, stand_in)
