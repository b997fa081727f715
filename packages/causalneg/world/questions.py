"""How a need is asked."""

from __future__ import annotations

import random

from causalneg.world.lexicon import RELATIONS, SORT_NOUNS, Kind, Phrase, Side
from causalneg.world.needs import SOUGHT, VIA, Need, Pattern


def _what(kind: str, rng: random.Random) -> str:
    if kind == "year":
        return rng.choice(("When", "In which year"))
    if kind == "person":
        return rng.choice(("Who", "Who", "Which person"))
    return f"{rng.choice(('Which', 'What'))} {SORT_NOUNS[kind]}"  # type: ignore[index]


def _draw(pattern: Pattern, side: Side, rng: random.Random) -> Phrase:
    phrases = RELATIONS[pattern.relation].phrases(side)
    return rng.choice(phrases)


def _dated(text: str, pattern: Pattern) -> str:
    return f"{text} in {pattern.year}" if isinstance(pattern.year, int) else text


def _ask(subject: str, base: str) -> str:
    """The order of a question: "did X acquire", "was X acquired by"."""
    return f"was {subject} {base.removeprefix('be ')}" if base.startswith("be ") else f"did {subject} {base}"


def _without_slot(phrase: str) -> str:
    return " ".join(phrase.replace("{}", " ").split())


def _predicate(pattern: Pattern, of: str, rng: random.Random) -> str:
    """What is said of one end of a pattern, in the past tense, with the other end and the year."""
    side: Side = "forward" if pattern.subject == of else "inverse"
    other = pattern.object if side == "forward" else pattern.subject
    return _dated(_draw(pattern, side, rng).past.format(other), pattern)


def _ask_one(pattern: Pattern, kind: str, rng: random.Random) -> str:
    """Ask for the open part of a pattern whose other parts are words."""
    what = _what(kind, rng)
    if kind == "year":
        sides: tuple[Side, ...] = (
            ("forward",) if RELATIONS[pattern.relation].object == "number" else ("forward", "inverse")
        )
        side = rng.choice(sides)
        ends = (pattern.subject, pattern.object) if side == "forward" else (pattern.object, pattern.subject)
        return f"{what} {_ask(ends[0], _draw(pattern, side, rng).base.format(ends[1]))}?"
    if kind == "number":
        phrases = [p for p in RELATIONS[pattern.relation].forward if not p.base.endswith("{}")]
        phrase = rng.choice(phrases)
        before, after = phrase.base.split("{}")
        return f"How many{after} {_dated(_ask(pattern.subject, before.strip()), pattern)}?"
    if rng.random() < 0.5:
        return f"{what} {_predicate(pattern, SOUGHT, rng)}?"
    side = "inverse" if pattern.subject == SOUGHT else "forward"
    known = pattern.subject if side == "forward" else pattern.object
    return f"{what} {_dated(_ask(known, _without_slot(_draw(pattern, side, rng).base)), pattern)}?"


def ask(need: Need, rng: random.Random) -> str:
    """A question that asks for a need, in words that are drawn.

    Args:
        need: What is asked for.
        rng: Source of the draws.
    """
    kind = str(need.kinds[SOUGHT])
    first = need.patterns[0]
    if len(need.patterns) == 1:
        return _ask_one(first, kind, rng)
    second = need.patterns[1]
    if need.kind == "constrained":
        parts = [_predicate(pattern, SOUGHT, rng) for pattern in need.patterns]
        rng.shuffle(parts)
        return f"{_what(kind, rng)} {parts[0]} and {parts[1]}?"
    via: Kind = need.kinds[VIA]  # type: ignore[assignment]
    link = "who" if via == "person" else "that"
    known = f"the {SORT_NOUNS[via]} {link} {_predicate(second, VIA, rng)}"
    ends = {
        side: known if getattr(first, side) == VIA else getattr(first, side) for side in ("subject", "object")
    }
    return _ask_one(Pattern(first.relation, ends["subject"], ends["object"], first.year), kind, rng)
