"""No negative reaches training unverified: what was written is checked, what fails is kept with the reason.

A negative must not be a positive in other clothes, must violate the requirement that it names, must not
answer, neither rightly nor wrongly nor in part (a wrong answer still tries to answer), and must look like the
corpus. On the embedded world truth decides; on real text rules of thumb do, and say so in the verdict.

Over 400 lines: the checks read one another's findings, in one order.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_args

import numpy as np
from jaxtyping import Real

from causalneg.data import Dataset
from causalneg.data.schema import Document, Example, Negative, Passage, Query, Reason, StrategyKind, Verdict
from causalneg.generation.writers.base import Pair
from causalneg.generation.writers.english import quoted
from causalneg.text.corpus import EDITS, Corpus, answering_limit, cut
from causalneg.text.edits import says_verb
from causalneg.text.style import strip_style
from causalneg.text.words import MONTHS, STOP_WORDS, has_phrase, overlap, shingles, stem, words
from causalneg.world import World
from common.errors import ConfigError
from common.report.tables import markdown_table

REASONS: tuple[Reason, ...] = get_args(Reason)
"""All that can be said of a negative, ``"valid"`` first."""

_ANSWERS = ("answers", "wrong answer", "partial answer")  # in the words of the world
_ANSWERING: tuple[Reason, ...] = ("answers", "partly answers", "wrong answer")


@dataclass(frozen=True)
class Counts:
    """What the verifier found, counted.

    Args:
        reasons: Number of written negatives by backend, strategy (``"none"`` without one) and reason.
        mined: Number of mined negatives that passed through.
        mined_answering: How many of these answer by truth; None if nobody looked.
        truth: Number of written negatives by what the world says of them; empty on real text.
    """

    reasons: dict[tuple[str, str, Reason], int] = field(default_factory=dict)
    mined: int = 0
    mined_answering: int | None = None
    truth: dict[str, int] = field(default_factory=dict)

    @property
    def written(self) -> int:
        """Number of written negatives."""
        return sum(self.reasons.values())

    @property
    def kept(self) -> int:
        """Number of written negatives that are valid."""
        return sum(n for (_, _, reason), n in self.reasons.items() if reason == "valid")

    def shares(self) -> dict[str, float]:
        """Shares of the written negatives: valid, off topic and answering; by truth where it is known."""
        counts: Counter[str] = Counter()
        if self.truth:
            for said, number in self.truth.items():
                counts["answering" if said in _ANSWERS else "valid" if said == "related" else said] += number
        else:
            for (_, _, reason), number in self.reasons.items():
                counts["answering" if reason in _ANSWERING else reason] += number
        total = max(1, sum(counts.values()))
        return {name: counts[name] / total for name in ("valid", "off topic", "answering")}

    def to_dict(self) -> dict[str, Any]:
        """All figures, for a JSON file."""
        rows = [
            {"backend": backend, "strategy": strategy, "reason": reason, "count": number}
            for (backend, strategy, reason), number in sorted(self.reasons.items())
        ]
        return {
            "written": self.written,
            "kept": self.kept,
            "reasons": rows,
            "mined": self.mined,
            "mined_answering": self.mined_answering,
            "truth": dict(sorted(self.truth.items())),
            "shares": self.shares(),
        }

    def to_markdown(self) -> str:
        """The counts by strategy and reason."""
        used = [r for r in REASONS if any(reason == r for _, _, reason in self.reasons)]
        lines: dict[tuple[str, str], Counter[str]] = {}
        for (backend, strategy, reason), number in sorted(self.reasons.items()):
            lines.setdefault((backend, strategy), Counter())[reason] += number
        table = [
            [backend, strategy, str(sum(found.values())), *(str(found[r]) for r in used)]
            for (backend, strategy), found in lines.items()
        ]
        text = markdown_table(["written by", "strategy", "all", *used], table) if table else ""
        said = [f"{self.kept} of {self.written} written negatives kept, {self.mined} mined ones passed on."]
        if self.mined_answering is not None:
            said.append(f"{self.mined_answering} of the mined ones answer, by truth.")
        if self.truth:
            shares = ", ".join(f"{name} {share:.1%}" for name, share in self.shares().items())
            said.append(f"By truth, whatever else was wrong: {shares}.")
        return "\n\n".join(part for part in (text, " ".join(said)) if part)


@dataclass(frozen=True)
class Verification:
    """A checked training set.

    Args:
        kept: All examples, with their mined and their valid negatives.
        rejected: Examples with negatives that are not valid, and these alone.
        report: Counts.
    """

    kept: list[Example]
    rejected: list[Example]
    report: Counts


def verify(
    examples: Sequence[Example],
    dataset: Dataset,
    *,
    world: World | None = None,
    shown: Sequence[Pair] = (),
    check_mined: bool = False,
    near: float = 0.9,
    copies: int = 3,
    range_share: float = 0.002,
) -> Verification:
    """Check every written negative of a training set; mined ones pass through.

    In this order: it says something; it is no positive and holds none; it is no second copy, nor one of what
    its writer was shown; its length and its share of function and known words are within the corpus's range;
    it does not speak of its own making; its requirement is violated; it does not answer; it is on the topic.
    A text by a language model is also far from what was asked for if it is several times as long as the
    positive, or as short.

    Args:
        examples: Training set.
        dataset: Tells what is usual; its qrels, as far as they were read, give more positives.
        world: The world that the data set is of: its truth decides instead of rules of thumb.
        shown: What the writer was shown, by pair.
        check_mined: Whether mined negatives that answer by truth are rejected too; needs a world.
        near: Share of a text's five-word runs that makes it a copy of another.
        copies: So many queries may have the same text; with more it is filler.
        range_share: Share of the corpus that lies beyond either end of its range.

    Raises:
        ConfigError: A value is out of range.
    """
    found = []
    if not 0 < near <= 1:
        found.append(f"near: must be above 0 and at most 1, got {near}")
    if copies < 1:
        found.append(f"copies: must be at least 1, got {copies}")
    if not 0 <= range_share < 0.5:
        found.append(f"range_share: must be at least 0 and below 0.5, got {range_share}")
    if check_mined and world is None:
        found.append("check_mined: only a world knows which mined negatives answer; leave it out here")
    ConfigError.raise_if(found)
    checker = _Checker(dataset, world, near, copies, range_share)
    for pair in shown:
        checker.shown.setdefault(pair.query.id, []).extend(pair.candidates)
    return checker.run(examples, check_mined)


@dataclass(frozen=True, eq=False)
class _Text:
    """A text as the verifier compares it: turns of phrase of the simulated writer left out."""

    title: str
    body: str

    @classmethod
    def of(cls, passage: Passage, dataset: Dataset) -> _Text:
        if passage.text is None:
            document = dataset.document(str(passage.document_id))
            return cls(document.title, strip_style(document.text))
        return cls(passage.title, strip_style(passage.text))

    @property
    def content(self) -> str:
        return f"{self.title} {self.body}".strip()

    @cached_property
    def words(self) -> list[str]:
        return words(self.content)

    @cached_property
    def stems(self) -> list[str]:
        return [stem(w) for w in self.words if w not in STOP_WORDS]

    @cached_property
    def bag(self) -> Counter[str]:
        return Counter(self.stems)

    @cached_property
    def runs(self) -> set[tuple[str, ...]]:
        return shingles(self.words)

    @cached_property
    def bare(self) -> list[str]:
        """Its words when marks, joints and signs without width between and in them are looked through."""
        text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", _TAG.sub(" ", self.content)))
        return _PLAIN.findall(text.lower())


class _Checker:
    def __init__(
        self,
        dataset: Dataset,
        world: World | None,
        near: float,
        copies: int,
        range_share: float,
    ) -> None:
        self.dataset, self.world, self.near, self.copies = dataset, world, near, copies
        self.corpus = Corpus.of(dataset)
        self.shown: dict[str, list[Document]] = {}
        self.shortest, self.longest = _range(self.corpus.lengths, range_share)
        self.least_function, self.most_function = _range(self.corpus.function_shares, range_share)
        self.positives: dict[str, set[str]] = {}
        for grades in dataset.qrels.values():
            for query, judged in grades.items():
                known = self.positives.setdefault(query, set())
                known.update(document for document, grade in judged.items() if grade > 0)

    def run(self, examples: Sequence[Example], check_mined: bool) -> Verification:
        often = self._count_copies(examples)
        kept, rejected = [], []
        reasons: Counter[tuple[str, str, Reason]] = Counter()
        truth: Counter[str] = Counter()
        mined = answering = 0
        for example in examples:
            positives = self._positives_of(example)
            good: list[Negative] = []
            bad: list[Negative] = []
            seen: list[_Text] = []
            for negative in example.negatives:
                text = _Text.of(negative, self.dataset)
                if negative.source == "mined":
                    mined += 1
                    false = check_mined and self._truth(example.query, text)[0] == "answers"
                    answering += false
                    verdict = Verdict(reason="answers", judge="truth", detail="it answers the query")
                    if false:
                        bad.append(negative.model_copy(update={"verdict": verdict}))
                    else:
                        good.append(negative)
                        seen.append(text)
                    continue
                said, violated = ("", []) if self.world is None else self._truth(example.query, text)
                truth.update([said] if said else [])
                verdict = self._judge(example.query, positives, negative, text, seen, often, said, violated)
                reasons[negative.backend, negative.strategy or "none", verdict.reason] += 1
                if verdict.valid:
                    seen.append(text)
                (good if verdict.valid else bad).append(negative.model_copy(update={"verdict": verdict}))
            kept.append(example.model_copy(update={"negatives": good}))
            if bad:
                rejected.append(example.model_copy(update={"negatives": bad}))
        report = Counts(dict(reasons), mined, answering if check_mined else None, dict(truth))
        return Verification(kept, rejected, report)

    def _count_copies(self, examples: Iterable[Example]) -> Counter[str]:
        counts: Counter[str] = Counter()
        for example in examples:
            own = {n.text for n in example.negatives if n.source == "generated" and n.text is not None}
            counts.update(own)
        return counts

    def _positives_of(self, example: Example) -> list[_Text]:
        known = {p.document_id for p in example.positives}
        more = [
            Passage(document_id=id)
            for id in sorted(self.positives.get(example.query.id, ()))
            if id not in known and id in self.dataset.index
        ]
        return [_Text.of(p, self.dataset) for p in (*example.positives, *more)]

    def _truth(self, query: Query, text: _Text) -> tuple[str, list[str]]:
        """What the world says of a text, and the requirements that it violates."""
        assert self.world is not None
        need = self.world.need(query.id)
        facts, names = self.world.parse(text.body), _names_in(text.body)
        said = self.world.oracle.verdict(need, facts, names)
        return said, [r.text for r in self.world.oracle.violated(need, facts, names)]

    def _judge(
        self,
        query: Query,
        positives: Sequence[_Text],
        negative: Negative,
        text: _Text,
        seen: Sequence[_Text],
        often: Counter[str],
        said: str,
        violated: Sequence[str],
    ) -> Verdict:
        """The first thing that is wrong with a written negative, or that it is valid."""

        def no(reason: Reason, detail: str, judge: str = "heuristics") -> Verdict:
            return Verdict(reason=reason, judge=judge, detail=detail)

        if not text.words:
            return no("empty", "it has no words")
        for positive in positives:
            if text.words == positive.words or (self.world is None and text.bare == positive.bare):
                return no("equals positive", "it has the words of a positive, in their order")
            close = self._near_positive(text, positive, negative)
            if close:
                return no("near positive", close)
        for other in seen:
            if text.stems == other.stems or overlap(text.runs, other.runs) >= max(self.near, 0.95):
                return no("duplicate", "another negative of this query says the same")
        if negative.model and self._is_shown(query, negative, text):
            return no("duplicate", "it is a passage that its writer was shown")
        if negative.text is not None and often[negative.text] > self.copies:
            return no("duplicate", f"{often[negative.text]} queries have this very text")
        length = len(text.words)
        if length < self.shortest:
            return no("too short", f"{length} words; the corpus begins at {self.shortest:.0f}")
        if length > self.longest:
            return no("too long", f"{length} words; the corpus ends at {self.longest:.0f}")
        far = self._far_from_asked(text, positives[0], negative)
        if far is not None:
            return no(*far)
        making = self._speaks_of_task(text, positives, negative)
        if making:
            return no("about the task", f"it says “{making}”")
        foreign = self._foreign(text)
        if foreign:
            return no("wrong language", foreign)
        if self.world is not None:
            if said in _ANSWERS:
                return no("answers", f"{said}, by what it states", "truth")
            if said == "off topic":
                return no("off topic", "it has nothing to do with the query", "truth")
            if negative.requirement and negative.requirement not in violated:
                return no("requirement kept", f"violated: {'; '.join(violated)}", "truth")
            return Verdict(reason="valid", judge="truth")
        kept = self._requirement_kept(query, positives, negative, text)
        if kept:
            return no("requirement kept", kept)
        share = self.corpus.answering(query.text, text.title, text.body)
        if share >= answering_limit(negative.strategy):
            return no("answers", f"a sentence covers {share:.0%} of the query and has what it asks for")
        titles = {positive.title for positive in positives}
        if not self.corpus.on_topic(query.text, negative.strategy, text.title, text.body, titles):
            return no("off topic", "it shares next to nothing with the query")
        return Verdict(reason="valid", judge="heuristics")

    def _near_positive(self, text: _Text, positive: _Text, negative: Negative) -> str:
        """Why a text is a positive in other clothes; empty if it is not.

        An edit of one thing shares nearly all its words with the positive by design. So it is near only if
        nothing that says anything differs. On the world truth reads more than that: "replaced" and "was
        replaced by" are two facts.
        """
        if self.world is not None:
            return ""
        if text.stems == positive.stems:
            return "only function words, endings and punctuation differ from a positive"
        if text.bag == positive.bag:
            return "it has the words of a positive in another order"
        if negative.strategy not in EDITS and _containment(text.runs, positive.runs) >= self.near:
            return f"{_containment(text.runs, positive.runs):.0%} of its five-word runs are in a positive"
        if _holds(text.bare, positive.bare):
            return "it has a positive from beginning to end, and some words more"
        return ""

    def _is_shown(self, query: Query, negative: Negative, text: _Text) -> bool:
        """Whether a text is a copy of a passage that its writer could rewrite."""
        known = [*self.shown.get(query.id, ())]
        if negative.document_id in self.dataset.index:
            known.append(self.dataset.document(str(negative.document_id)))
        return any(words(strip_style(document.text)) == words(text.body) for document in known)

    def _far_from_asked(self, text: _Text, positive: _Text, negative: Negative) -> tuple[Reason, str] | None:
        """Why the length of a language model's text is not what was asked for: about that of the positive."""
        if self.world is not None or not negative.model:
            return None
        asked, has = len(positive.body), len(text.body)
        if _FAR * has < asked:
            return "too short", f"{has} characters; about {asked} were asked for"
        if has > max(_FAR * asked, _ALWAYS_FINE):
            return "too long", f"{has} characters; about {asked} were asked for"
        return None

    def _speaks_of_task(self, text: _Text, positives: Sequence[_Text], negative: Negative) -> str:
        """What a text says of its own making, in words that its sources lack; empty if nothing."""
        if self.world is not None:
            return ""
        known = [positive.content for positive in positives]
        if negative.document_id in self.dataset.index:
            known.append(self.dataset.document(str(negative.document_id)).content)
        for match in _TASK.finditer(text.content):
            said = match.group()
            if not any(said.lower() in other.lower() for other in known):
                return said
        return ""

    def _foreign(self, text: _Text) -> str:
        share = sum(w in STOP_WORDS for w in text.words) / len(text.words)
        if not self.least_function <= share <= self.most_function:
            low, high = self.least_function, self.most_function
            return f"{share:.0%} function words; the corpus has {low:.0%} to {high:.0%}"
        known = sum(self.corpus.knows(stem(w)) for w in text.words) / len(text.words)
        return f"the corpus has only {known:.0%} of its words" if known < _KNOWN else ""

    def _requirement_kept(
        self, query: Query, positives: Sequence[_Text], negative: Negative, text: _Text
    ) -> str:
        """Why the named requirement still holds; empty if it is violated, or cannot be checked by words."""
        term = quoted(negative.requirement)
        if negative.strategy in ("entity shift", "constraint violation") and term:
            if has_phrase(text.content, term, ignore_case=not (term.isupper() or term in MONTHS)):
                return f"it still has “{term}”"
            own = {w for w in words(term) if w not in STOP_WORDS and not self.corpus.common(w)}
            left = sorted(own.intersection(text.words))
            return f"it still has “{left[0]}” of “{term}”" if left and not left[0].isdigit() else ""
        if negative.strategy == "relation break" and term:
            return f"it still says “{term}”" if says_verb(text.body, term) else ""
        if negative.strategy in ("attribute shift", "intent drift"):
            sentences = cut(Document(id="", text=text.body)).stems
            for positive in positives:
                view = cut(Document(id="", text=positive.body))
                for i in sorted(self.corpus.answer_sentences(query.text, view)):
                    stems = view.stems[i]
                    if stems and any(len(stems & other) >= 0.8 * len(stems) for other in sentences):
                        return f"it still has what answers in the positive: {view.sentences[i]}"
        return ""


