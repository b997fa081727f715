"""Chat prompts in, checked answers out: the one interface that every language model stands behind.

A request carries its messages, the pydantic shape that the answer must have, and that shape's JSON schema. A
backend gives back a :class:`ChatResult`, which holds the parsed answer, or a :class:`ChatFailure`, which says
why there is none. Requests are handed over one by one while the backend works, so that a second call can
follow the first of its pair at once and no call waits for the slowest of a batch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeGuard, get_args, runtime_checkable

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from common.errors import nearest

Role = Literal["system", "user", "assistant"]
"""Who speaks in a message."""

FailureKind = Literal[
    "rate limited",
    "server error",
    "timeout",
    "no connection",
    "cut answer",
    "empty answer",
    "not json",
    "wrong schema",
    "refused",
    "context too long",
    "nothing to show",
]
"""Why there is no answer, in words that can be counted."""

TRANSIENT: frozenset[FailureKind] = frozenset({"rate limited", "server error", "timeout", "no connection"})
"""Failures that have nothing to do with the request: another run tries again."""

Mode = Literal["json_schema", "json_object", "text"]
"""How a server is held to JSON: by the schema, by being told to write JSON, or by the prompt alone."""

CHARACTERS_PER_TOKEN = 3.0
"""Where no tokenizer is at hand; English has about 4, so the estimate errs on the long side."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Args:
        role: Who speaks.
        content: What is said.
    """

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A prompt and what its answer must look like.

    Args:
        key: Names the request; the answer carries it.
        messages: The conversation so far; what many requests share comes first.
        shape: What the answer is parsed into.
        schema: JSON schema that the answer is written by, where a server can be held to one.
        max_tokens: Longest answer, in tokens.
        temperature: Of the sampling; 0 takes the likeliest token.
        top_p: Share of the probability that is sampled from.
        seed: Of the sampling.
    """

    key: str
    messages: tuple[Message, ...]
    shape: type[BaseModel]
    schema: Mapping[str, Any]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def again(self, attempt: int, *, longer: bool) -> ChatRequest:
        """The request for another attempt: with another seed, and room for a longer answer.

        At temperature 0 the seed decides nothing, so from the second attempt on a little is sampled.

        Args:
            attempt: How many attempts there were.
            longer: Whether the last answer was cut.
        """
        tokens = self.max_tokens * 2 if longer else self.max_tokens
        return replace(
            self, seed=self.seed + attempt, max_tokens=tokens, temperature=max(self.temperature, 0.3)
        )


@dataclass(frozen=True, slots=True)
class ChatResult:
    """An answer that has its shape.

    Args:
        key: Key of the request.
        value: The answer.
        prompt_tokens: Tokens read, those of failed attempts included.
        completion_tokens: Tokens written, those of failed attempts included.
        attempts: How often it was asked.
        repaired: Whether the text was not the JSON that was asked for.
    """

    key: str
    value: BaseModel
    prompt_tokens: int = 0
    completion_tokens: int = 0
    attempts: int = 1
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class ChatFailure:
    """Why there is no answer.

    Args:
        key: Key of the request.
        kind: In words that can be counted.
        detail: What happened at the last attempt; never holds a key or a prompt.
        prompt_tokens: Tokens read in vain.
        completion_tokens: Tokens written in vain.
        attempts: How often it was asked.
    """

    key: str
    kind: FailureKind
    detail: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    attempts: int = 1


Outcome = ChatResult | ChatFailure


@runtime_checkable
class ChatBackend(Protocol):
    """A language model, wherever it runs.

    Args:
        name: Kind of backend, for provenance: ``"vllm"``, ``"openai"``, ``"transformers"``.
        model: Name of the model.
        context: Tokens that prompt and answer may have together; None if nobody knows.
    """

    name: str
    model: str

    @property
    def context(self) -> int | None:
        """Tokens that prompt and answer may have together; None if nobody knows."""
        ...

    def count(self, text: str) -> int:
        """Tokens of a text; where no tokenizer is at hand an estimate on the long side."""
        ...

    def stream(self, take: Callable[[], ChatRequest | None]) -> Iterator[Outcome]:
        """Answer requests as they come, each exactly once, in any order.

        Args:
            take: Gives the next request, or None when there is none at the moment. It is called from the
                thread that iterates, between two outcomes; the iteration ends when it gives None and
                nothing is on its way.

        Raises:
            BackendError: Nothing can be answered at all: no server, a wrong key, an unknown model.
        """
        ...

    def close(self) -> None:
        """Give connections, processes and memory back."""
        ...


