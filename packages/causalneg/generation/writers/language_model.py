"""The writer with a language model: analysis, negatives, and passages in the model's own voice.

Source: CausalNeg (arXiv 2606.01304), the two-call generation. Ours besides: which requirement is broken
how is chosen here and spread evenly, not left to the model's habits; the second call continues the first; the
third call lets the same model rewrite positives and mined negatives, so that its voice stands on both sides.
"""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

from pydantic import BaseModel

from causalneg.data.schema import Analysis, Document, Negative, Passage, Query, StrategyKind
from causalneg.generation.journal import Journal, Record, Step
from causalneg.generation.steps import Budget, Call, Job, Runner
from causalneg.generation.writers.base import MAX_NEGATIVES, Failure, Pair, draws
from causalneg.generation.writers.prompts import (
    Drafts,
    Limits,
    Order,
    Prompts,
    Rewritten,
    choose_orders,
    cut_document,
    with_limits,
)
from causalneg.llm.chat import (
    TRANSIENT,
    ChatBackend,
    ChatFailure,
    ChatRequest,
    ChatResult,
    Message,
    Outcome,
)
from common.errors import ConfigError

_T = TypeVar("_T")
_SHRINK = (1.0, 0.5, 0.2)
_TEMPLATE_TOKENS = 64
_LEAST_TOKENS = 24


@dataclass(frozen=True)
class Written:
    """What came of a pair.

    Args:
        analysis: The answer to the first call; None if it failed.
        negatives: The negatives, the most decisive requirement first; none if a call failed.
        failure: Why there are none; None if the calls went well.
        prompt_tokens: Tokens read.
        completion_tokens: Tokens written.
        cut: Whether the positive was too long for the model and was cut.
        dropped: Orders without a usable negative, by reason.
    """

    analysis: Analysis | None = None
    negatives: tuple[Negative, ...] = ()
    failure: Failure | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cut: bool = False
    dropped: Counter[str] = field(default_factory=Counter)


