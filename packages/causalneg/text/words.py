"""Any English text by rule: its words, its sentences, and spans that stand for something.

Nothing here knows a corpus; what a corpus teaches (which words are rare, what kind of thing a name is) is in
:mod:`causalneg.text.corpus`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import Stemmer

from causalneg.text.style import sentences

SpanKind = Literal["name", "title", "quote", "date", "year", "number"]
"""What a span stands for."""

AnswerKind = Literal["person", "place", "time", "number", "other"]
"""What a question asks for, as far as its first words say."""

STOP_WORDS = frozenset(
    (
        "a about above after again against all also although am among an and another any are as "
        "at be because been before being below between both but by can cannot could did do does "
        "doing done down during each either else ever every few for from further had has have "
        "having he her here hers herself him himself his how however i if in into is it its "
        "itself just let like many may me might more most much must my myself no nor not now of "
        "off often on once one only onto or other others our ours out over own per rather s same "
        "shall she should since so some such t than that the their theirs them themselves then "
        "there these they this those though through thus to together too toward towards under "
        "until up upon us very via was we were what when where whether which while who whom "
        "whose why will with within without would yet you your yours re ve ll d m don doesn didn "
        "isn aren wasn weren hasn haven hadn won wouldn couldn shouldn"
    ).split()
)
"""Function words; the words of questions are among them."""

MONTHS = tuple(
    "January February March April May June July August September October November December".split()
)
"""In the order of the year."""

NUMBER_WORDS = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
        "sixteen seventeen eighteen nineteen twenty".split()
    )
} | {
    word: 10 * value
    for value, word in enumerate("thirty forty fifty sixty seventy eighty ninety hundred".split(), start=3)
}
"""Numbers that are written as one word, up to a hundred."""

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_]+(?:['\u2019][^\W_]+)*")
_POSSESSIVE = re.compile(r"['\u2019]s$")

# Letters that begin names in Latin, Greek and Cyrillic script; `re` has no class for them.
_UPPER = "".join(c for c in map(chr, range(0x250)) if c.isupper()) + "\u0391-\u03a9\u0410-\u042f"
_CAPITAL = (
    rf"(?:(?:St|Mt|Dr|Mr|Mrs|Ms|Jr|Sr|Ft)\.|(?:[{_UPPER}]\.)+(?![{_UPPER}])|"
    rf"[{_UPPER}][\w]*(?:[-\u2019'](?!s\b)\w+)*(?:\.(?=[{_UPPER}]))?)"
)
_JOINT = r"(?:of the|of|de la|de|von der|von|van der|van|der|del|della|di|da|du|bin|ibn|al|&) "
_TAIL = rf"(?:{_CAPITAL}|\d{{1,4}}(?![\d,.:]*\d))"
_NAME = re.compile(rf"(?<![\w-]){_CAPITAL}(?: (?:{_JOINT})?{_CAPITAL})*(?: {_TAIL}(?![\w%-]))?")

_MONTH = rf"(?:{'|'.join(MONTHS)}|Sept|Jan|Feb|Aug|Oct|Nov|Dec)\b\.?"
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_DATE = re.compile(rf"\b(?:{_DAY} )?{_MONTH}(?: {_DAY}\b(?!\d))?(?:,? [12]\d{{3}}\b)?")
_YEAR = re.compile(r"(?<![\w,.$£€-])(?:1[0-9]{3}|20[0-9]{2})(?!\d|,\d|\.\d|%| percent| per cent| million)")
_YEAR_AFTER_DASH = re.compile(r"(?<=\d{4}[\u2013-])(?:1[0-9]{3}|20[0-9]{2})(?!\d)")
_NUMBER = re.compile(
    r"(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?(?:st|nd|rd|th|s)?(?![\w])"
    rf"|\b(?:{'|'.join(NUMBER_WORDS)})\b",
    re.IGNORECASE,
)
_QUOTE = re.compile(r"[\"“]([^\"“”]{2,80})[\"”]")

_DAYS = frozenset("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())
_NOT_NAMES = _DAYS | frozenset(MONTHS) | {"I", "BC", "AD", "BCE", "CE", "AM", "PM"}

_stemmer = Stemmer.Stemmer("english")


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A part of a text that stands for something.

    Args:
        start: Its first character.
        end: One past its last character.
        kind: What it stands for.
        text: The part itself.
    """

    start: int
    end: int
    kind: SpanKind
    text: str