def complete(backend: ChatBackend, requests: Iterable[ChatRequest]) -> list[Outcome]:
    """Answer a batch of requests with different keys, in their order.

    Args:
        backend: Who answers.
        requests: What is asked.
    """
    waiting = list(requests)
    queue = iter(waiting)
    found = {outcome.key: outcome for outcome in backend.stream(lambda: next(queue, None))}
    return [found[request.key] for request in waiting]


class BadAnswerError(Exception):
    """A text is not the answer that was asked for.

    Args:
        kind: In words that can be counted.
        detail: What is wrong with it.
    """

    def __init__(self, kind: FailureKind, detail: str = "") -> None:
        super().__init__(detail)
        self.kind: FailureKind = kind
        self.detail = detail


def read_answer(
    text: str, shape: type[BaseModel], *, cut: bool = False, salvage: bool = False
) -> tuple[BaseModel, bool]:
    """Parse an answer, through prose, code fences and small mistakes if need be.

    Taken as it is when it is JSON of that shape. Otherwise the first JSON object in it that has the shape,
    after the reasoning of a thinking model; trailing commas, bare line breaks in strings, keys that do not
    exist and names of choices in other spelling are put right, items of a list that cannot be are left out.

    Args:
        text: What the model wrote.
        shape: What it must be.
        cut: Whether the model was stopped at its longest answer.
        salvage: Whether the whole parts of a cut answer are good enough.

    Returns:
        The answer, and whether the text had to be repaired.

    Raises:
        BadAnswerError: There is no such object in the text.
    """
    try:
        # Bare control characters in strings are let pass: grammars that servers hold models to allow them.
        return shape.model_validate(json.loads(text, strict=False)), False
    except ValueError:
        pass
    text = _THOUGHT.sub("", text).strip()
    if not text:
        raise BadAnswerError("cut answer" if cut else "empty answer", "the model wrote nothing")
    # Its words and not the error: that holds a validator's own error, whose traceback holds this frame, and
    # the garbage collector cannot see into it. Kept here, it would keep every wrong answer and its request.
    wrong: str | None = None
    for value in _objects(text):
        try:
            return _validate(value, shape), True
        except ValidationError as error:
            wrong = wrong or _describe(error)
    start = text.find("{")
    if start >= 0 and (cut or wrong is None):
        if salvage:
            try:
                part = from_json(text[start:], allow_partial=True)
                return _validate(part, shape, salvage=True), True
            except (ValueError, ValidationError):
                pass
        if cut or _is_open(text[start:]):
            raise BadAnswerError("cut answer", f"stopped after {len(text)} characters")
    if wrong is not None:
        raise BadAnswerError("wrong schema", wrong)
    raise BadAnswerError("not json", f"no JSON object in {len(text)} characters")


@dataclass
class Attempts:
    """A request and what has come of it so far, for engines that answer in this process.

    Args:
        request: What to ask next.
        most: Attempts, at most.
        done: Attempts made.
        prompt_tokens: Tokens read.
        completion_tokens: Tokens written.
    """

    request: ChatRequest
    most: int
    done: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def settle(self, text: str, *, cut: bool, prompt_tokens: int, completion_tokens: int) -> Outcome | None:
        """Take an answer in; None if :attr:`request` is to be asked again.

        Args:
            text: What the model wrote.
            cut: Whether it was stopped at its longest answer.
            prompt_tokens: Tokens read.
            completion_tokens: Tokens written.
        """
        self.done += 1
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        key, counts = self.request.key, (self.prompt_tokens, self.completion_tokens, self.done)
        last = self.done >= self.most
        try:
            value, repaired = read_answer(text, self.request.shape, cut=cut, salvage=last)
        except BadAnswerError as error:
            if last:
                return ChatFailure(key, error.kind, error.detail, *counts)
            self.request = self.request.again(self.done, longer=error.kind == "cut answer")
            return None
        return ChatResult(key, value, *counts, repaired)


