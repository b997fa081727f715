"""Where a service keeps the memories of users: in its process, or in Redis beside several processes."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from common.errors import ConfigError
from common.files import fingerprint
from common.training.checkpoint import best_checkpoint
from lain.backbones import Memory
from lain.backbones.dien import States
from lain.ops.spans import Spans
from lain.serving.scorer import UserMemory


class Memories(Protocol):
    """A store of memories by user; may forget any of them at any time."""

    def get(self, user: str) -> UserMemory | None:
        """The memory of a user, or None."""

    def put(self, user: str, memory: UserMemory) -> None:
        """Keep the memory of a user."""

    def count(self) -> int:
        """Number of users that are kept."""


@dataclass(eq=False)
class LocalMemories:
    """Memories in this process; the ones not asked for the longest make room.

    Args:
        most_bytes: Bytes that all of them may take.

    Raises:
        ValueError: ``most_bytes`` is not positive.
    """

    most_bytes: int = 1 << 30
    _kept: OrderedDict[str, UserMemory] = field(default_factory=OrderedDict, init=False)
    _bytes: int = field(default=0, init=False)
    _lock: Any = field(default_factory=Lock, init=False)

    def __post_init__(self) -> None:
        """Check the bound."""
        if self.most_bytes < 1:
            raise ValueError(f"most_bytes must be at least 1, got {self.most_bytes}")

    def get(self, user: str) -> UserMemory | None:
        """The memory of a user, or None."""
        with self._lock:
            found = self._kept.get(user)
            if found is not None:
                self._kept.move_to_end(user)
            return found

    def put(self, user: str, memory: UserMemory) -> None:
        """Keep the memory of a user, unless it alone is larger than the bound."""
        with self._lock:
            before = self._kept.pop(user, None)
            self._bytes -= before.nbytes if before is not None else 0
            if memory.nbytes > self.most_bytes:
                return
            self._kept[user] = memory
            self._bytes += memory.nbytes
            while self._bytes > self.most_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= oldest.nbytes

    def count(self) -> int:
        """Number of users that are kept."""
        return len(self._kept)


class RedisMemories:
    """Memories in Redis, which all workers share and which outlive them.

    Args:
        url: Address, as ``redis://127.0.0.1:6379/0``.
        run: What tells the run's weights from all others, whose memories mean nothing to it.
        seconds: How long a memory is kept.

    Raises:
        ConfigError: The package ``redis`` is not installed.
    """

    def __init__(self, url: str, run: str, *, seconds: int = 86_400) -> None:
        try:
            import redis
        except ImportError:
            raise ConfigError(f"store: {url} needs the package redis; pip install redis") from None
        self._redis, self._prefix, self._seconds = redis.Redis.from_url(url), f"lain:{run}:", seconds

    def get(self, user: str) -> UserMemory | None:
        """The memory of a user, or None; what cannot be read counts as absent."""
        content = self._redis.get(self._prefix + user)
        try:
            return load_memory(content) if isinstance(content, bytes) else None
        except (ValueError, KeyError, SafetensorError):
            return None

    def put(self, user: str, memory: UserMemory) -> None:
        """Keep the memory of a user for a while."""
        self._redis.set(self._prefix + user, dump_memory(memory), ex=self._seconds)

    def count(self) -> int:
        """Number of users that are kept."""
        return sum(1 for _ in self._redis.scan_iter(match=f"{self._prefix}*", count=1000))


def dump_memory(memory: UserMemory) -> bytes:
    """A memory as safetensors behind a line of JSON."""
    inner = memory.memory
    about = {"length": memory.length, "prompts": inner.prompts if isinstance(inner, States) else None}
    tensors = {f"rows.{name}": rows for name, rows in inner.rows.items()}
    tensors |= {"spans.offsets": inner.spans.offsets, "spans.index": inner.spans.index}
    tensors |= {f"user.{name}": torch.as_tensor(value) for name, value in memory.features.items()}
    return json.dumps(about).encode() + b"\n" + save({n: t.contiguous().clone() for n, t in tensors.items()})


def load_memory(content: bytes) -> UserMemory:
    """What :func:`dump_memory` wrote.

    Raises:
        ValueError, KeyError, SafetensorError: It is not that.
    """
    line, _, rest = content.partition(b"\n")
    about, tensors = json.loads(line), load(rest)
    parts: dict[str, dict[str, torch.Tensor]] = {"rows": {}, "spans": {}, "user": {}}
    for name, tensor in tensors.items():
        part, _, key = name.partition(".")
        parts[part][key] = tensor
    spans = Spans(parts["spans"]["offsets"], parts["spans"]["index"])
    prompts = about["prompts"]
    memory = Memory(spans, parts["rows"])
    if prompts is not None:
        memory = States(spans, parts["rows"], prompts, None)
    features = {name: tensor.numpy() for name, tensor in parts["user"].items()}
    return UserMemory(memory, about["length"], features)


def open_memories(where: str, run: Path, *, most_bytes: int) -> Memories:
    """The store that a command line names.

    Args:
        where: ``memory``, or the address of a Redis.
        run: The run folder.
        most_bytes: Bytes of a store in memory.

    Raises:
        ConfigError: It is neither.
    """
    if where == "memory":
        return LocalMemories(most_bytes)
    if where.startswith(("redis://", "rediss://", "unix://")):
        return RedisMemories(where, fingerprint([best_checkpoint(run)]))
    raise ConfigError(f"store: must be memory or the address of a Redis (redis://HOST:PORT/0), got '{where}'")