def words(text: str) -> list[str]:
    """The words of a text in small letters, without possessive endings; Chinese and Japanese sign by sign."""
    return [_POSSESSIVE.sub("", w) if w[-2:] in ("'s", "\u2019s") else w for w in _WORD.findall(text.lower())]


_IRREGULAR = {
    form: base
    for base, *forms in map(
        str.split,
        (
            "bear bore born borne",
            "become became",
            "begin began begun",
            "break broke broken",
            "bring brought",
            "build built",
            "buy bought",
            "catch caught",
            "choose chose chosen",
            "come came",
            "draw drew drawn",
            "drive drove driven",
            "eat ate eaten",
            "fall fell fallen",
            "fight fought",
            "find found",
            "flee fled",
            "fly flew flown",
            "forget forgot forgotten",
            "get got gotten",
            "give gave given",
            "go went gone",
            "grow grew grown",
            "hold held",
            "keep kept",
            "know knew known",
            "lead led",
            "leave left",
            "lose lost",
            "make made",
            "meet met",
            "pay paid",
            "rise rose risen",
            "run ran",
            "say said",
            "see saw seen",
            "sell sold",
            "send sent",
            "sing sang sung",
            "speak spoke spoken",
            "spend spent",
            "stand stood",
            "steal stole stolen",
            "strike struck",
            "take took taken",
            "teach taught",
            "tell told",
            "think thought",
            "throw threw thrown",
            "win won",
            "write wrote written",
        ),
    )
    for form in forms
}


@lru_cache(maxsize=1 << 20)
def stem(word: str) -> str:
    """The stem of a word in small letters (Snowball, English); of an irregular verb that of its base form."""
    return str(_stemmer.stemWord(_IRREGULAR.get(word, word)))