_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_FENCE = re.compile(r"```[\w-]*\s*\n(.*?)```", re.DOTALL)
_TRAILING_COMMA = re.compile(r'("(?:\\.|[^"\\])*")|,(?=\s*[}\]])')
_DECODER = json.JSONDecoder(strict=False)
_PLACES = 32


def _objects(text: str) -> Iterator[Any]:
    """The JSON objects in a text: the largest ones first to begin."""
    for part in [*_FENCE.findall(text), text]:
        mended = _TRAILING_COMMA.sub(lambda match: match.group(1) or "", part)
        start = mended.find("{")
        for _ in range(_PLACES):
            if start < 0:
                break
            try:
                value, end = _DECODER.raw_decode(mended, start)
            except ValueError:
                end = start + 1
            else:
                yield value
            start = mended.find("{", end)


def _is_open(text: str) -> bool:
    """Whether a text from its first brace on is JSON that only lacks its end."""
    try:
        from_json(text)
    except ValueError as error:
        return "EOF" in str(error)
    return False


def _validate(value: Any, shape: type[BaseModel], *, salvage: bool = False) -> BaseModel:
    """Validate, putting right what can be without guessing at content; leaving out what is half there."""
    for _ in range(_PLACES):
        try:
            return shape.model_validate(value)
        except ValidationError as error:
            errors = error.errors(include_url=False)
            mended = isinstance(value, dict) and (_mend(value, errors) or (salvage and _drop(value, errors)))
            if not mended:
                raise
    return shape.model_validate(value)


def _mend(value: Any, errors: list[ErrorDetails]) -> bool:
    """Put one mistake right in place; False when none can be."""
    for error in errors:
        place = error["loc"]
        try:
            holder = value
            for step in place[:-1]:
                holder = holder[step]
            if error["type"] == "extra_forbidden":
                del holder[place[-1]]
                return True
            if error["type"] == "literal_error" and isinstance(holder[place[-1]], str):
                choices = re.findall(r"'([^']*)'", error.get("ctx", {}).get("expected", ""))
                written = re.sub(r"[_\s-]+", " ", holder[place[-1]]).strip().lower()
                meant = nearest(written, choices)
                if meant is not None and meant != holder[place[-1]]:
                    holder[place[-1]] = meant
                    return True
        except (KeyError, IndexError, TypeError):
            continue
    for error in errors:
        # The innermost item of a list that holds the mistake goes.
        place = error["loc"]
        for depth in range(len(place) - 1, 0, -1):
            if isinstance(place[depth], int):
                holder = value
                for step in place[:depth]:
                    holder = holder[step]
                item = place[depth]
                if isinstance(holder, list) and isinstance(item, int) and len(holder) > 1:
                    del holder[item]
                    return True
    return False


def _drop(value: Any, errors: list[ErrorDetails]) -> bool:
    """Leave out the first object that lacks a part; False if that would be the whole answer."""
    for error in errors:
        place = error["loc"]
        if error["type"] == "missing" and len(place) > 1:
            holder = value
            for step in place[:-2]:
                holder = holder[step]
            del holder[place[-2]]
            return True
    return False


def _describe(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'answer'}: {first['msg']}"


def estimate_tokens(text: str) -> int:
    """Tokens of a text without a tokenizer, on the long side; a Chinese or Japanese sign counts as one.

    Args:
        text: Any text.
    """
    wide = sum(1 for c in text if ord(c) > 0x2E7F)
    return wide + int((len(text) - wide) / CHARACTERS_PER_TOKEN) + 1


def is_failure_kind(text: str) -> TypeGuard[FailureKind]:
    """Whether a word is a kind of failure."""
    return text in get_args(FailureKind)