class LLMWriter:
    """Writes with a language model; see :class:`causalneg.generation.writers.base.Writer`.

    Args:
        backend: Where the model runs.
        profile: Name of a corpus profile, or path of a text file.
        seed: Decides every draw, the model's own included where its server takes a seed.
        limits: How much it is shown and asked for.
        temperature: Of the sampling; 0 takes the likeliest token.
        top_p: Share of the probability that is sampled from.
        weights: Digest of the model's weights where they are at hand: other weights under the same name are
            another model.

    Raises:
        ConfigError: A value is out of range, there is no such profile, or the model's context is too small.
        DataError: The profile cannot be read.
    """

    def __init__(
        self,
        backend: ChatBackend,
        *,
        profile: str = "generic",
        seed: int = 0,
        limits: Limits | None = None,
        temperature: float = 0.7,
        top_p: float = 0.95,
        weights: str = "",
    ) -> None:
        found = []
        if temperature < 0:
            found.append(f"temperature: must not be negative, got {temperature}")
        if not 0 < top_p <= 1:
            found.append(f"top_p: must be above 0 and at most 1, got {top_p}")
        ConfigError.raise_if(found)
        self.backend, self.seed = backend, seed
        self.name, self.model = backend.name, backend.model
        self.temperature, self.top_p, self.weights = temperature, top_p, weights
        self.limits = with_limits(limits or Limits(), backend.context)
        self.prompts = Prompts(profile, self.limits)
        self.prompt_version = self.prompts.version
        asked = ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(self.limits).items())
        self.settings = f"temperature {temperature:g}, top_p {top_p:g}, {asked}"
        self._fixed = self._tokens(self.prompts.analysis(Query(id="", text=""), Document(id="", text="")))
        context = backend.context
        if context is not None and self._room("") < 4 * _LEAST_TOKENS:
            raise ConfigError(
                f"context: {context} tokens are too few: the prompts alone take {self._fixed}, "
                f"answers up to {self.limits.analysis_tokens + self.limits.negatives_tokens}"
            )

        self.journal: Journal | None = None
        self.budget: Budget | None = None
        self._others: Sequence[Journal] = ()
        self.unspoken: Counter[str] = Counter()
        """Documents that could not be rewritten, by kind of failure."""

    def keep(
        self, journal: Journal | None, budget: Budget | None = None, others: Sequence[Journal] = ()
    ) -> None:
        """Write finished calls down, look known ones up, and stay within a budget, from now on.

        Args:
            journal: Where calls are kept; None for nowhere.
            budget: What all calls in the journals may cost together; None for no bound.
            others: Further journals whose calls are paid from the same budget.
        """
        self.journal, self.budget, self._others = journal, budget, others

    def runner(self, jobs: Iterable[Job[_T]], *, retry: Collection[str] = TRANSIENT) -> Runner[_T]:
        """What runs jobs of this writer over its backend.

        Args:
            jobs: What is to be done.
            retry: Kinds of failure in the journal that are tried again.
        """
        return Runner(
            jobs, self.backend, journal=self.journal, budget=self.budget, others=self._others, retry=retry
        )

    @property
    def identity(self) -> dict[str, str]:
        """What decides the texts: those of equal identity may be mixed in one set."""
        return {
            "backend": self.name,
            "model": self.model,
            **({"weights": self.weights} if self.weights else {}),
            "prompt version": self.prompt_version,
            "schema": self.prompts.schema_version,
            "seed": str(self.seed),
            "settings": self.settings,
        }

    def analyse(self, pairs: Sequence[Pair]) -> list[Analysis | Failure]:
        """Say why each positive answers its query; see the protocol."""
        return self._all([_returning(self._analysis(pair)) for pair in pairs])

    def write(self, pairs: Sequence[Pair], analyses: Sequence[Analysis]) -> list[list[Negative] | Failure]:
        """Write up to three negatives a pair; see the protocol.

        The tokens of the first call are not known here and not counted; :meth:`job` knows them.
        """
        jobs = [self._negatives(p, a) for p, a in zip(pairs, analyses, strict=True)]
        written = self._all(jobs)
        return [w if isinstance(w, Failure) else w.failure or list(w.negatives) for w in written]

    def rewrite(self, documents: Sequence[Document]) -> list[Passage | Failure]:
        """Say the same in the model's own voice; see the protocol."""
        found = self._all([self.rewrite_job(document) for document in documents])
        self.unspoken.update(f.reason for f in found if isinstance(f, Failure))
        return found

    def preview(self, pair: Pair) -> str:
        """Both prompts for a pair, for readers; nothing is asked.

        Args:
            pair: The pair.
        """
        return self.prompts.preview(pair.query, self._cut(pair, 1.0)[0], self._candidates(pair))

    def _all(self, jobs: Sequence[Job[_T]]) -> list[_T | Failure]:
        found = dict(self.runner(jobs))
        left = Failure("over budget", "the budget is spent")
        return [found.get(number, left) for number in range(len(jobs))]

    def job(self, pair: Pair) -> Job[Written]:
        """Both calls for a pair, as a job for a :class:`causalneg.generation.steps.Runner`.

        Args:
            pair: What to write for.
        """
        analysis, outcome, cut = yield from self._analysis(pair)
        spent = (outcome.prompt_tokens, outcome.completion_tokens)
        if isinstance(analysis, Failure):
            return Written(None, (), analysis, *spent, cut)
        written = yield from self._negatives(pair, analysis, before=spent)
        return dataclasses.replace(written, analysis=analysis, cut=cut or written.cut)

    def _analysis(self, pair: Pair) -> Job[tuple[Analysis | Failure, Outcome, bool]]:
        """The first call: the analysis, what came of the call, and whether the positive was cut."""
        unit, cut = _unit(pair), False
        outcome: Outcome = ChatFailure("", "nothing to show", f"{unit}: the passage that answers has no text")
        if not pair.positive.content:
            failure = failure_of(outcome)
            self._keep_failure("analysis", unit, failure)
            return failure, outcome, False
        for shrink in _SHRINK:
            positive, cut = self._cut(pair, shrink)
            messages = self.prompts.analysis(pair.query, positive)
            outcome = yield self._call(
                "analysis",
                unit,
                messages,
                Analysis,
                self.prompts.analysis_schema,
                self.limits.analysis_tokens,
            )
            if not _too_long(outcome):
                break
        value = outcome.value if isinstance(outcome, ChatResult) else None
        if isinstance(value, Analysis):
            return value, outcome, cut
        return failure_of(outcome), outcome, cut

    def _keep_failure(self, step: Step, unit: str, failure: Failure) -> None:
        """Write down that a pair failed without a call, so that it counts as finished."""
        key = hashlib.blake2b(f"{failure.reason}\0{unit}".encode(), digest_size=16).hexdigest()
        if self.journal is not None and self.journal.get(key) is None:
            self.journal.add(Record(key, step, unit, failure=failure.reason, detail=failure.detail))

    def _negatives(self, pair: Pair, analysis: Analysis, before: tuple[int, int] = (0, 0)) -> Job[Written]:
        unit = _unit(pair)
        kinds = list(_KINDS)
        draws(self.seed, "orders", pair.query.id, pair.positive.id).shuffle(kinds)
        orders = choose_orders(analysis, kinds, MAX_NEGATIVES)
        if not orders:
            nothing = Failure("nothing to break", f"{unit}: the analysis has no requirement", sum(before))
            self._keep_failure("negatives", unit, nothing)
            return Written(analysis, (), nothing, *before)
        outcome: Outcome = ChatFailure("", "nothing to show")
        shown: list[Document] = []
        cut = False
        for shrink in _SHRINK:
            positive, cut = self._cut(pair, shrink)
            shown = self._fitting(pair, positive, analysis, orders, shrink)
            outcome = yield self._call(
                "negatives",
                unit,
                self.prompts.negatives(pair.query, positive, analysis, shown, orders),
                Drafts,
                self.prompts.negatives_schemas[len(orders) - 1],
                self.limits.negatives_tokens,
            )
            if not _too_long(outcome):
                break
        read, written = before[0] + outcome.prompt_tokens, before[1] + outcome.completion_tokens
        value = outcome.value if isinstance(outcome, ChatResult) else None
        if not isinstance(value, Drafts):
            return Written(analysis, (), failure_of(outcome, sum(before)), read, written, cut)
        negatives, dropped = self._read(pair, value, orders, shown, read + written)
        return Written(analysis, tuple(negatives), None, read, written, cut, dropped)

    def _read(
        self, pair: Pair, drafts: Drafts, orders: Sequence[Order], shown: Sequence[Document], tokens: int
    ) -> tuple[list[Negative], Counter[str]]:
        """The negatives of an answer, each with where it comes from."""
        titled = bool(pair.positive.title or any(c.title for c in pair.candidates))
        found: list[Negative] = []
        dropped: Counter[str] = Counter()
        for order, draft in zip(orders, drafts.in_order(), strict=False):
            text = draft.text.strip() if draft is not None else ""
            if draft is None or not text:
                dropped["missing" if draft is None else "declined"] += 1
            elif len(draft.text) >= self.limits.passage_characters:
                dropped["cut at the longest passage"] += 1
            else:
                base = shown[draft.passage - 1].id if 0 < draft.passage <= len(shown) else None
                negative = Negative(
                    document_id=base,
                    title=" ".join(draft.title.split()) if titled else "",
                    text=text,
                    source="generated",
                    backend=self.name,
                    requirement=order.requirement.text,
                    facet=order.requirement.facet,
                    strategy=order.disruption.kind,
                    model=self.model,
                    prompt_version=self.prompt_version,
                    seed=self.seed,
                )
                found.append(negative)
        # What the pair cost is shared, so that the sum over a set is what was paid.
        shares = [tokens // len(found) + (i < tokens % len(found)) for i in range(len(found))]
        return [n.model_copy(update={"tokens": s}) for n, s in zip(found, shares, strict=True)], dropped

    def rewrite_job(self, document: Document) -> Job[Passage | Failure]:
        """The third call, as a job: one document in the model's own voice; its title stays.

        Args:
            document: What to rewrite.
        """
        if not document.text.strip():
            return Failure("nothing to show", f"document {document.id} has no text")
        text = document.text
        most = self.limits.rewrite_tokens
        if self.backend.count(text) > most:
            # Half of a passage does not say the same.
            return Failure("context too long", f"document {document.id} is longer than {most} tokens")
        outcome = yield self._call(
            "rewrite", document.id, self.prompts.rewrite(text), Rewritten, self.prompts.rewrite_schema, most
        )
        value = outcome.value if isinstance(outcome, ChatResult) else None
        if not isinstance(value, Rewritten):
            return failure_of(outcome)
        if not value.text.strip() or len(value.text) >= self.limits.passage_characters:
            tokens = outcome.prompt_tokens + outcome.completion_tokens
            return Failure("empty answer", f"document {document.id}: nothing usable was written", tokens)
        return Passage(
            document_id=document.id, text=value.text.strip(), title=document.title, voice=self.name
        )

    def _call(
        self,
        step: Step,
        unit: str,
        messages: tuple[Message, ...],
        shape: type[BaseModel],
        schema: dict[str, Any],
        tokens: int,
    ) -> Call:
        request = ChatRequest(
            key="",
            messages=messages,
            shape=shape,
            schema=schema,
            max_tokens=tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=zlib.crc32(f"{self.seed}\t{step}\t{unit}".encode()) >> 1,
        )
        return Call.of(step, unit, request)

    def _tokens(self, messages: Iterable[Message]) -> int:
        return sum(self.backend.count(m.content) for m in messages) + _TEMPLATE_TOKENS

    def _room(self, query: str) -> int:
        """Tokens that the positive may have, so that both calls fit."""
        context = self.backend.context or 0
        answers = self.limits.analysis_tokens + self.limits.negatives_tokens
        return context - self._fixed - self.backend.count(query) - answers - context // 16

    def _cut(self, pair: Pair, shrink: float) -> tuple[Document, bool]:
        """The positive, cut at the end of a sentence if the model could not read it whole."""
        positive, count = pair.positive, self.backend.count
        room = None if self.backend.context is None else self._room(pair.query.text)
        if shrink < 1:
            whole = count(positive.content)
            room = int(shrink * (whole if room is None else min(room, whole)))
        return (positive, False) if room is None else cut_document(positive, max(1, room), count)

    def _candidates(self, pair: Pair) -> list[Document]:
        return [c for c in pair.candidates if c.text.strip()][: self.limits.candidates]

    def _fitting(
        self, pair: Pair, positive: Document, analysis: Analysis, orders: Sequence[Order], shrink: float
    ) -> list[Document]:
        """The candidates that there is room for, each cut to its share at the end of a sentence."""
        candidates = self._candidates(pair)
        candidates = candidates[: max(1, round(shrink * len(candidates)))] if candidates else []
        context, count = self.backend.context, self.backend.count
        if context is None:
            return candidates
        bare = self._tokens(self.prompts.negatives(pair.query, positive, analysis, (), orders))
        room = context - bare - self.limits.negatives_tokens
        found = []
        for number, candidate in enumerate(candidates):
            share = room // (len(candidates) - number) - 8
            if share < _LEAST_TOKENS:
                continue
            short, _ = cut_document(candidate, share, count)
            if short.text:
                found.append(short)
                room -= count(short.content) + 8
        return found


_KINDS: tuple[StrategyKind, ...] = get_args(StrategyKind)


def _unit(pair: Pair) -> str:
    return f"{pair.query.id}\t{pair.positive.id}"


def _too_long(outcome: Outcome) -> bool:
    return isinstance(outcome, ChatFailure) and outcome.kind == "context too long"


def failure_of(outcome: Outcome, before: int = 0) -> Failure:
    """Why an outcome is no answer, as writers and judges say it.

    Args:
        outcome: What came of a call.
        before: Tokens of earlier calls.
    """
    tokens = before + outcome.prompt_tokens + outcome.completion_tokens
    if isinstance(outcome, ChatFailure):
        return Failure(outcome.kind, outcome.detail, tokens)
    return Failure("wrong schema", f"an answer of the shape {type(outcome.value).__name__}", tokens)


def _returning(job: Job[tuple[_T, Outcome, bool]]) -> Job[_T]:
    found, _, _ = yield from job
    return found
