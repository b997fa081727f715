"""Any OpenAI-compatible server, or several: vLLM's, SGLang's, llama.cpp's, hosted ones.

Each endpoint gets as many requests at a time as it takes well: more with every answer, a third less after a
429, a 503 or a timeout, none until the moment that its Retry-After names. An answer that is cut, empty or not
of its shape is asked for again; a server without structured outputs is noticed and its text parsed with care.
The key is read from the environment, and appears in no message.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import random
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from time import time
from typing import Annotated, Any, Literal, TypeVar

import httpx2
import openai
from annotated_types import Ge, Gt

from causalneg.llm.answers import BadAnswerError, read_answer
from causalneg.llm.chat import (
    ChatBackend,
    ChatFailure,
    ChatRequest,
    ChatResult,
    FailureKind,
    Outcome,
    estimate_tokens,
)
from common.errors import BackendError, ConfigError, suggest

_T = TypeVar("_T")

KEY_VARIABLE = "OPENAI_API_KEY"
"""Environment variable that the key is read from, unless another is named."""

Mode = Literal["json_schema", "json_object", "text"]
"""How a server is held to JSON: by the schema, by being asked for JSON, or by the prompt alone."""

_START_TIMEOUT = 10.0
_LONGEST_WAIT = 60.0
_DROPPABLE = ("seed", "temperature", "top_p", "response_format", "max_tokens")
_DETAIL = 160


class _Trouble(Exception):  # noqa: N818 - what a server did, not an error of this program
    """Why an attempt gave no answer.

    Args:
        kind: In words that can be counted.
        detail: What happened.
        final: Whether another attempt can't help.
        counts: Whether it is one of the attempts that a request has.
        tokens: Tokens read and written all the same.
    """

    def __init__(
        self,
        kind: FailureKind,
        detail: str,
        *,
        final: bool = False,
        counts: bool = True,
        tokens: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__(detail)
        self.kind: FailureKind = kind
        self.detail, self.final, self.counts, self.tokens = detail, final, counts, tokens


class _Endpoint:
    """One server, and how much it takes at present."""

    def __init__(self, url: str, client: openai.AsyncOpenAI, concurrency: int, highest: int) -> None:
        self.url, self.client = url, client
        self.limit, self.highest = float(min(concurrency, highest)), float(highest)
        self.lowest = max(1.0, self.limit / 8)
        self.in_flight = 0
        self.resume_at = 0.0
        self.mode: Mode = "json_schema"
        self.without: set[str] = set()
        self.context: int | None = None
        self._starting = True
        self._slowed_at = -1.0
        self._failing = 0
        self.down_since: float | None = None

    def worked(self) -> None:
        """Grow: twice as many per round at first, one more per round after the first trouble."""
        self._failing, self.down_since = 0, None
        self.limit = min(self.highest, self.limit + (1.0 if self._starting else 1.0 / self.limit))

    def slow_down(self, began: float, now: float) -> None:
        """Take a third less, once for all requests that were on their way together."""
        self._starting = False
        if began > self._slowed_at:
            self.limit, self._slowed_at = max(self.lowest, self.limit * 2 / 3), now

    def pause(self, until: float) -> None:
        """Take nothing until a moment of the loop's clock."""
        self.resume_at = max(self.resume_at, until)

    def fail(self, now: float, wait: Callable[[int], float]) -> None:
        """Nobody answers: wait longer each time."""
        self.down_since = now if self.down_since is None else self.down_since
        if now >= self.resume_at:
            self._failing += 1
            self.pause(now + wait(self._failing))