def content_words(text: str) -> list[str]:
    """Stems of the words of a text that are no function words, in their order."""
    return [stem(w) for w in words(text) if w not in STOP_WORDS]


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, without the white space between them."""
    return [sentence for sentence, _ in sentences(text)]


def shingles(tokens: list[str], size: int = 5) -> set[tuple[str, ...]]:
    """All runs of ``size`` words; a shorter list is one run."""
    if not tokens:
        return set()
    return {tuple(tokens[i : i + size]) for i in range(max(1, len(tokens) - size + 1))}


def overlap(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    """Jaccard similarity of two sets of shingles; 0 if both are empty."""
    union = len(one | other)
    return len(one & other) / union if union else 0.0


def answer_kind(question: str) -> AnswerKind:
    """What kind of thing a question asks for, by its question words.

    Args:
        question: Any question; whatever is not recognised gives ``"other"``.
    """
    text = " ".join(words(question))
    for kind, pattern in _ASKED:
        if pattern.search(text):
            return kind
    return "other"


_ASKED: tuple[tuple[AnswerKind, re.Pattern[str]], ...] = (
    ("number", re.compile(r"\bhow (?:many|much|long|old|far|tall|large|big|high|deep|fast)\b")),
    ("number", re.compile(r"\b(?:what|which) (?:percentage|percent|number|amount|share|population|age)\b")),
    (
        "time",
        re.compile(r"\bwhen\b|\b(?:what|which) (?:\w+ )?(?:year|years|date|day|month|decade|century|time)\b"),
    ),
    ("place", re.compile(r"\bwhere\b|\b(?:what|which) (?:city|country|state|town|place|region|location)\b")),
    ("person", re.compile(r"\bwho(?:m|se)?\b|\b(?:what|which) (?:person|man|woman|actor|author|player)\b")),
)


def is_yes_no(question: str) -> bool:
    """Whether a question asks for yes or no: it begins with an auxiliary verb."""
    return (words(question) or [""])[0] in _AUXILIARIES


_AUXILIARIES = frozenset(
    "is are was were am do does did has have had can could will would shall should may might must "
    "isn't aren't don't doesn't can't".split()
)


def find_names(text: str, common: Callable[[str], bool] | None = None) -> list[Span]:
    """Names: runs of capitalised words, joined by the small words that names have.

    A word that has its capital only because it begins a sentence is no part of a name. Without a corpus to
    ask, that is a function word at the beginning of a run.

    Args:
        text: Any text.
        common: Says of a word in small letters whether it usually is written small.
    """
    found = []
    for match in _NAME.finditer(text):
        start, run = match.span()[0], match.group()
        while run:
            first, _, rest = run.partition(" ")
            low = first.lower()
            small = low in STOP_WORDS and not (first.isupper() and len(first) > 1)
            if not small and common is not None and _begins_sentence(text, start):
                small = first[1:].islower() and common(low)
            if not (small or first in _NOT_NAMES):
                break
            start += len(first) + (1 if rest else 0)
            run = rest
            joint = _LEADING_JOINT.match(run)
            if joint is not None:
                start, run = start + joint.end(), run[joint.end() :]
        run = _cut(run)
        run = run.rstrip(".") if run.count(".") == 1 and run.endswith(".") and len(run) > 2 else run
        if run and not run[0].isdigit() and run not in _NOT_NAMES and not _is_month_run(run):
            found.append(Span(start, start + len(run), "name", run))
    return found


def _cut(run: str) -> str:
    """A run without the sentence that begins inside it (``Charles I. He``)."""
    parts = run.split(" ")
    for i in range(1, len(parts)):
        if parts[i - 1].endswith(".") and parts[i].lower() in STOP_WORDS and len(parts[i]) > 1:
            return " ".join(parts[:i])
    return run


_LEADING_JOINT = re.compile(_JOINT)
_SENTENCE_START = re.compile(r"(?:^|[.!?:;]['\"\u201d\u2019)\]]*\s+|\n)['\"\u201c\u2018(\[]*$")


def _begins_sentence(text: str, start: int) -> bool:
    return start == 0 or _SENTENCE_START.search(text, max(0, start - 6), start) is not None


def _is_month_run(run: str) -> bool:
    first, _, rest = run.partition(" ")
    return first in _NOT_NAMES and (not rest or rest.isdigit())


def find_spans(text: str, *, title: str = "", common: Callable[[str], bool] | None = None) -> list[Span]:
    """Everything in a text that stands for something, in order.

    Spans of one kind do not overlap; a year inside a date is part of the date, a number inside a date or a
    year is none. Quotes may hold spans of other kinds; a quote's span leaves the quotation marks out.

    Args:
        text: Any text.
        title: Title of the text: its mentions get spans too; empty for none.
        common: As for :func:`find_names`.
    """
    found = find_names(text, common)
    taken = []
    for match in _DATE.finditer(text):
        if any(c.isdigit() for c in match.group()) or not match.group().startswith(
            ("May", "March", "August")
        ):
            taken.append(Span(match.start(), match.end(), "date", match.group()))
    years = [*_YEAR.finditer(text), *_YEAR_AFTER_DASH.finditer(text)]
    for match in years:
        _claim(taken, match.start(), match.end(), "year", match.group())
    for match in _NUMBER.finditer(text):
        _claim(taken, match.start(), match.end(), "number", match.group())
    found += taken
    found += [Span(m.start(1), m.end(1), "quote", m.group(1)) for m in _QUOTE.finditer(text)]
    if title:
        found += [Span(m.start(), m.end(), "title", m.group()) for m in phrase_pattern(title).finditer(text)]
    return sorted(set(found))


def _claim(taken: list[Span], start: int, end: int, kind: SpanKind, text: str) -> None:
    if not any(span.start < end and start < span.end for span in taken):
        taken.append(Span(start, end, kind, text))


@lru_cache(maxsize=4096)
def phrase_pattern(phrase: str, ignore_case: bool = True) -> re.Pattern[str]:
    """A pattern that finds a phrase as whole words."""
    before = r"(?<!\w)" if phrase[:1].isalnum() else ""
    after = r"(?!\w)" if phrase[-1:].isalnum() else ""
    body = r"\s+".join(map(re.escape, phrase.split()))
    return re.compile(f"{before}{body}{after}", re.IGNORECASE if ignore_case else 0)


def has_phrase(text: str, phrase: str, *, ignore_case: bool = True) -> bool:
    """Whether a text has a phrase as whole words."""
    return phrase_pattern(phrase, ignore_case).search(text) is not None


def match_article(text: str, changed: Iterable[str]) -> str:
    """Put ``a`` and ``an`` right before phrases that took the place of others.

    Args:
        text: Text after the change.
        changed: First words of the phrases that are new.
    """
    for phrase in sorted(set(changed)):
        wanted = "an" if phrase[:1].lower() in "aeiou" else "a"
        other = "a" if wanted == "an" else "an"
        pattern = re.compile(rf"\b({other[0]}){other[1:]} (?={re.escape(phrase)})", re.IGNORECASE)
        text = pattern.sub(rf"\g<1>{wanted[1:]} ", text)
    return text
