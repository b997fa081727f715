"""Second opinions on written texts: a language model that is asked, and a cross-encoder that scores.

The verifier's rules of thumb compare words. A judge reads: does the passage give the searcher what was
needed, a part of it, or something offered as the answer? What heuristics and judge disagree on is counted.
The same judge sees to it that a rewritten passage does for its query what it did before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from causalneg.data import Dataset, resolve_passage
from causalneg.data.schema import Document, Example, Negative, Passage, Query, Reason, Verdict
from causalneg.generation.journal import Journal
from causalneg.generation.steps import Budget, Call, Job, Runner
from causalneg.generation.verification.heuristics import Verification
from causalneg.generation.writers.base import Failure
from causalneg.generation.writers.language_model import failure_of
from causalneg.generation.writers.prompts import (
    Judgement,
    Limits,
    Prompts,
    VerdictKind,
    cut_document,
    with_limits,
)
from causalneg.llm.chat import ChatBackend, ChatRequest, ChatResult
from common.errors import BackendError, ConfigError
from common.report.tables import markdown_table

_REASONS: dict[VerdictKind, Reason] = {
    "answers": "answers",
    "partly": "answers",
    "states an answer": "answers",
    "related": "valid",
    "unrelated": "off topic",
}


@dataclass(frozen=True)
class Question:
    """What a judge is asked.

    Args:
        query: The query.
        passage: Title and text of what is judged.
        need: What the searcher needs, in words; empty if nobody said.
        positive: Title and text of a passage that answers; empty if there is none to compare with.
    """

    query: Query
    passage: str
    need: str = ""
    positive: str = ""


@dataclass(frozen=True)
class Opinion:
    """What a judge says of a passage.

    Args:
        kind: What the passage does for the searcher.
        reason: Why, for readers.
    """

    kind: VerdictKind
    reason: str = ""

    def verdict(self, judge: str) -> Verdict:
        """As a verdict on a negative: whatever answers, offers an answer or is beside the point is none.

        Args:
            judge: Who says so.
        """
        return Verdict(reason=_REASONS[self.kind], judge=judge, detail=f"{self.kind}: {self.reason}")


@runtime_checkable
class Judge(Protocol):
    """Says what passages do for searchers.

    Args:
        name: Who judges, for verdicts.
    """

    name: str

    def judge(self, questions: Sequence[Question]) -> list[Opinion | Failure]:
        """One opinion per question, in order; a failure is none.

        Args:
            questions: What is asked.
        """
        ...


class LLMJudge:
    """A language model as judge; equal questions are asked once, and never again with a journal.

    Args:
        backend: Where the model runs.
        profile: Name of a corpus profile, or path of a text file.
        limits: How long its answers may be.
        weights: Digest of the model's weights where they are at hand.

    Raises:
        ConfigError: There is no such profile.
        DataError: The profile cannot be read.
    """

    name = "llm"

    def __init__(
        self,
        backend: ChatBackend,
        *,
        profile: str = "generic",
        limits: Limits | None = None,
        weights: str = "",
    ) -> None:
        self._backend, self._weights = backend, weights
        self._limits = with_limits(limits or Limits(), backend.context)
        self._prompts = Prompts(profile, self._limits)
        self.journal: Journal | None = None
        self._budget: Budget | None = None
        self._others: Sequence[Journal] = ()

    def keep(
        self, journal: Journal | None, budget: Budget | None = None, others: Sequence[Journal] = ()
    ) -> None:
        """Write answers down, look known ones up, and stay within a budget, from now on.

        Args:
            journal: Where answers are kept, made with :attr:`identity`; None for nowhere.
            budget: What all calls in the journals may cost together; None for no bound.
            others: Further journals whose calls are paid from the same budget.
        """
        self.journal, self._budget, self._others = journal, budget, others

    @property
    def identity(self) -> dict[str, str]:
        """What decides its opinions, for a journal of its own."""
        return {
            "backend": self._backend.name,
            "model": self._backend.model,
            **({"weights": self._weights} if self._weights else {}),
            "prompt version": self._prompts.version,
            "schema": self._prompts.schema_version,
            "settings": f"judge, temperature 0, judge_tokens {self._limits.judge_tokens}",
        }

    def judge(self, questions: Sequence[Question]) -> list[Opinion | Failure]:
        """One opinion per question; see the protocol."""
        jobs = [self._job(question) for question in questions]
        found = dict(
            Runner(jobs, self._backend, journal=self.journal, budget=self._budget, others=self._others)
        )
        left = Failure("over budget", "the budget is spent")
        return [found.get(number, left) for number in range(len(jobs))]

    def _job(self, question: Question) -> Job[Opinion | Failure]:
        passage = question.passage
        if self._backend.context is not None:
            bare = self._prompts.judge(question.query, question.need, "")
            room = self._backend.context - sum(self._backend.count(m.content) for m in bare)
            room -= self._limits.judge_tokens + 64
            short, _ = cut_document(Document(id="", text=passage), max(1, room), self._backend.count)
            passage = short.text
        request = ChatRequest(
            key="",
            messages=self._prompts.judge(question.query, question.need, passage),
            shape=Judgement,
            schema=self._prompts.judge_schema,
            max_tokens=self._limits.judge_tokens,
        )
        outcome = yield Call.of("judge", question.query.id, request)
        if isinstance(outcome, ChatResult) and isinstance(outcome.value, Judgement):
            return Opinion(outcome.value.verdict, outcome.value.reason)
        return failure_of(outcome)


class CrossEncoderJudge:
    """A cross-encoder as judge: it reads query and passage together and gives a score, without words.

    With a positive to compare with, a passage answers if it scores within ``margin`` of it; without one, if
    the model thinks it more likely than not. Everything else is "related". The rule is ours: a cross-encoder
    cannot tell a wrong answer from a right one, so it is a second judge beside the one that reads.

    Args:
        model: Name or folder of a sequence classifier with one score, or two classes of which the second
            means relevant.
        margin: How far below the positive's score (a logit) a passage still answers.
        batch: Pairs of texts at a time.
        longest: Tokens of query and passage together; longer passages are cut.
        device: Where it runs; by default a GPU if there is one.

    Raises:
        ConfigError: A value is out of range, or no model is named.
        BackendError: There is no such model.
    """

    name = "cross-encoder"

    def __init__(
        self,
        model: str | Path,
        *,
        margin: float = 0.0,
        batch: int = 32,
        longest: int = 512,
        device: str | None = None,
    ) -> None:
        if not str(model):
            raise ConfigError("judge: name a cross-encoder, or give the folder of one")
        if batch < 1 or longest < 8:
            raise ConfigError(f"batch: must be at least 1, and longest at least 8, got {batch} and {longest}")
        self._model_name, self._margin, self._batch, self._longest = str(model), margin, batch, longest
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._scores: dict[tuple[str, str], float] = {}

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self._model_name)
            model = AutoModelForSequenceClassification.from_pretrained(self._model_name)
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise BackendError(f"cross-encoder '{self._model_name}': cannot be loaded ({first})") from None
        if model.config.num_labels not in (1, 2):
            raise BackendError(
                f"cross-encoder '{self._model_name}': has {model.config.num_labels} classes; "
                "one score or two classes are needed"
            )
        return tokenizer, model.eval().to(self._device)

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Logits of relevance, the same whatever else is asked; a pair is scored once.

        Args:
            pairs: Queries and passages.
        """
        new = sorted(
            {pair for pair in pairs if pair not in self._scores}, key=lambda p: len(p[0]) + len(p[1])
        )
        tokenizer, model = self._parts
        for start in range(0, len(new), self._batch):
            some = new[start : start + self._batch]
            inputs = tokenizer(
                [query for query, _ in some],
                [passage for _, passage in some],
                padding=True,
                truncation="only_second",
                max_length=self._longest,
                return_tensors="pt",
            ).to(self._device)
            with torch.inference_mode():
                logits = model(**inputs).logits.float().cpu()
            score = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
            self._scores.update(zip(some, score.tolist(), strict=True))
        return [self._scores[pair] for pair in pairs]

    def judge(self, questions: Sequence[Question]) -> list[Opinion | Failure]:
        """One opinion per question; see the protocol."""
        own = self.scores([(q.query.text, q.passage) for q in questions])
        compared = [(q.query.text, q.positive) for q in questions if q.positive]
        right = iter(self.scores(compared))
        opinions: list[Opinion | Failure] = []
        for question, score in zip(questions, own, strict=True):
            bound = next(right) - self._margin if question.positive else 0.0
            kind: VerdictKind = "answers" if score >= bound else "related"
            opinions.append(Opinion(kind, f"scores {score:.2f}, the bound is {bound:.2f}"))
        return opinions