class OpenAIBackend(ChatBackend):
    """Chat completions of OpenAI-compatible servers; see :class:`causalneg.llm.chat.ChatBackend`.

    All endpoints serve the same model. Making one asks each endpoint for its models, so that a missing
    server, a wrong key or an unknown model is refused at once.

    Args:
        model: Name of the model, as the servers have it.
        endpoints: Base URLs, such as ``http://127.0.0.1:8000/v1``.
        key_variable: Environment variable with the key; servers of one's own need none.
        concurrency: Requests at a time and endpoint to begin with.
        highest_concurrency: Requests at a time and endpoint, at most.
        timeout: Seconds until a request counts as stalled.
        attempts: How often a request is sent that gets a bad answer, a 5xx, a timeout or a reset.
        first_wait: Seconds before the second attempt, at most; each further wait is twice as long.
        patience: Seconds that a request is put off by 429, and that all endpoints may be away together.
        context: Tokens of the model's context; None takes it from servers that tell.
        extra_body: Further fields of each request, such as ``{"chat_template_kwargs": {...}}``.
        report: Gets one line about everything that a user should know.

    Raises:
        ConfigError: A value is out of range.
        BackendError: No endpoint answers, the key is refused, or the model is unknown.
    """

    name = "openai"

    def __init__(
        self,
        *,
        model: str = "",
        endpoints: Sequence[str] = (),
        key_variable: str = KEY_VARIABLE,
        concurrency: Annotated[int, Ge(1)] = 32,
        highest_concurrency: Annotated[int, Ge(1)] = 256,
        timeout: Annotated[float, Gt(0)] = 120.0,
        attempts: Annotated[int, Ge(1)] = 5,
        first_wait: Annotated[float, Gt(0)] = 0.5,
        patience: Annotated[float, Gt(0)] = 600.0,
        context: Annotated[int, Ge(1)] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        found = [
            f"{name}: must be above 0, got {value}"
            for name, value in (
                ("concurrency", concurrency),
                ("highest_concurrency", highest_concurrency),
                ("timeout", timeout),
                ("attempts", attempts),
                ("first_wait", first_wait),
                ("patience", patience),
                ("context", 1 if context is None else context),
            )
            if value <= 0
        ]
        if not endpoints:
            found.append("endpoints: name at least one, such as http://127.0.0.1:8000/v1")
        found += [
            f"endpoint '{url}': must begin with http:// or https://"
            for url in endpoints
            if not url.startswith(("http://", "https://")) and "@" not in url and "?" not in url
        ]
        # Such an URL would be shown in every message about its server.
        found += [
            f"endpoint {number}: holds a user, a password or a query; take that out, "
            f"keys are read from {key_variable}"
            for number, url in enumerate(endpoints, start=1)
            if "@" in url or "?" in url
        ]
        if not model:
            found.append("model: name the model as the server has it")
        self._key_variable = key_variable
        self._key = os.environ.get(key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            found.append(f"{key_variable}: holds signs that no key has; set it anew")
        ConfigError.raise_if(found)
        self.model = model
        self._first_wait = first_wait
        self._attempts, self._patience, self._timeout = attempts, patience, timeout
        self._extra_body = dict(extra_body or {})
        self._report = report or (lambda line: None)
        self._rng = random.Random()
        self._waiters: deque[asyncio.Future[_Endpoint]] = deque()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="openai-backend", daemon=True)
        self._thread.start()
        self._closed = False
        limits = httpx2.Timeout(timeout, connect=min(timeout, _START_TIMEOUT))
        self._endpoints = [
            _Endpoint(
                url,
                openai.AsyncOpenAI(base_url=url, api_key=self._key or "none", max_retries=0, timeout=limits),
                concurrency,
                highest_concurrency,
            )
            for url in endpoints
        ]
        try:
            self._run(self._check())
        except BaseException:
            self.close()
            raise
        known = [e.context for e in self._endpoints if e.context is not None]
        self._context = context if context is not None else min(known, default=None)

    @property
    def context(self) -> int | None:
        """Tokens that prompt and answer may have together: as set, or as the servers tell."""
        return self._context

    @property
    def identity(self) -> dict[str, str]:
        """Model, and what each request says beside the prompt; see the base class."""
        more = {"extra_body": json.dumps(self._extra_body, sort_keys=True)} if self._extra_body else {}
        return {**super().identity, **more}

    def _wait(self, attempt: int) -> float:
        """Seconds before another attempt: twice as long each time, at most a minute, never quite the same."""
        return min(_LONGEST_WAIT, self._first_wait * 2.0 ** min(attempt, 20)) * self._rng.uniform(0.5, 1.0)

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _shown(self, error: object) -> str:
        """One short line of what a server said, without the key."""
        text = " ".join(str(error).split())
        if self._key:
            text = text.replace(self._key, "***")
        return text if len(text) <= _DETAIL else f"{text[:_DETAIL]}..."

    async def _check(self) -> None:
        """Ask every endpoint for its models; those that are away may come back later, one must be there."""
        errors = await asyncio.gather(*(self._check_one(e) for e in self._endpoints))
        away = [error for error in errors if error]
        if len(away) == len(self._endpoints):
            raise BackendError(*away)
        for error in away:
            self._report(f"{error}; going on with the others")

    async def _check_one(self, endpoint: _Endpoint) -> str:
        try:
            listed = await endpoint.client.models.list(timeout=_START_TIMEOUT)
            models = list(listed.data or [])
        except openai.APIConnectionError:
            endpoint.fail(self._loop.time(), self._wait)
            return f"{endpoint.url}: no server answers; start it, or give another endpoint"
        except (openai.AuthenticationError, openai.PermissionDeniedError):
            raise self._refused(endpoint) from None
        except (openai.APIError, ValueError, TypeError, AttributeError):
            # Servers that do not list their models are asked for answers all the same.
            return ""
        names = [str(getattr(m, "id", "")) for m in models]
        if names and self.model not in names:
            shown = ", ".join(names[:10])
            raise BackendError(
                f"{endpoint.url}: has no model '{self.model}', only {shown}{suggest(self.model, names)}"
            )
        for entry in models:
            length = getattr(entry, "max_model_len", None)
            if getattr(entry, "id", "") == self.model and isinstance(length, int):
                endpoint.context = length
        return ""

    def _refused(self, endpoint: _Endpoint) -> BackendError:
        if self._key:
            return BackendError(f"{endpoint.url}: refuses the key in {self._key_variable}; check that key")
        return BackendError(f"{endpoint.url}: wants a key; set {self._key_variable} to it")

    def stream(self, take: Callable[[], ChatRequest | None]) -> Iterator[Outcome]:
        """Answer requests as they come; see the protocol.

        An answer keeps its place at its endpoint until the next one is asked for, by which time it is written
        down: a process that is killed has paid for as many answers as were on their way at most.
        """
        done: queue.SimpleQueue[tuple[Outcome, _Endpoint] | BaseException] = queue.SimpleQueue()
        tasks: set[asyncio.Task[None]] = set()

        async def answer(request: ChatRequest) -> None:
            try:
                done.put(await self._answer(request))
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # handed to the thread that waits
                done.put(error)

        def start(request: ChatRequest) -> None:
            task = self._loop.create_task(answer(request))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        pending = 0
        try:
            while True:
                while pending < self._wanted():
                    request = take()
                    if request is None:
                        break
                    self._loop.call_soon_threadsafe(start, request)
                    pending += 1
                if not pending:
                    return
                answered = done.get()
                if isinstance(answered, BaseException):
                    raise answered
                pending -= 1
                outcome, endpoint = answered
                try:
                    yield outcome
                finally:
                    if not self._closed:
                        self._loop.call_soon_threadsafe(self._release, endpoint)
        finally:
            if pending and not self._closed:
                self._run(self._cancel(tasks))
                while not done.empty():
                    answered = done.get()
                    if not isinstance(answered, BaseException):
                        self._loop.call_soon_threadsafe(self._release, answered[1])

    def _wanted(self) -> int:
        """Requests to have at hand, so that no endpoint waits for the next one."""
        return 8 + int(1.25 * sum(e.limit for e in self._endpoints))

    async def _cancel(self, tasks: set[asyncio.Task[None]]) -> None:
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _free(self) -> _Endpoint | None:
        now = self._loop.time()
        free = [e for e in self._endpoints if e.in_flight < int(e.limit) and e.resume_at <= now]
        return min(free, key=lambda e: e.in_flight / e.limit) if free else None

    async def _slot(self) -> _Endpoint:
        """Wait until an endpoint has room; first come, first served."""
        endpoint = self._free() if not self._waiters else None
        if endpoint is None:
            waiter: asyncio.Future[_Endpoint] = self._loop.create_future()
            self._waiters.append(waiter)
            self._wake()
            try:
                return await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._release(waiter.result())
                raise
        endpoint.in_flight += 1
        return endpoint

    def _release(self, endpoint: _Endpoint) -> None:
        endpoint.in_flight -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiters:
            endpoint = self._free()
            if endpoint is None:
                now = self._loop.time()
                paused = [e.resume_at for e in self._endpoints if e.resume_at > now]
                if paused:
                    self._loop.call_at(min(paused) + 1e-3, self._wake)
                return
            waiter = self._waiters.popleft()
            if not waiter.done():
                endpoint.in_flight += 1
                waiter.set_result(endpoint)

    async def _answer(self, request: ChatRequest) -> tuple[Outcome, _Endpoint]:
        """Ask until there is an answer, or no hope of one; also the endpoint, whose place is still taken."""
        key = request.key
        attempts = sent = read = written = 0
        first_refused: float | None = None
        while True:
            endpoint = await self._slot()
            keep = False
            began, mode, without = self._loop.time(), endpoint.mode, frozenset(endpoint.without)
            sent += 1
            try:
                try:
                    text, finish, tokens = await self._ask(endpoint, request, mode, without)
                    read, written = read + tokens[0], written + tokens[1]
                    endpoint.worked()
                    last = attempts + 1 >= self._attempts
                    value, repaired = read_answer(text, request.shape, cut=finish == "length", salvage=last)
                    keep = True
                    return ChatResult(
                        key, value, read, written, sent, repaired or finish == "length"
                    ), endpoint
                except BadAnswerError as error:
                    trouble = _Trouble(error.kind, error.detail)
                    request = request.again(attempts + 1, longer=error.kind == "cut answer")
                except openai.OpenAIError as error:
                    trouble = self._explain(endpoint, error, began, mode, without)
                except _Trouble as error:
                    trouble = error
                    read, written = read + error.tokens[0], written + error.tokens[1]
                except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
                    trouble = _Trouble("server error", f"a reply that is none ({type(error).__name__})")
                now = self._loop.time()
                attempts += trouble.counts
                if trouble.kind == "rate limited":
                    first_refused = began if first_refused is None else first_refused
                    late = now - first_refused > self._patience
                else:
                    late = attempts >= self._attempts
                if trouble.final or late:
                    detail = self._shown(f"{endpoint.url}: {trouble.detail}")
                    keep = True
                    return ChatFailure(key, trouble.kind, detail, read, written, sent), endpoint
            finally:
                if not keep:
                    self._release(endpoint)
            if trouble.counts and trouble.kind in ("server error", "timeout"):
                await asyncio.sleep(self._wait(attempts - 1))

    async def _ask(
        self, endpoint: _Endpoint, request: ChatRequest, mode: Mode, without: frozenset[str]
    ) -> tuple[str, str, tuple[int, int]]:
        """One attempt: the text, why it ended, tokens read and written."""
        fields: dict[str, Any] = {
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            "max_tokens": request.max_tokens,
        }
        if mode == "json_schema":
            named = {"name": request.shape.__name__, "schema": dict(request.schema), "strict": True}
            fields["response_format"] = {"type": "json_schema", "json_schema": named}
        elif mode == "json_object":
            fields["response_format"] = {"type": "json_object"}
        if "max_tokens" in without:
            fields["max_completion_tokens"] = fields["max_tokens"]
        body = {
            "model": self.model,
            "messages": [{"role": m.role, "content": m.content} for m in request.messages],
            **{name: value for name, value in fields.items() if name not in without},
            **self._extra_body,
        }
        # The typed call would walk through schema and messages, which takes longer than all the rest.
        reply = await endpoint.client.post("/chat/completions", body=body, cast_to=httpx2.Response)
        return _read_reply(reply.json(), request)

    def _explain(
        self,
        endpoint: _Endpoint,
        error: openai.OpenAIError,
        began: float,
        mode: Mode,
        without: frozenset[str],
    ) -> _Trouble:
        """What an error of the client means for the request and for its endpoint.

        Raises:
            BackendError: It is the same for every request.
        """
        now = self._loop.time()
        if isinstance(error, openai.APITimeoutError):
            if isinstance(error.__cause__, httpx2.ConnectTimeout):
                return self._away(endpoint, now)
            endpoint.slow_down(began, now)
            return _Trouble("timeout", f"no answer within {self._timeout:g} s")
        if isinstance(error, openai.APIConnectionError):
            if isinstance(error.__cause__, httpx2.ConnectError):
                return self._away(endpoint, now)
            return _Trouble("server error", "the connection broke off")
        if not isinstance(error, openai.APIStatusError):
            return _Trouble("server error", f"a reply that is none ({type(error).__name__})")
        status, said = error.status_code, self._shown(error.message)
        if status == 401 or (status == 403 and "key" in said.lower()):
            raise self._refused(endpoint)
        if status == 404:
            raise BackendError(f"{endpoint.url}: 404 for model '{self.model}': {said}")
        if status == 429:
            if error.code == "insufficient_quota":
                raise BackendError(
                    f"{endpoint.url}: the quota of this key is spent; run again when it is not"
                )
            self._rate_limited(endpoint, error.response.headers, began, now)
            return _Trouble("rate limited", "429", counts=False)
        if status in (400, 413, 422):
            return self._bad_request(endpoint, error, said, mode, without)
        if status == 503:
            wait = _retry_after(error.response.headers)
            endpoint.slow_down(began, now)
            endpoint.pause(now + wait if wait is not None else now)
        if status >= 500 or status in (408, 409, 425):
            return _Trouble("server error", f"{status}: {said}")
        return _Trouble("refused", f"{status}: {said}", final=True)

    def _away(self, endpoint: _Endpoint, now: float) -> _Trouble:
        endpoint.fail(now, self._wait)
        since = [e.down_since for e in self._endpoints]
        # A server that is still busy with what it has may be too busy to take more.
        patience = max(self._patience, 2 * self._timeout)
        if all(moment is not None and now - moment > patience for moment in since):
            raise BackendError(
                f"{endpoint.url}: no server has answered for {patience:g} s; "
                "what is finished is kept, run the same again when it is back"
            )
        return _Trouble("no connection", "no server answers", counts=False)

    def _rate_limited(self, endpoint: _Endpoint, headers: httpx2.Headers, began: float, now: float) -> None:
        endpoint.slow_down(began, now)
        wait = _retry_after(headers)
        if wait is None:
            endpoint.pause(now + self._wait(1))
        elif wait > self._patience:
            raise BackendError(
                f"{endpoint.url}: asks to wait for {wait:.0f} s, longer than the patience of "
                f"{self._patience:g} s; what is finished is kept, run the same again then"
            )
        else:
            # Not all at the same moment, and none too early.
            endpoint.pause(now + wait + self._rng.uniform(0, min(1.0, 0.1 * wait)))

    def _bad_request(
        self,
        endpoint: _Endpoint,
        error: openai.APIStatusError,
        said: str,
        mode: Mode,
        without: frozenset[str],
    ) -> _Trouble:
        """A request that the server does not take: too long, or with a field that it does not know.

        Many requests may come back together; only the first of them changes how the endpoint is asked.
        """
        low = f"{error.code} {error.message}".lower()
        if error.code == "context_length_exceeded" or error.status_code == 413:
            return _Trouble("context too long", said, final=True)
        if "context length" in low or "context window" in low or "max_model_len" in low:
            return _Trouble("context too long", said, final=True)
        if error.code in ("content_filter", "content_policy_violation"):
            return _Trouble("refused", "the server refuses this content", final=True)
        structured = ("response_format", "json_schema", "structured", "guided", "grammar", "schema")
        if mode != "text" and any(word in low for word in structured):
            if mode == endpoint.mode:
                endpoint.mode = "json_object" if mode == "json_schema" else "text"
                self._report(f"{endpoint.url}: takes no {mode} ({said}); trying {endpoint.mode}")
            return _Trouble("refused", said, counts=False)
        for name in _DROPPABLE:
            if name not in without and (error.param == name or f"'{name}'" in low):
                if name not in endpoint.without:
                    endpoint.without.add(name)
                    self._report(f"{endpoint.url}: does not take '{name}'; going on without it")
                return _Trouble("refused", said, counts=False)
        return _Trouble("refused", f"{error.status_code}: {said}", final=True)

    def close(self) -> None:
        """Close the connections; see the protocol."""
        if self._closed:
            return
        self._closed = True

        async def leave() -> None:
            others = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
            await self._cancel(set(others))
            for endpoint in self._endpoints:
                await endpoint.client.close()

        self._run(leave())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _read_reply(reply: dict[str, Any], request: ChatRequest) -> tuple[str, str, tuple[int, int]]:
    """Text of a reply, why it ended, tokens read and written; estimated where the server does not tell."""
    choices = reply["choices"]
    usage = reply.get("usage") or {}
    text = (choices[0]["message"].get("content") or "") if choices else ""
    read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    tokens = (
        read if isinstance(read, int) else sum(estimate_tokens(m.content) for m in request.messages),
        written if isinstance(written, int) else estimate_tokens(text),
    )
    if not choices:
        raise _Trouble("empty answer", "a reply without choices", tokens=tokens)
    finish = str(choices[0].get("finish_reason"))
    if finish == "content_filter" or choices[0]["message"].get("refusal"):
        raise _Trouble("refused", "the server refuses this content", final=True, tokens=tokens)
    if not text:
        raise _Trouble("empty answer", "a reply without text", tokens=tokens)
    return str(text), finish, tokens


def _retry_after(headers: httpx2.Headers) -> float | None:
    """Seconds that a server asks to wait; None if it does not say."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            return max(0.0, float(value) / unit)
        except ValueError:
            pass
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time())
        except (ValueError, TypeError):
            continue
    return None
