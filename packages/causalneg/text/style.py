"""The fingerprint of the simulated writer: turns of phrase that say nothing of what a query asks.

A language model leaves marks in what it writes. Here the marks are a closed list of fillers, so that they can
be put into any English text with a known strength, and taken out again to the letter. The text means the same
with and without them: a change of score between the two is the source shortcut and nothing else.
Source: CausalNeg (arXiv 2606.01304) names the shortcut; the way to make and undo it is this project's.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from causalneg.data.schema import Document
from common.errors import ConfigError

OPENERS = (
    "It is worth noting that",
    "Interestingly enough,",
    "In a very real sense,",
    "As it turns out,",
    "It should be stressed that",
    "Looking at the bigger picture,",
    "What stands out is that",
    "To put it simply,",
)
"""Put before a sentence."""

CLOSERS = (
    ", as is widely recognised",
    ", a detail that is often overlooked",
    ", which underlines its lasting significance",
    ", and this remains truly remarkable",
    ", something that should not be underestimated",
    ", as one would readily expect",
)
"""Put before the full stop of a sentence."""

REMARKS = (
    "This is a testament to a rich and varied heritage.",
    "All in all, the picture is both complex and fascinating.",
    "Such nuances play a crucial role in the wider context.",
    "This highlights just how multifaceted the subject is.",
)
"""Sentences of their own, put after a sentence."""

_LOWERED = (
    "A An The This That These Those It Its He She They We His Her Their Our There Here In On At By For From "
    "With Of To After Before During Since When While As If Although Though Because Both Each Every Some Many "
    "Most Several Such Other One Two Three However But And Until Under Over Between Among Through"
).split()
"""Words that lose their capital after an opener; any other word keeps it, for it may be a name."""

_ABBREVIATIONS = frozenset(
    (
        "mr mrs ms dr prof st sr jr vs etc no vol pp fig eq gen col lt sgt capt rev hon gov sen rep inc ltd "
        "co corp dept univ al ca cf approx est jan feb mar apr jun jul aug sep sept oct nov dec "
        "e.g i.e a.m p.m"
    ).split()
)
_BOUNDARY = re.compile(r"""(?<=[.!?])["'\u201d\u2019)\]]*(\s+)(?=["'\u201c\u2018(\[]?[A-Z0-9])""")
_LAST_WORD = re.compile(r"([A-Za-z][A-Za-z.]*)\.$")

_OPENING = re.compile(
    rf"(?:(?<=\s)|^)(?:{'|'.join(map(re.escape, OPENERS))}) (?:({'|'.join(w.lower() for w in _LOWERED)})\b)?"
)
_CLOSING = re.compile(rf"(?:{'|'.join(map(re.escape, CLOSERS))})(?=\.)")
_REMARK = re.compile(rf" (?:{'|'.join(map(re.escape, REMARKS))})")
_FIRST_WORD = re.compile(rf"(?:{'|'.join(_LOWERED)})\b")


def sentences(text: str) -> list[tuple[str, str]]:
    """Cut a text into sentences, each with the white space that follows it.

    Sentence and space joined again give the text. A full stop after an abbreviation, an initial or inside a
    number ends nothing, nor does one before a small letter.

    Args:
        text: Any text; empty gives no sentence.
    """
    found, start = [], 0
    for boundary in _BOUNDARY.finditer(text):
        end = boundary.start(1)
        last = _LAST_WORD.search(text, start, end)
        if last is not None:
            word = last.group(1)
            short = len(word) == 1 and word != "I"
            if short or word.lower() in _ABBREVIATIONS or re.fullmatch(r"(?:[A-Z]\.)+[A-Z]", word):
                continue
        found.append((text[start:end], boundary.group(1)))
        start = boundary.end(1)
    if start < len(text):
        found.append((text[start:], ""))
    return found


def _opened(match: re.Match[str]) -> str:
    """What stands in the place of an opener: nothing, or the word behind it with its capital again."""
    word = match.group(1)
    return "" if word is None else word[0].upper() + word[1:]


def strip_style(text: str) -> str:
    """Take the turns of phrase out: what :func:`stylise` got comes back to the letter.

    A text that has none comes back as it is.

    Args:
        text: Any text.
    """
    return _OPENING.sub(_opened, _CLOSING.sub("", _REMARK.sub("", text)))


def has_style(text: str) -> bool:
    """Whether a text has any of the turns of phrase."""
    return any(pattern.search(text) is not None for pattern in (_OPENING, _CLOSING, _REMARK))


def style_share(text: str) -> float:
    """Share of the sentences of a text (remarks aside) that carry a turn of phrase; 0 for an empty text.

    Args:
        text: Any text.
    """
    carried = plain = 0
    for sentence, _ in sentences(text):
        if sentence in REMARKS:
            # A remark marks the sentence that it follows.
            carried, plain = carried + (plain > 0), max(plain - 1, 0)
        elif has_style(sentence):
            carried += 1
        else:
            plain += 1
    return carried / (carried + plain) if carried + plain else 0.0


def _open(sentence: str, opener: str) -> str:
    first = _FIRST_WORD.match(sentence)
    return f"{opener} {sentence if first is None else sentence[0].lower() + sentence[1:]}"


def _mark(sentence: str, rng: random.Random) -> str:
    """A sentence with one turn of phrase; one that takes no other gets a remark behind it."""
    draw = rng.random()
    opener, closer, remark = rng.choice(OPENERS), rng.choice(CLOSERS), rng.choice(REMARKS)
    if draw < 0.5 and sentence[0].isupper():
        return _open(sentence, opener)
    if draw < 0.85 and len(sentence) > 1 and sentence.endswith(".") and sentence[-2].isalnum():
        return f"{sentence[:-1]}{closer}."
    return f"{sentence} {remark}"


def stylise(text: str, strength: float, rng: random.Random) -> str:
    """Write a text in the simulated writer's manner.

    Each sentence gets a turn of phrase with probability ``strength``, whatever it says: an opener (0.5 of
    them), a closer, or a remark behind it. ``strip_style`` gives the text back. Turns of phrase that are
    there already are taken out first, so the strength of the result does not depend on them.

    Args:
        text: Any English text.
        strength: Probability per sentence, from 0 (no change) to 1 (every sentence).
        rng: Source of the draws; the same state gives the same text everywhere.

    Raises:
        ConfigError: The strength is not a share.
    """
    if not 0 <= strength <= 1:
        raise ConfigError(f"strength: must be between 0 and 1, got {strength}")
    marked = []
    for sentence, space in sentences(strip_style(text)):
        wanted = rng.random() < strength
        marked.append(_mark(sentence, rng) if wanted and sentence.strip() else sentence)
        marked.append(space)
    return "".join(marked)


def mixed_corpus(
    documents: Sequence[Document], *, share: float = 0.5, strength: float = 1.0, seed: int = 0
) -> list[Document]:
    """The twin of a corpus in which a part of the documents is written in the simulated writer's manner.

    Which ones is drawn by document id alone, so relevance has no part in it, and a document's style does not
    depend on what else is in the corpus. All other documents stay as they are. ``metadata["style"]`` says
    which are which.

    Args:
        documents: Documents of any English corpus.
        share: Expected share of the documents that are restyled.
        strength: Probability of a turn of phrase per sentence; see :func:`stylise`.
        seed: Of the draws.

    Returns:
        As many documents, with the same ids in the same order.

    Raises:
        ConfigError: Share or strength is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"share: must be between 0 and 1, got {share}")
    mixed = []
    for document in documents:
        rng = random.Random(f"mixed corpus/{seed}/{document.id}")
        restyle = rng.random() < share
        text = stylise(document.text, strength, rng) if restyle else document.text
        metadata = {**document.metadata, "style": restyle}
        mixed.append(document.model_copy(update={"text": text, "metadata": metadata}))
    return mixed
