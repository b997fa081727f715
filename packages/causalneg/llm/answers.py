"""From what a model wrote to an answer of the shape that was asked for, or the reason why there is none."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from causalneg.llm.chat import ChatFailure, ChatRequest, ChatResult, FailureKind, Outcome
from common.errors import nearest


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

    Taken as it is when it is JSON of that shape. Otherwise the last complete JSON object that has the shape,
    behind the reasoning of a thinking model (all that stands before the last ``</think>``): what a model
    drafts or quotes comes before what it answers. Trailing commas, bare line breaks in strings, keys that do
    not exist and names of choices in other spelling are put right, items of a list that cannot be are left
    out.

    Args:
        text: What the model wrote.
        shape: What it must be.
        cut: Whether the model was stopped at its longest answer. An object that more text follows is then no
            answer: the model was not done.
        salvage: Whether the whole parts of a cut answer are good enough.

    Returns:
        The answer, and whether the text had to be repaired.

    Raises:
        BadAnswerError: There is no such object in the text.
    """
    try:
        # Bare control characters in strings are let pass: grammars that servers hold models to allow them.
        return shape.model_validate(json.loads(text, strict=False)), False
    except (ValueError, RecursionError):
        pass
    text = text.rpartition("</think>")[2].partition("<think>")[0].strip()
    if not text:
        raise BadAnswerError("cut answer" if cut else "empty answer", "the model wrote nothing")
    found, rest, is_open = _objects(text)
    # Its words and not the error: that holds a validator's own error, whose traceback holds this frame, and
    # the garbage collector cannot see into it. Kept here, it would keep every wrong answer and its request.
    wrong: str | None = None
    if not cut or not rest.strip("` \n"):
        for value in reversed(found):
            try:
                return _validate(value, shape), True
            except ValidationError as error:
                wrong = wrong or first_mistake(error)
    if is_open and salvage:
        try:
            return _validate(from_json(rest, allow_partial=True), shape, salvage=True), True
        except (ValueError, ValidationError):
            pass
    if cut or (is_open and wrong is None):
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


_TRAILING_COMMA = re.compile(r'("(?:\\.|[^"\\])*")|,(?=\s*[}\]])')
_DECODER = json.JSONDecoder(strict=False)
_PLACES = 32


def _objects(text: str) -> tuple[list[Any], str, bool]:
    """The JSON objects in a text, what follows them, and whether that is one that only lacks its end."""
    found: list[Any] = []
    end = mended = 0
    open_at = -1
    start = text.find("{")
    while start >= 0:
        try:
            value, stop = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            tail = text[start:]
            if mended < _PLACES:
                mended += 1
                tail = _TRAILING_COMMA.sub(lambda match: match.group(1) or "", tail)
            try:
                value, length = _DECODER.raw_decode(tail)
            except (ValueError, RecursionError):
                if open_at < 0 and _is_open(text[start:]):
                    open_at = start
                start = text.find("{", start + 1)
                continue
            text, stop = text[:start] + tail, start + length
        found.append(value)
        end = stop
        start = text.find("{", end)
    return (found, text[open_at:], True) if open_at >= 0 else (found, text[end:], False)


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


def first_mistake(error: ValidationError) -> str:
    """Place and words of the first mistake.

    Args:
        error: What pydantic found.
    """
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'answer'}: {first['msg']}"
