"""The language of a corpus, detected from its letters and commonest words: stemmer, stop words, splitting.

Detection is deterministic and small: it decides between the languages that a search treats differently, and
takes English where nothing speaks for another.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import Stemmer

from common.errors import ConfigError, suggest

SIGNS = "\u0e00-\u0e7f\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
"""Letters of scripts without blanks between words: Han, Kana, Thai."""

_RUN = re.compile(rf"[{SIGNS}]+|[^\W{SIGNS}]{{2,}}")
_SIGN = re.compile(rf"[{SIGNS}]")
_MARKED = r"(?u)[\w\u0300-\u036f\u0900-\u0dff]{2,}"  # vowel signs are no \w, but parts of words
_SAMPLE, _HEAD = 400, 1000  # texts that are looked at, and characters of each


@dataclass(frozen=True, kw_only=True)
class Language:
    """How texts of a language are searched by their words.

    Args:
        name: Its English name in small letters.
        code: Its ISO 639-1 code.
        stopwords: Whether bm25s ships a list of stop words.
        signs: Whether it is written without blanks, so that it is split by characters.
        pattern: What a word is; None: runs of two or more letters or digits.
        frequent: Words that tell it from others of its script.
    """

    name: str
    code: str
    stopwords: bool = False
    signs: bool = False
    pattern: str | None = None
    frequent: str = ""

    @property
    def stemmer(self) -> str | None:
        """Name of its Snowball stemmer; None where there is none."""
        return self.name if self.name in Stemmer.algorithms() else None

    def describe(self) -> str:
        """What a search by words does with it, in words."""
        if self.signs:
            return "characters and pairs of characters, no stop words"
        stems = "Snowball stems" if self.stemmer else "whole words, for there is no stemmer"
        return f"{stems}, {'stop words left out' if self.stopwords else 'no stop words'}"


_ALL = (
    Language(name="english", code="en", stopwords=True, frequent="the of and to in is that for was with by"),
    Language(name="german", code="de", stopwords=True, frequent="der und das den von zu mit ist nicht auf"),
    Language(name="french", code="fr", stopwords=True, frequent="le les des et du une dans est pour que au"),
    Language(name="spanish", code="es", stopwords=True, frequent="el los las y del que en por con una"),
    Language(name="italian", code="it", stopwords=True, frequent="il di che della per sono gli nel è del"),
    Language(name="portuguese", code="pt", stopwords=True, frequent="o os do da em um uma com não ao"),
    Language(name="dutch", code="nl", stopwords=True, frequent="het een van en dat op te zijn voor niet"),
    Language(name="swedish", code="sv", stopwords=True, frequent="och att det som på är av för till inte"),
    Language(name="norwegian", code="no", stopwords=True, frequent="og det som på er av for til ikke etter"),
    Language(name="danish", code="da", stopwords=True, frequent="og det som på er af for til ikke efter"),
    Language(name="turkish", code="tr", stopwords=True, frequent="ve bir bu için ile olarak daha çok olan"),
    Language(name="finnish", code="fi", frequent="ja on ei se että oli mutta ovat kun myös"),
    Language(name="hungarian", code="hu", frequent="az és hogy nem egy meg is volt ez mint"),
    Language(name="romanian", code="ro", frequent="și din pentru care este cu mai sau prin nu"),
    Language(name="polish", code="pl", frequent="w na z się nie do jest że oraz przez"),
    Language(name="czech", code="cs", frequent="se na je že v byl jako podle také který"),
    Language(name="indonesian", code="id", frequent="yang dan di dengan untuk dari dalam ini pada adalah"),
    Language(name="vietnamese", code="vi", frequent="của và là có được trong cho các một không"),
    Language(name="russian", code="ru", stopwords=True, frequent="и в на не что по как из для это"),
    Language(name="serbian", code="sr", frequent="и да на за од као или није који која"),
    Language(name="ukrainian", code="uk", frequent="в на та що не до як від який були"),
    Language(name="bulgarian", code="bg", frequent="и на от да за като това или който към"),
    Language(name="greek", code="el"),
    Language(name="arabic", code="ar"),
    Language(name="persian", code="fa"),
    Language(name="hebrew", code="he"),
    Language(name="armenian", code="hy"),
    Language(name="hindi", code="hi", pattern=_MARKED),
    Language(name="tamil", code="ta", pattern=_MARKED),
    Language(name="korean", code="ko", stopwords=True),
    Language(name="chinese", code="zh", signs=True),
    Language(name="japanese", code="ja", signs=True),
    Language(name="thai", code="th", signs=True),
    Language(name="other", code="xx"),
)

LANGUAGES: dict[str, Language] = {language.name: language for language in _ALL}
"""Languages by name; ``other`` has neither stemmer nor stop words."""

_CODES = {language.code: language for language in _ALL}

# Letters of a script, and the language that is taken for it where no words tell.
_SCRIPTS = (
    ("a-zA-Z\u00c0-\u024f\u1e00-\u1eff", "latin"),
    ("\u0400-\u052f", "cyrillic"),
    ("\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\U00020000-\U0003134f", "chinese"),
    ("\u3040-\u30ff", "japanese"),
    ("\uac00-\ud7af\u1100-\u11ff\u3130-\u318f", "korean"),
    ("\u0e00-\u0e7f", "thai"),
    ("\u0370-\u03ff\u1f00-\u1fff", "greek"),
    ("\u0600-\u06ff\u0750-\u077f", "arabic"),
    ("\u0590-\u05ff", "hebrew"),
    ("\u0530-\u058f", "armenian"),
    ("\u0900-\u097f", "hindi"),
    ("\u0b80-\u0bff", "tamil"),
)
_CYRILLIC = ("russian", "serbian", "ukrainian", "bulgarian")
_COUNTED = [(name, re.compile(f"[{letters}]")) for letters, name in _SCRIPTS]
_PERSIAN = re.compile("[\u067e\u0686\u0698\u06af]")
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Detected:
    """The language of a corpus.

    Args:
        language: The language.
        share: Share of the letters in its script.
    """

    language: Language
    share: float


def find_language(name: str) -> Language:
    """A language by its name or code.

    Raises:
        ConfigError: It is not known; the nearest name is offered.
    """
    found = LANGUAGES.get(name.lower()) or _CODES.get(name.lower())
    if found is None:
        raise ConfigError(
            f"language '{name}' is not known{suggest(name, LANGUAGES)}; there are {', '.join(LANGUAGES)}, "
            "by name or code; other takes words as they are"
        )
    return found


def detect_language(texts: Sequence[str]) -> Detected:
    """The language of most of a corpus.

    The commonest script decides; where several languages share it, the share of words that are among the
    commonest of one of them, which must be 5 % at least and pass that of English by half.

    Args:
        texts: The corpus; a fixed sample of it is looked at.
    """
    step = max(1, len(texts) // _SAMPLE)
    sample = "\n".join(text[:_HEAD] for text in texts[::step])
    letters = Counter({name: len(pattern.findall(sample)) for name, pattern in _COUNTED})
    total = letters.total()
    if not total:
        return Detected(LANGUAGES["english"], 0.0)
    east = letters["chinese"] + letters["japanese"]
    weight = {**letters, "chinese": 3 * east, "japanese": 0}  # a sign says as much as several letters
    script = max(weight, key=lambda name: weight[name])
    if script == "chinese":
        name = "japanese" if letters["japanese"] > 0.1 * east else "chinese"
        return Detected(LANGUAGES[name], east / total)
    name, share = script, letters[script] / total
    if script == "latin":
        name = _by_words(sample, [one.name for one in _ALL if one.frequent and one.name not in _CYRILLIC])
    elif script == "cyrillic":
        name = _by_words(sample, _CYRILLIC)
    elif script == "arabic" and len(_PERSIAN.findall(sample)) > 0.01 * letters["arabic"]:
        name = "persian"
    return Detected(LANGUAGES[name], share)


def _by_words(sample: str, names: Sequence[str]) -> str:
    """Which of some languages has the most of its commonest words; the first unless another clearly has."""
    words = Counter(_WORD.findall(sample.lower()))
    total = words.total()
    shares = {name: sum(words[w] for w in LANGUAGES[name].frequent.split()) / total for name in names}
    best = max(names, key=lambda name: shares[name])
    clear = shares[best] >= 0.05 and shares[best] > 1.5 * shares[names[0]]
    return best if clear or names[0] != "english" else names[0]


def split_signs(text: str) -> list[str]:
    """The terms of a text in a script without blanks: characters, pairs of neighbours, and words of others.

    Lucene's CJK analysis takes pairs alone; characters are added so that words of one character match.

    Args:
        text: Any text; words of other scripts have two letters or more, in small letters.
    """
    out = []
    for run in _RUN.findall(text.lower()):
        if not _SIGN.match(run):
            out.append(run)
            continue
        out += run
        out += [run[at : at + 2] for at in range(len(run) - 1)]
    return out
