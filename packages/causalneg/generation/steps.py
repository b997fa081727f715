"""Many small conversations with one model at a time: started, journaled, resumed, and kept within a budget.

What is done for a pair is written down as a generator that yields calls and is sent their outcomes. This
module runs any number of such jobs at once over one backend. A call whose outcome stands in the journal costs
nothing, equal calls of different jobs are made once, and follow-up calls go before new jobs, so that jobs end
soon and what a server has cached is still there.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from causalneg.generation.journal import Journal, Record, Step
from causalneg.llm.chat import (
    TRANSIENT,
    ChatBackend,
    ChatFailure,
    ChatRequest,
    ChatResult,
    Outcome,
    estimate_tokens,
    is_failure_kind,
)
from common.errors import ConfigError

T = TypeVar("T")

WINDOW = 4096
"""Jobs under way at once, at most."""

_HELD = 10_000


@dataclass(frozen=True, slots=True)
class Call:
    """A call that a job wants made.

    Args:
        step: What for.
        unit: Pair or passage that it belongs to.
        request: What is asked; its key is a digest of it.
    """

    step: Step
    unit: str
    request: ChatRequest

    @classmethod
    def of(cls, step: Step, unit: str, request: ChatRequest) -> Call:
        """A call whose key is the digest of what is asked.

        Args:
            step: What for.
            unit: Pair or passage that it belongs to.
            request: What is asked.
        """
        digest = hashlib.blake2b(f"{step}\0{request.seed}".encode(), digest_size=16)
        for message in request.messages:
            digest.update(f"\0{message.role}\0{message.content}".encode())
        return cls(step, unit, replace(request, key=digest.hexdigest()))


Job = Generator[Call, Outcome, T]
"""Yields calls, is sent their outcomes, returns what it found."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a generation set may cost, all its runs together.

    Args:
        tokens: Tokens read and written, at most; None for no bound.
        money: Cost at most, in the currency of the prices; None for no bound.
        prompt_price: Price of a million tokens read.
        completion_price: Price of a million tokens written.

    Raises:
        ConfigError: A bound or price is negative, or there is a bound in money and no price.
    """

    tokens: int | None = None
    money: float | None = None
    prompt_price: float = 0.0
    completion_price: float = 0.0

    def __post_init__(self) -> None:
        """Check all at once."""
        found = [
            f"{name}: must not be negative, got {value}"
            for name, value in vars(self).items()
            if value is not None and value < 0
        ]
        if self.money is not None and self.prompt_price == self.completion_price == 0:
            found.append("money: a budget in money needs the prices of a million tokens read and written")
        ConfigError.raise_if(found)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Price of so many tokens.

        Args:
            prompt_tokens: Tokens read.
            completion_tokens: Tokens written.
        """
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6

    def allows(self, prompt_tokens: int, completion_tokens: int) -> bool:
        """Whether so many tokens are within the bounds.

        Args:
            prompt_tokens: Tokens read.
            completion_tokens: Tokens written.
        """
        if self.tokens is not None and prompt_tokens + completion_tokens > self.tokens:
            return False
        return self.money is None or self.cost(prompt_tokens, completion_tokens) <= self.money


@dataclass
class _Waiting(Generic[T]):
    """A call that is on its way or about to be, and the jobs that wait for it."""

    call: Call
    jobs: list[tuple[int, Job[T]]] = field(default_factory=list)


