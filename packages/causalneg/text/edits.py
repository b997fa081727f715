"""One piece of a text replaced by another, wherever it stands: names, subjects, values, verbs."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from functools import lru_cache

from causalneg.data.schema import Document
from causalneg.text.words import MONTHS, NUMBER_WORDS, has_phrase, match_article, stem, words

_ROMAN = re.compile(r"[IVXLC]+|Jr\.?|Sr\.?")

# Verbs of one line take the same kinds of subject and object and do not mean the same.
_VERBS = (
    "found close rename purchase",
    "design restore demolish photograph",
    "direct produce edit distribute",
    "publish review translate censor",
    "invent import patent advertise",
    "discover survey revisit ignore",
    "defeat recruit finance join",
    "compose record arrange perform",
    "marry divorce adopt sue",
    "elect dismiss nominate criticise",
    "conquer visit evacuate rebuild",
    "launch delay advertise rename",
    "establish abolish relocate inspect",
    "appoint dismiss succeed accuse",
    "develop test abandon license",
    "sign reject draft postpone",
    "own rent inspect insure",
    "kill rescue arrest pursue",
    "attack defend observe avoid",
    "create restore exhibit destroy",
    "paint steal sell frame",
    "increase measure stabilise reduce",
    "cause precede prevent hinder",
    "write translate review illustrate",
    "bear bury baptise arrest",
    "build repair demolish paint",
    "win lose postpone host",
)
_IRREGULAR = {
    "rebuild": ("rebuilt", "rebuilt", "rebuilding"),
    "steal": ("stole", "stolen", "stealing"),
    "sell": ("sold", "sold", "selling"),
    "write": ("wrote", "written", "writing"),
    "bear": ("bore", "born", "bearing"),
    "build": ("built", "built", "building"),
    "win": ("won", "won", "winning"),
    "lose": ("lost", "lost", "losing"),
}
# Their third person is the plural of a noun as well.
_NOUNS = frozenset(
    "attack bear build cause delay design draft finance frame host import increase launch measure paint "
    "patent photograph purchase record rent repair review sign survey test visit win".split()
)
_BEFORE_BASE = r"(?:(?<=\bto )|(?<=\bdid )|(?<=\bdoes )|(?<=\bwould )|(?<=\bcould )|(?<=\bwill )|(?<=\bnot ))"


def verb_forms(verb: str) -> tuple[str, str, str, str, str]:
    """Base, third person, past, participle and -ing form of a verb of the table."""
    if verb[-1] == "y" and verb[-2] not in "aeiou":
        third, past, ing = f"{verb[:-1]}ies", f"{verb[:-1]}ied", f"{verb}ing"
    elif verb[-1] == "e":
        third, past, ing = f"{verb}s", f"{verb}d", f"{verb[:-1]}ing"
    else:
        third, past, ing = (
            f"{verb}{'es' if verb.endswith(('sh', 'ch', 'ss')) else 's'}",
            f"{verb}ed",
            f"{verb}ing",
        )
    past, participle, ing = _IRREGULAR.get(verb, (past, past, ing))
    return verb, third, past, participle, ing


_OTHERS = {
    verb: [other for other in group.split() if other != verb]
    for group in reversed(_VERBS)
    for verb in group.split()
}
FORMS = {form: verb for verb in _OTHERS for form in verb_forms(verb)}
"""Verb of the table by each of its forms."""


def name_swaps(
    name: str, other: str, content: str, *, person: bool, common: Callable[[str], bool]
) -> dict[str, str]:
    """What to replace so that a text speaks of another thing: the name, its parts, its initials.

    Args:
        name: What is replaced.
        other: What takes its place.
        content: The text.
        person: Whether it is a person's name: first and last name may stand alone.
        common: Whether a word in small letters is no name.
    """
    swaps = {name: other}
    old, new = name.split(), other.split()
    if person and len(old) > 1:
        core = [w for w in old if not _ROMAN.fullmatch(w)]
        swaps.setdefault(core[-1], new[-1])
        if len(core) > 1 and not core[0].endswith(".") and not common(core[0].lower()):
            swaps.setdefault(core[0], new[0])
    elif len(old) > 1:
        for place, word in enumerate(old):
            if len(word) > 3 and word[0].isupper() and not common(word.lower()):
                swaps.setdefault(word, new[place] if len(new) == len(old) else other)
    short = initials(name)
    if len(short) > 1 and re.search(rf"\b{short}\b", content):
        swaps[short] = initials(other) if len(new) > 1 else other.upper()[:3]
    return swaps


def initials(name: str) -> str:
    """The first letters of the capitalised words of a name."""
    return "".join(word[0] for word in name.split() if word[0].isupper())


def topic_swaps(topic: str, other: str, content: str) -> dict[str, str]:
    """The same for a subject that is no name: its singular and its plural, and other forms of a single word.

    Args:
        topic: What is replaced, in small letters but perhaps for its first.
        other: What takes its place.
        content: The text.
    """
    old, new = topic.lower(), other.lower()
    many = new if new.endswith("s") else plural(new)
    swaps = {old: new, plural(old): many}
    if " " not in old:
        for form in sorted({w for w in words(content) if stem(w) == stem(old)}):
            swaps.setdefault(form, many if form.endswith("s") else new)
    return swaps


def plural(noun: str) -> str:
    """The regular plural of an English noun in small letters."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if noun[-1:] == "y" and noun[-2:-1] not in "aeiou" else f"{noun}s"


