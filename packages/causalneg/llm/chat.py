"""Chat prompts in, checked answers out: the one interface of every language model.

A request carries its messages, the pydantic shape that the answer must have, and that shape's JSON schema. A
backend gives back a :class:`ChatResult`, which holds the parsed answer, or a :class:`ChatFailure`, which says
why there is none. Requests are handed over one by one while the backend works, so that a second call can
follow the first of its pair at once and no call waits for the slowest of a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeGuard, get_args

from pydantic import BaseModel

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


class ChatBackend(ABC):
    """A language model, wherever it runs. A new one is one file and one line in ``causalneg.llm.BACKENDS``.

    Its constructor's keyword-only signature is its config. Only :meth:`stream` must be written.

    Args:
        name: Kind of backend, for provenance: ``"vllm"``, ``"openai"``, ``"transformers"``.
        model: Name of the model.
    """

    name: str
    model: str

    @property
    def context(self) -> int | None:
        """Tokens that prompt and answer may have together; None if nobody knows."""
        return None

    @property
    def identity(self) -> dict[str, str]:
        """All that changes an answer beside the request itself; answers of equal identity may be mixed."""
        return {"backend": self.name, "model": self.model}

    def count(self, text: str) -> int:
        """Tokens of a text; where no tokenizer is at hand an estimate on the long side.

        Args:
            text: Any text.
        """
        return estimate_tokens(text)

    @abstractmethod
    def stream(self, take: Callable[[], ChatRequest | None]) -> Iterator[Outcome]:
        """Answer requests as they come, each exactly once, in any order.

        Args:
            take: Gives the next request, or None when there is none at the moment. It is called from the
                thread that iterates, between two outcomes; the iteration ends when it gives None and
                nothing is on its way.

        Raises:
            BackendError: Nothing can be answered at all: no server, a wrong key, an unknown model.
        """

    def close(self) -> None:  # noqa: B027  # most backends have nothing to give back
        """Give connections, processes and memory back."""


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
