"""Many jobs at a time, each of zero or more calls: started, written down, resumed, within a budget.

What is done for a pair, a passage or a question is a generator that yields calls and is sent their outcomes;
rules yield none. This module runs any number of such jobs at once over one backend. A call whose outcome
stands in the ledger costs nothing, equal calls of different jobs are made once, and follow-up calls go before
new jobs, so that jobs end soon and what a server has cached is still there.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from causalneg.generation.journal import Answer, Finished, Ledger, Step
from causalneg.generation.totals import damaged
from causalneg.llm.answers import first_mistake
from causalneg.llm.budget import Budget
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

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """Why a job has no result.

    Args:
        kind: A few words that can be counted.
        detail: What happened, for readers.
    """

    kind: str
    detail: str = ""

    @classmethod
    def of(cls, outcome: Outcome) -> Failure:
        """Why an outcome is no answer.

        Args:
            outcome: What came of a call.
        """
        if isinstance(outcome, ChatFailure):
            return cls(outcome.kind, outcome.detail)
        return cls("wrong schema", f"an answer of the shape {type(outcome.value).__name__}")


OVER_BUDGET = Failure("over budget", "the budget is spent")
"""Of a job that was not begun, or not ended, since the next call might cost too much."""

WINDOW = 4096
"""Jobs under way at once, at most."""

_HELD = 64


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
        said = [part for message in request.messages for part in (message.role, message.content)]
        return cls(step, unit, replace(request, key=digest(step, str(request.seed), *said)))


Job = Generator[Call, Outcome, T]
"""Yields calls, is sent their outcomes, returns what it found."""


def done(value: T) -> Job[T]:
    """A job without calls.

    Args:
        value: What it found.
    """
    return value
    yield  # makes it a generator


def kept(
    begin: Callable[[], Job[T]],
    step: Step,
    unit: str,
    key: str,
    *,
    ledger: Ledger,
    read: Callable[[Any], T],
    show: Callable[[T], Any],
    retry: Collection[str] = TRANSIENT,
) -> Job[T]:
    """A job whose end is written down, and whose result is too if no call tells it.

    Args:
        begin: Begins the job; not called where the result is known.
        step: What for.
        unit: Pair or passage that it belongs to.
        key: Digest of what it is for.
        ledger: Where it is written down, and looked up.
        read: Reads its result.
        show: Writes it, as JSON has it.
        retry: Kinds of failure that are tried again.
    """
    known = ledger.finished(step, key)
    if known is not None and known.value is not None and known.failure not in retry:
        try:
            return read(known.value)
        except ValidationError as error:
            what = f"the result of {step} of '{unit}': {first_mistake(error)}"
            raise damaged(ledger.journal.path, what) from None
    job, calls, outcome = begin(), 0, None
    try:
        while True:
            call = next(job) if outcome is None else job.send(outcome)
            calls += 1
            outcome = yield call
    except StopIteration as stop:
        result: T = stop.value
    finally:
        job.close()
    failed = result if isinstance(result, Failure) else getattr(result, "failure", None)
    failure = "" if failed is None else failed.kind
    if known is None or known.failure != failure or not calls:
        value = None if calls else show(result)
        ledger.finish(Finished(key, step, unit, failure, value))
    return result


def digest(*parts: str) -> str:
    """A short name for some texts.

    Args:
        parts: The texts.
    """
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


@dataclass
class _Waiting(Generic[T]):
    """A call that is on its way or about to be, and the jobs that wait for it."""

    call: Call
    jobs: list[tuple[int, Job[T]]] = field(default_factory=list)


class Runner(Generic[T]):
    """Runs jobs over one backend.

    Args:
        jobs: What is to be done; jobs are taken as there is room for them.
        backend: Who answers; None if no job asks.
        ledger: Where finished calls are written down, and looked up.
        budget: What all ledgers of the journal may spend together, earlier runs included.
        window: Jobs under way at once, at most.
        retry: Kinds of failure in the ledger that are tried again.
    """

    def __init__(
        self,
        jobs: Iterable[Job[T]],
        backend: ChatBackend | None,
        *,
        ledger: Ledger,
        budget: Budget | None = None,
        window: int = WINDOW,
        retry: Collection[str] = TRANSIENT,
    ) -> None:
        self._jobs = enumerate(jobs)
        self._stream = _nobody if backend is None else backend.stream
        self._ledger, self._budget = ledger, budget or Budget()
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

    def __iter__(self) -> Iterator[tuple[int, T]]:
        """Yield number and result of every job that ends, in the order in which they end.

        Jobs that a spent budget leaves unfinished are not among them.

        Raises:
            BackendError: Nothing can be answered at all.
            DataError: The journal cannot be written.
        """
        try:
            while True:
                for outcome in self._stream(self._take):
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
            self._ledger.journal.sync()

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
        read = sum(estimate_tokens(m.content) + 8 for m in request.messages)
        prompt = read + self._reserved_sums[0]
        completion = request.max_tokens + self._reserved_sums[1]
        spent = self._ledger.journal.spent
        if self._budget.allows(prompt + spent[0], completion + spent[1]):
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
        known = self._ledger.get(call.request.key)
        if known is None or known.failure in self._retry:
            return None
        counts = (known.prompt_tokens, known.completion_tokens, known.attempts)
        if known.failure:
            if not is_failure_kind(known.failure):
                return None
            return ChatFailure(known.key, known.failure, known.detail, *counts)
        try:
            value: BaseModel = call.request.shape.model_validate(known.value)
        except ValidationError as error:
            # The ledger's identity holds the shapes, so this was not written by this program.
            what = f"the answer to {known.step} of '{known.unit}': {first_mistake(error)}"
            raise damaged(self._ledger.journal.path, what) from None
        return ChatResult(known.key, value, *counts, known.repaired)

    def _settle(self, outcome: Outcome) -> None:
        waiting = self._waiting.pop(outcome.key)
        read, written = self._reserved.pop(outcome.key, (0, 0))
        self._reserved_sums = (self._reserved_sums[0] - read, self._reserved_sums[1] - written)
        self._ledger.add(
            Answer(
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


def _nobody(take: Callable[[], ChatRequest | None]) -> Iterator[Outcome]:
    """Answers where no job asks."""
    if take() is not None:
        raise ValueError("a job asks a language model, and there is none")
    return iter(())