def replace_phrases(text: str, swaps: Mapping[str, str], *, cased: bool) -> str:
    """Replace phrases all at once, longest first, as whole words, with ``a`` and ``an`` put right.

    Args:
        text: The text.
        swaps: What takes the place of what.
        cased: Whether capitals must agree; if not, a phrase with a capital gives one with a capital.
    """
    if not text:
        return text

    def swapped(match: re.Match[str]) -> str:
        found = match.group()
        if cased:
            return swaps[found]
        new = swaps[found.lower()]
        return new[:1].upper() + new[1:] if found[:1].isupper() else new

    body = "|".join(map(re.escape, sorted(swaps, key=lambda phrase: (-len(phrase), phrase))))
    pattern = re.compile(rf"(?<![\w])(?:{body})(?!\w)", 0 if cased else re.IGNORECASE)
    changed = pattern.sub(swapped, text)
    return changed if changed == text else match_article(changed, swaps.values())


def shift_value(
    document: Document, value: str, rng: random.Random, taken: set[str]
) -> tuple[str, str] | None:
    """Put another year, number or month in the place of one, in title and text.

    Args:
        document: What to edit.
        value: A year, a number in digits or in a word, or a month.
        rng: Source of the draw.
        taken: Words of the query, which must not come in.

    Returns:
        Title and text; None if there is no other value.
    """
    there = set(words(document.content)) | taken
    choices = [v for v in other_values(value) if v.lower() not in there]
    if not choices:
        return None
    new = rng.choice(choices)
    pattern = re.compile(
        rf"(?<![\w.,-]){re.escape(value)}(?!\w|[.,]\d)|(?<=[\u2013-]){re.escape(value)}(?![\w,.]\d)",
        0 if value in MONTHS else re.IGNORECASE,
    )

    def swapped(match: re.Match[str]) -> str:
        return new[:1].upper() + new[1:] if match.group()[:1].isupper() else new

    title, text = pattern.sub(swapped, document.title), pattern.sub(swapped, document.text)
    gone = not has_phrase(f"{title} {text}", value, ignore_case=value not in MONTHS)
    return (title, text) if gone else None


def other_values(value: str) -> list[str]:
    """Values like one: years not far off, numbers of the same size and form, other months.

    Args:
        value: A year, a number in digits or in a word, or a month.
    """
    if value in MONTHS:
        return [m for m in MONTHS if m not in (value, "May", "March")]
    if value.lower() in NUMBER_WORDS:
        own = NUMBER_WORDS[value.lower()]
        low, high = (2, 12) if own <= 12 else (13, 100)
        return [w for w, n in NUMBER_WORDS.items() if low <= n <= high and n != own]
    found = re.fullmatch(r"(\d[\d,]*)((?:\.\d+)?)(st|nd|rd|th|s)?", value)
    if found is None:
        return []
    digits, rest, ending = found.group(1), found.group(2), found.group(3) or ""
    number = int(digits.replace(",", ""))
    if len(digits) == 4 and 1000 <= number < 2100:
        near = [number + d for d in (*range(-12, 0), *range(1, 13))]
        return [f"{n}{ending}" for n in near if 1000 <= n < 2030]
    if ending == "s":
        return [f"{n}s" for n in range(number - 40, number + 50, 10) if n >= 0 and n != number]
    spread = max(3, round(0.4 * number))
    near = sorted({number + round(spread * step / 6) for step in range(-6, 7)} - {number})
    near = [n for n in near if n > 0 and len(str(n)) == len(str(number))]
    if ending:
        return [f"{n}{_ordinal_ending(n)}" for n in near]
    return [(f"{n:,}" if "," in digits else str(n)) + rest for n in near]


def _ordinal_ending(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


@lru_cache(maxsize=256)
def verb_pattern(verb: str) -> re.Pattern[str]:
    """Finds any form of a verb of the table; its bare form where a helper stands before it."""
    base, third, *rest = verb_forms(verb)
    forms = {*rest, *(() if verb in _NOUNS else (third,))} - {base}
    body = "|".join(sorted(forms, key=lambda form: (-len(form), form)))
    return re.compile(rf"\b(?:{body}|{_BEFORE_BASE}{base})\b")


def says_verb(text: str, participle: str) -> bool:
    """Whether a text has any form of a verb of the table.

    Args:
        text: The text.
        participle: The verb's past participle; one that the table lacks is looked for as it is.
    """
    verb = FORMS.get(participle)
    return has_phrase(text, participle) if verb is None else verb_pattern(verb).search(text) is not None


def break_relation(document: Document, participle: str, rng: random.Random) -> tuple[str, str] | None:
    """Let another thing happen: every form of a verb gives way to the same form of another.

    Args:
        document: What to edit.
        participle: Past participle of the verb.
        rng: Source of the draw.

    Returns:
        Title and text; None for a verb that is not in the table, or that is not there.
    """
    verb = FORMS.get(participle)
    if verb is None:
        return None
    other = rng.choice(_OTHERS[verb])
    old, new = verb_forms(verb), verb_forms(other)
    swaps: dict[str, str] = {}
    for one, two in zip(old, new, strict=True):
        swaps.setdefault(one, two)
    text = verb_pattern(verb).sub(lambda match: swaps[match.group()], document.text)
    return None if text == document.text else (document.title, text)