@dataclass(frozen=True)
class Review:
    """A verified set after a second opinion.

    Args:
        checked: What is kept now and what is rejected, each with the last word on it.
        counts: Written negatives by the verifier's reason and the judge's kind; ``"failed"`` where the judge
            gave no opinion.
        judge: Who judged.
    """

    checked: Verification
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    judge: str = ""

    @property
    def disagreements(self) -> int:
        """Negatives that one of the two calls valid and the other one not."""
        return sum(
            n
            for (reason, kind), n in self.counts.items()
            if kind != "failed" and (reason == "valid") != (kind == "related")
        )

    @property
    def unsaid(self) -> int:
        """Negatives that the judge gave no opinion on."""
        return sum(n for (_, kind), n in self.counts.items() if kind == "failed")

    def to_markdown(self) -> str:
        """The counts, with the verifier's reasons as rows."""
        kinds = [k for k in (*_REASONS, "failed") if any(k == kind for _, kind in self.counts)]
        rows = [
            [reason, *(str(self.counts[reason, kind]) for kind in kinds)]
            for reason in sorted({reason for reason, _ in self.counts})
        ]
        table = markdown_table([f"verifier / {self.judge}", *kinds], rows) if rows else ""
        total = self.counts.total()
        return f"{table}\nThe two disagree on {self.disagreements} of {total} written negatives.\n"