_KNOWN = 0.8
_FAR = 4.0
_ALWAYS_FINE = 400  # characters; a positive may be a single name
_FEWEST = 5  # words of a positive that are more than a name
_HELD = 0.5
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,80}>")
_INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")
_PLAIN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_]+")
_TASK = re.compile(
    "|".join(
        (
            *(
                rf"\b{kind}\b"
                for kind in get_args(StrategyKind)
                if "/" not in kind and kind != "intent drift"
            ),
            r"\bnot (?:the|an) answer to\b",
            r"\b(?:do|does|did|would) not answer (?:the|this|that|your) (?:query|question|search)\b",
            r"\bthe (?:search |original |user's )query\b",
            r"\bthe query(?:'s)? (?:asks?|asked|requirement|intent)\b",
            r"\bthe searcher\b",
            r"\bhard negatives?\b",
            r"\bnegative passage\b",
            r"\b(?:this|the) (?:rewritten )?passage (?:violates|breaks|does not (?:answer|mention|meet))\b",
            r"\bas (?:requested|instructed) (?:above|by the order|in the order)\b",
        )
    ),
    re.IGNORECASE,
)


def _range(values: Real[np.ndarray, " documents"], share: float) -> tuple[float, float]:
    """From where to where the values of a corpus go, but for a share at either end."""
    if not len(values):
        return float("-inf"), float("inf")
    low = np.quantile(values, share, method="lower")
    return float(low), float(np.quantile(values, 1 - share, method="higher"))


def _names_in(text: str) -> list[str]:
    from causalneg.world.language import names_in

    return names_in(text)


def _holds(words: list[str], positive: list[str]) -> bool:
    """Whether a text has all words of a positive in their order, half of their runs of five unbroken.

    An edit of one thing leaves one word of the positive out; added words leave none out, wherever they stand.
    """
    if len(positive) < _FEWEST or len(words) < len(positive):
        return False
    left = iter(words)
    if not all(word in left for word in positive):
        return False
    return _containment(shingles(positive), shingles(words)) >= _HELD


def _containment(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    return len(one & other) / len(one) if one else 0.0
