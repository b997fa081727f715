"""A chat completion server on loopback that misbehaves as it is told. For tests only."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any

MODEL = "tiny"
Behaviour = Callable[[int, str], str]
"""Names what happens to the n-th request (from 0), given a digest of its messages."""

FAULTS = (
    "429", "429 now", "500", "503", "reset", "half reply", "stall", "cut", "prose", "fence", "no choices",
    "no text", "wrong schema", "not json", "html", "foreign",
)  # fmt: skip


def right_answer(messages: list[dict[str, str]]) -> str:
    """What a well-behaved model says to one of the prompts."""
    last = messages[-1]["content"]
    if last.endswith("write the analysis."):
        query = re.search(r"Query: (.*)", last)
        assert query is not None
        requirement = {
            "text": f"It names what '{query.group(1)}' asks for.",
            "facet": "entity",
            "critical": True,
            "disruptions": [
                {"kind": "entity shift", "instruction": "Name another one."},
                {"kind": "attribute shift", "instruction": "Tell another property."},
            ],
        }
        other = requirement | {"text": "It gives the year.", "facet": "constraint"}
        return json.dumps(
            {
                "core_need": query.group(1),
                "how_met": "It says so.",
                "answer_boundary": "Only the name.",
                "requirements": [requirement, other],
            }
        )
    if "Task two" in last:
        names = re.findall(r"^(negative_\d):", last, re.MULTILINE)
        answering = messages[1]["content"]
        draft = {"passage": 1, "change": "another one", "title": ""}
        shown = re.findall(r"^\[\d\] (.*)", last, re.MULTILINE) or [answering[:60]]
        texts = {name: f"{name} beside it: {shown[n % len(shown)]}" for n, name in enumerate(names)}
        return json.dumps({name: draft | {"text": text} for name, text in texts.items()})
    if "Write it anew" in last:
        passage = last.split("\n")[1]
        return json.dumps({"text": f"In other words: {passage}"})
    if "different queries that it answers" in last:
        passage = last.split("\n")[2]
        return json.dumps({"questions": [f"What is told of {' '.join(passage.split()[:9])}?"]})
    return json.dumps({"reason": "It says nothing of it.", "verdict": "related"})


class FaultServer:
    """The server, in a thread of its own.

    Args:
        behave: What happens to each request; everything is answered rightly by default.
        retry_after: Seconds in the Retry-After header of a 429.
        key: Key that is asked for; none if empty.
        refuses: Fields of a request that it answers with 400.
        context: Longest prompt in characters; more is answered with 400.
        max_model_len: What it tells of its context, in tokens.
        latency: Seconds until an answer.
        pool: Requests that it works on at a time; the others wait.
    """

    def __init__(
        self,
        behave: Behaviour = lambda number, digest: "right",
        *,
        retry_after: str = "0.05",
        key: str = "",
        refuses: frozenset[str] = frozenset(),
        context: int | None = None,
        max_model_len: int | None = None,
        latency: float = 0.0,
        pool: int = 1000,
    ) -> None:
        self._behave, self._retry_after, self._key = behave, retry_after, key
        self._refuses, self._context, self._latency = refuses, context, latency
        self._max_model_len, self._pool = max_model_len, pool
        self.happened: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()
        self.times: list[tuple[float, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = 0
        self._number = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> FaultServer:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def _start(self) -> asyncio.Server:
        self._gate = asyncio.Semaphore(self._pool)
        self._connections: set[asyncio.Task[None]] = set()
        self._readers: dict[asyncio.StreamWriter, asyncio.StreamReader] = {}
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self._readers[writer] = reader
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length.group(1))) if length else b""
                if not await self._reply(head.decode(), body, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            del self._readers[writer]
            writer.close()

    async def _reply(self, head: str, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False to end the connection."""
        if self._key and f"Bearer {self._key}" not in head:
            error = {
                "message": f"bad key in {head.split('Bearer ')[-1].split()[0]}",
                "code": "invalid_api_key",
            }
            await self._send(writer, 401, {"error": error})
            return True
        if head.startswith("GET"):
            entry = {"id": MODEL, "object": "model", "max_model_len": self._max_model_len}
            await self._send(writer, 200, {"object": "list", "data": [entry]})
            return True
        asked = json.loads(body)
        digest = hashlib.sha256(json.dumps(asked["messages"]).encode()).hexdigest()
        number, self._number = self._number, self._number + 1
        what = self._behave(number, digest)
        self.times.append((asyncio.get_running_loop().time(), what))
        if len(self.bodies) < 50:
            self.bodies.append(asked)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            async with self._gate:
                return await self._act(what, asked, digest, writer)
        finally:
            self.at_once -= 1

    async def _act(self, what: str, asked: dict[str, Any], digest: str, writer: asyncio.StreamWriter) -> bool:
        refused = sorted(self._refuses & set(asked))
        if refused:
            self.happened["400"] += 1
            error = {"message": f"Unrecognised field '{refused[0]}'", "param": refused[0]}
            await self._send(writer, 400, {"error": error})
            return True
        length = sum(len(m["content"]) for m in asked["messages"])
        if self._context is not None and length > self._context:
            self.happened["too long"] += 1
            error = {"message": f"maximum context length is {self._context}", "code": "400"}
            await self._send(writer, 400, {"error": error})
            return True
        self.happened[what] += 1
        if self._latency:
            await asyncio.sleep(self._latency)
        if what in ("429", "429 now"):
            header = f"Retry-After: {self._retry_after}\r\n" if what == "429" else ""
            await self._send(writer, 429, {"error": {"message": "slow down"}}, header)
            return True
        if what in ("500", "503"):
            await self._send(writer, int(what), {"error": {"message": "out of order"}})
            return True
        if what == "reset":
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if what == "stall":
            await self._readers[writer].read()  # until the client hangs up
            return False
        right = right_answer(asked["messages"])
        text, finish = right, "stop"
        if what == "cut":
            text, finish = right[: len(right) // 2], "length"
        elif what == "prose":
            text = f"Certainly! Here is what you asked for:\n\n{right}\n\nLet me know {{if}} you need more."
        elif what == "fence":
            text = f"<think>Well, {{maybe}} so.</think>```json\n{right}\n```"
        elif what == "no text":
            text = ""
        elif what == "wrong schema":
            text = json.dumps({"answer": 42})
        elif what == "not json":
            text = "I would rather not."
        if what in ("right", "prose", "fence"):
            self.paid[digest] += 1
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
        reply: Any = {"id": "x", "object": "chat.completion", "model": MODEL, "usage": usage}
        reply["choices"] = [] if what == "no choices" else [choice]
        if what == "html":
            await self._send(writer, 200, "<html>Bad gateway</html>")
        elif what == "foreign":
            await self._send(writer, 200, {"hello": "world"})
        elif what == "half reply":
            data = json.dumps(reply).encode()
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data[:40])
            await writer.drain()
            return False
        else:
            await self._send(writer, 200, reply)
        return True

    async def _send(self, writer: asyncio.StreamWriter, status: int, content: Any, header: str = "") -> None:
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        kind = "text/html" if isinstance(content, str) else "application/json"
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\n{header}Content-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        await writer.drain()


def half_fail(seed: int = 0, faults: tuple[str, ...] = FAULTS) -> Behaviour:
    """Half of the requests fail: which ones is drawn by messages and attempt, how goes round in turn.

    Neither the share of failures nor which faults happen depends on the order in which requests arrive.
    """
    attempts: Counter[str] = Counter()
    turns = itertools.cycle(faults)

    def behave(number: int, digest: str) -> str:
        attempts[digest] += 1
        rng = random.Random(f"{seed}/{attempts[digest]}/{digest}")
        return next(turns) if rng.random() < 0.5 else "right"

    return behave