def review(
    checked: Verification, dataset: Dataset, judge: Judge, needs: Mapping[str, str] | None = None
) -> Review:
    """Ask a judge about every written negative, those that the verifier rejected too.

    A negative stays if both call it valid. Where the judge gives no opinion the verifier's stands.

    Args:
        checked: What the verifier said.
        dataset: Where documents are.
        judge: Who is asked.
        needs: What the searchers need, by query id, from the analyses; queries without speak for themselves.
    """
    written = [
        (example, negative, kept)
        for kept, examples in ((True, checked.kept), (False, checked.rejected))
        for example in examples
        for negative in example.negatives
        if negative.source == "generated"
    ]
    questions = [
        Question(
            example.query,
            resolve_passage(negative, dataset),
            (needs or {}).get(example.query.id, ""),
            resolve_passage(example.positives[0], dataset),
        )
        for example, negative, _ in written
    ]
    counts: Counter[tuple[str, str]] = Counter()
    reasons = dict(checked.report.reasons)
    said: dict[int, Negative] = {}
    for (_, negative, kept), opinion in zip(written, judge.judge(questions), strict=True):
        before: Reason = negative.verdict.reason if negative.verdict is not None else "valid"
        if isinstance(opinion, Failure):
            counts[before, "failed"] += 1
            continue
        counts[before, opinion.kind] += 1
        if kept:
            verdict = opinion.verdict(judge.name)
            said[id(negative)] = negative.model_copy(update={"verdict": verdict})
            for reason, change in ((before, -1), (verdict.reason, 1)):
                key = (negative.backend, negative.strategy or "none", reason)
                reasons[key] = reasons.get(key, 0) + change
    kept_examples, rejected = [], {e.query.id: e for e in checked.rejected}
    for example in checked.kept:
        now = [said.get(id(n), n) for n in example.negatives]
        good = [n for n in now if n.verdict is None or n.verdict.valid]
        bad = [n for n in now if not (n.verdict is None or n.verdict.valid)]
        kept_examples.append(example.model_copy(update={"negatives": good}))
        if bad:
            other = rejected.get(example.query.id)
            before_bad = [] if other is None else other.negatives
            rejected[example.query.id] = example.model_copy(update={"negatives": [*before_bad, *bad]})
    report = replace(checked.report, reasons={key: n for key, n in reasons.items() if n})
    return Review(Verification(kept_examples, list(rejected.values()), report), counts, judge.name)


def check_voices(
    voices: Sequence[Example], dataset: Dataset, judge: Judge, needs: Mapping[str, str] | None = None
) -> tuple[list[Example], Counter[str]]:
    """Keep only rewritten passages that do for their query what the original does.

    Args:
        voices: Examples with rewritten passages only; ``document_id`` says of what.
        dataset: Where the originals are.
        judge: Who compares.
        needs: What the searchers need, by query id.

    Returns:
        The examples with what is left, those without a positive left out, and how many passages of which side
        were unchanged, changed or not judged.
    """
    questions, sides = [], []
    for example in voices:
        first = str(example.positives[0].document_id)
        right = dataset.document(first).content
        for side, passages in (("positive", example.positives), ("negative", example.negatives)):
            for passage in passages:
                original = dataset.document(str(passage.document_id)).content
                for text in (original, resolve_passage(passage, dataset)):
                    need = (needs or {}).get(example.query.id, "")
                    questions.append(Question(example.query, text, need, right))
                sides.append(side)
    opinions = judge.judge(questions)
    counts: Counter[str] = Counter()
    unchanged = []
    for number, side in enumerate(sides):
        before, after = opinions[2 * number], opinions[2 * number + 1]
        if isinstance(before, Failure) or isinstance(after, Failure):
            counts[f"{side}: not judged"] += 1
            unchanged.append(False)
        else:
            same = _side(before) == _side(after)
            counts[f"{side}: {'unchanged' if same else 'changed'}"] += 1
            unchanged.append(same)
    left, place = [], 0
    for example in voices:
        size = len(example.positives)
        positives: list[Passage] = [
            p for p, same in zip(example.positives, unchanged[place : place + size], strict=True) if same
        ]
        place += size
        size = len(example.negatives)
        negatives = [
            n for n, same in zip(example.negatives, unchanged[place : place + size], strict=True) if same
        ]
        place += size
        if positives:
            left.append(Example(query=example.query, positives=positives, negatives=negatives))
    return left, counts


def _side(opinion: Opinion) -> str:
    return "beside" if opinion.kind in ("related", "unrelated") else opinion.kind
