"""The writer with a language model: analysis, negatives, and passages in the model's own voice.

Source: CausalNeg (arXiv 2606.01304), the two-call generation. Ours besides: which requirement is broken
how is chosen here and spread evenly, not left to the model's habits; the second call continues the first; the
third call lets the same model rewrite positives and mined negatives, so that its voice stands on both sides.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, get_args

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel

from causalneg.data.schema import Analysis, Document, Negative, Passage, Query, StrategyKind
from causalneg.generation.jobs import Call, Failure, Job
from causalneg.generation.journal import Step
from causalneg.generation.writers.base import MAX_NEGATIVES, Pair, Writer, Written, draws
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
    ChatBackend,
    ChatFailure,
    ChatRequest,
    ChatResult,
    Message,
    Outcome,
    estimate_tokens,
)
from common.config import checked
from common.errors import ConfigError

_SHRINK = (1.0, 0.5, 0.2)
_TEMPLATE_TOKENS = 64
_LEAST_TOKENS = 24


@checked
class LLMWriter(Writer):
    """Writes with a language model; see :class:`causalneg.generation.writers.base.Writer`.

    Args:
        backend: Where the model runs; None for one that only shows its prompts.
        profile: Name of a corpus profile, or path of a text file.
        seed: Decides every draw, the model's own included where its server takes a seed.
        limits: How much the model is shown and asked for.
        temperature: Of the sampling; 0 takes the likeliest token.
        top_p: Share of the probability that is sampled from.

    Raises:
        ConfigError: There is no such profile, or the model's context is too small.
        ValueError: A value is out of range.
        DataError: The profile cannot be read.
    """

    def __init__(
        self,
        *,
        backend: ChatBackend | None,
        profile: str = "generic",
        seed: int = 0,
        limits: Limits = Limits(),  # noqa: B008  # it is frozen
        temperature: Annotated[float, Ge(0)] = 0.7,
        top_p: Annotated[float, Gt(0), Le(1)] = 0.95,
    ) -> None:
        self.backend, self.seed = backend, seed
        self.name, self.model = ("llm", "") if backend is None else (backend.name, backend.model)
        self.temperature, self.top_p = temperature, top_p
        self._context = None if backend is None else backend.context
        self._count = estimate_tokens if backend is None else backend.count
        self.limits = with_limits(limits, self._context)
        self.candidates = self.limits.candidates
        self.prompts = Prompts(profile, self.limits)
        self._fixed = self._tokens(self.prompts.analysis(Query(id="", text=""), Document(id="", text="")))
        if self._context is not None and self._room("") < 4 * _LEAST_TOKENS:
            raise ConfigError(
                f"context: {self._context} tokens are too few: the prompts alone take {self._fixed}, "
                f"answers up to {self.limits.analysis_tokens + self.limits.negatives_tokens}"
            )

    @property
    def identity(self) -> dict[str, str]:
        """What decides its texts: backend, model, prompts, schemas, seed, settings; see the base class."""
        asked = ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(self.limits).items())
        return {
            "writer": "llm",
            **({} if self.backend is None else self.backend.identity),
            "prompt version": self.prompts.version,
            "schema": self.prompts.schema_version,
            "seed": str(self.seed),
            "settings": f"temperature {self.temperature:g}, top_p {self.top_p:g}, {asked}",
        }

    def preview(self, pair: Pair) -> str:
        """Both prompts for a pair, for readers; nothing is asked."""
        shown = self.prompts.preview(pair.query, self._cut(pair, 1.0)[0], self._candidates(pair))
        return f"prompt version: {self.prompts.version}\n\n{shown}"

    def write(self, pair: Pair) -> Job[Written]:
        """Both calls for a pair; see the base class."""
        analysis, outcome, cut = yield from self._analysis(pair)
        if isinstance(analysis, Failure):
            return Written(failure=analysis, cut=cut)
        tokens = 0 if outcome is None else outcome.prompt_tokens + outcome.completion_tokens
        written = yield from self._negatives(pair, analysis, tokens)
        return dataclasses.replace(written, cut=cut or written.cut)

    def _analysis(self, pair: Pair) -> Job[tuple[Analysis | Failure, Outcome | None, bool]]:
        """The first call: the analysis, what came of the call, and whether the positive was cut."""
        unit, cut = _unit(pair), False
        if not pair.positive.content:
            return Failure("nothing to show", f"{unit}: the passage that answers has no text"), None, False
        for shrink in _SHRINK:
            positive, cut = self._cut(pair, shrink)
            outcome = yield self._call(
                "analysis",
                unit,
                self.prompts.analysis(pair.query, positive),
                Analysis,
                self.prompts.analysis_schema,
                self.limits.analysis_tokens,
            )
            if not _too_long(outcome):
                break
        value = outcome.value if isinstance(outcome, ChatResult) else None
        return value if isinstance(value, Analysis) else Failure.of(outcome), outcome, cut

    def _negatives(self, pair: Pair, analysis: Analysis, tokens: int) -> Job[Written]:
        """The second call; ``tokens`` is what the first one took."""
        unit = _unit(pair)
        kinds = list(_KINDS)
        draws(self.seed, "orders", pair.query.id, pair.positive.id).shuffle(kinds)
        orders = choose_orders(analysis, kinds, MAX_NEGATIVES)
        if not orders:
            return Written(analysis, failure=Failure("nothing to break", f"{unit}: there is no requirement"))
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
        value = outcome.value if isinstance(outcome, ChatResult) else None
        if not isinstance(value, Drafts):
            return Written(analysis, failure=Failure.of(outcome), cut=cut)
        tokens += outcome.prompt_tokens + outcome.completion_tokens
        negatives, dropped = self._read(pair, value, orders, shown, tokens)
        return Written(analysis, tuple(negatives), None, cut, dict(dropped))

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
                    prompt_version=self.prompts.version,
                    seed=self.seed,
                )
                found.append(negative)
        # What the pair cost is shared, so that the sum over a set is what was paid.
        shares = [tokens // len(found) + (i < tokens % len(found)) for i in range(len(found))]
        return [n.model_copy(update={"tokens": s}) for n, s in zip(found, shares, strict=True)], dropped

    def rewrite(self, document: Document) -> Job[Passage | Failure]:
        """The third call: one document in the model's own voice; see the base class."""
        if not document.text.strip():
            return Failure("nothing to show", f"document {document.id} has no text")
        most = self.limits.rewrite_tokens
        if self._count(document.text) > most:
            # Half of a passage does not say the same.
            return Failure("context too long", f"document {document.id} is longer than {most} tokens")
        outcome = yield self._call(
            "rewrite",
            document.id,
            self.prompts.rewrite(document.text),
            Rewritten,
            self.prompts.rewrite_schema,
            most,
        )
        value = outcome.value if isinstance(outcome, ChatResult) else None
        if not isinstance(value, Rewritten):
            return Failure.of(outcome)
        text = value.text.strip()
        if not text or len(value.text) >= self.limits.passage_characters:
            return Failure("empty answer", f"document {document.id}: nothing usable was written")
        return Passage(document_id=document.id, text=text, title=document.title, voice=self.name)

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
        return sum(self._count(m.content) for m in messages) + _TEMPLATE_TOKENS

    def _room(self, query: str) -> int:
        """Tokens that the positive may have, so that both calls fit."""
        context = self._context or 0
        answers = self.limits.analysis_tokens + self.limits.negatives_tokens
        return context - self._fixed - self._count(query) - answers - context // 16

    def _cut(self, pair: Pair, shrink: float) -> tuple[Document, bool]:
        """The positive, cut at the end of a sentence if the model could not read it whole."""
        positive, count = pair.positive, self._count
        room = None if self._context is None else self._room(pair.query.text)
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
        context, count = self._context, self._count
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