class Runner(Generic[T]):
    """Runs jobs over one backend.

    Args:
        jobs: What is to be done; jobs are taken as there is room for them.
        backend: Who answers.
        journal: Where finished calls are written down, and looked up; None for nowhere.
        budget: What may be spent, earlier runs in the journal included.
        others: Further journals whose calls are paid from the same budget.
        window: Jobs under way at once, at most.
        retry: Kinds of failure in the journal that are tried again.
    """

    def __init__(
        self,
        jobs: Iterable[Job[T]],
        backend: ChatBackend,
        *,
        journal: Journal | None = None,
        budget: Budget | None = None,
        others: Sequence[Journal] = (),
        window: int = WINDOW,
        retry: Collection[str] = TRANSIENT,
    ) -> None:
        self._jobs = enumerate(jobs)
        self._backend, self._journal, self._budget = backend, journal, budget
        self._others = others
        self._window = window
        self._ready: deque[str] = deque()
        self._waiting: dict[str, _Waiting[T]] = {}
        self._found: deque[tuple[int, T]] = deque()
        self._active = 0
        self._exhausted = False
        self._retry = retry
        self._reserved: dict[str, tuple[int, int]] = {}
        self._reserved_sums = (0, 0)
        self.over_budget = False
        """Whether it stopped because the next call might exceed the budget."""
        self.prompt_tokens = 0
        """Tokens read in this run."""
        self.completion_tokens = 0
        """Tokens written in this run."""

    def __iter__(self) -> Iterator[tuple[int, T]]:
        """Yield number and result of every job that ends, in the order in which they end.

        Jobs that a spent budget leaves unfinished are not among them.

        Raises:
            BackendError: Nothing can be answered at all.
            DataError: The journal cannot be written.
        """
        try:
            while True:
                for outcome in self._backend.stream(self._take):
                    self._settle(outcome)
                    while self._found:
                        yield self._found.popleft()
                while self._found:
                    yield self._found.popleft()
                if self.over_budget or (self._exhausted and not self._ready):
                    return
        finally:
            for waiting in self._waiting.values():
                for _, job in waiting.jobs:
                    job.close()
            if self._journal is not None:
                self._journal.sync()

    def _take(self) -> ChatRequest | None:
        while not self._ready and not self._exhausted and self._active < self._window:
            if len(self._found) >= _HELD:
                return None
            number, job = next(self._jobs, (-1, None))
            if job is None:
                self._exhausted = True
            else:
                self._active += 1
                self._advance(number, job, None)
        if not self._ready or self.over_budget:
            return None
        request = self._waiting[self._ready[0]].call.request
        if not self._reserve(request):
            return None
        self._ready.popleft()
        return request

    def _reserve(self, request: ChatRequest) -> bool:
        """Set aside what a call may cost at most; False if that might exceed the budget."""
        if self._budget is None:
            return True
        read = sum(estimate_tokens(m.content) + 8 for m in request.messages)
        own = self if self._journal is None else self._journal.totals
        spent = [own, *(journal.totals for journal in self._others)]
        prompt = read + self._reserved_sums[0]
        completion = request.max_tokens + self._reserved_sums[1]
        if self._budget.allows(
            prompt + sum(s.prompt_tokens for s in spent),
            completion + sum(s.completion_tokens for s in spent),
        ):
            self._reserved[request.key] = (read, request.max_tokens)
            self._reserved_sums = (prompt, completion)
            return True
        self.over_budget = not self._reserved
        return False

    def _advance(self, number: int, job: Job[T], outcome: Outcome | None) -> None:
        """Let a job go on until it ends or wants a call that has to be made."""
        follows = outcome is not None
        try:
            while True:
                call = next(job) if outcome is None else job.send(outcome)
                key = call.request.key
                if key in self._waiting:
                    self._waiting[key].jobs.append((number, job))
                    return
                outcome = self._known(call)
                if outcome is None:
                    self._waiting[key] = _Waiting(call, [(number, job)])
                    (self._ready.appendleft if follows else self._ready.append)(key)
                    return
                follows = True
        except StopIteration as stop:
            self._active -= 1
            self._found.append((number, stop.value))

    def _known(self, call: Call) -> Outcome | None:
        record = self._journal.get(call.request.key) if self._journal is not None else None
        if record is None or record.failure in self._retry:
            return None
        counts = (record.prompt_tokens, record.completion_tokens, record.attempts)
        if record.failure:
            if not is_failure_kind(record.failure):
                return None
            return ChatFailure(record.key, record.failure, record.detail, *counts)
        try:
            value: BaseModel = call.request.shape.model_validate(record.value)
        except ValidationError:
            # A shape that has changed since: ask again.
            return None
        return ChatResult(record.key, value, *counts, record.repaired)

    def _settle(self, outcome: Outcome) -> None:
        waiting = self._waiting.pop(outcome.key)
        read, written = self._reserved.pop(outcome.key, (0, 0))
        self._reserved_sums = (self._reserved_sums[0] - read, self._reserved_sums[1] - written)
        self.prompt_tokens += outcome.prompt_tokens
        self.completion_tokens += outcome.completion_tokens
        if self._journal is not None:
            self._journal.add(
                Record(
                    key=outcome.key,
                    step=waiting.call.step,
                    unit=waiting.call.unit,
                    value=None if isinstance(outcome, ChatFailure) else outcome.value.model_dump(mode="json"),
                    failure=outcome.kind if isinstance(outcome, ChatFailure) else "",
                    detail=outcome.detail if isinstance(outcome, ChatFailure) else "",
                    prompt_tokens=outcome.prompt_tokens,
                    completion_tokens=outcome.completion_tokens,
                    attempts=outcome.attempts,
                    repaired=isinstance(outcome, ChatResult) and outcome.repaired,
                )
            )
        for number, job in waiting.jobs:
            self._advance(number, job, outcome)
