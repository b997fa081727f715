"""Where a service keeps the memories of users: in its process, or in what several share, a file or Redis."""

from __future__ import annotations

import json
import sqlite3
from collections import OrderedDict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, local
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from common.errors import BackendError, ConfigError
from common.files import fingerprint
from common.training.checkpoint import best_checkpoint
from lain.backbones import Memory
from lain.backbones.dien import States
from lain.ops.spans import Spans
from lain.serving.scorer import UserMemory


@runtime_checkable
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


class FileMemories:
    """Memories in a SQLite file, which the workers of one machine share and which outlives them.

    A memory that :meth:`put` has returned from is read by all workers, and stays when they are killed (not
    when the power fails: nothing waits for the disk). The oldest ones make room.

    Args:
        file: The file; it is made where it is not there.
        run: What tells the run's weights from all others, whose memories mean nothing to it.
        most_bytes: Bytes that all memories may take.

    Raises:
        ConfigError: It cannot be opened, or is another kind of file.
        ValueError: ``most_bytes`` is not positive.
    """

    def __init__(self, file: Path, run: str, *, most_bytes: int = 1 << 30) -> None:
        if most_bytes < 1:
            raise ValueError(f"most_bytes must be at least 1, got {most_bytes}")
        self._file, self._run, self._most_bytes, self._own = file, run, most_bytes, local()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._open()) as connection, connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS memories (number INTEGER PRIMARY KEY, run TEXT, user TEXT, "
                    "bytes INTEGER, content BLOB, UNIQUE (run, user))"
                )
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"store: {file} cannot be used ({error})") from None

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._file, timeout=30)

    @property
    def _connection(self) -> sqlite3.Connection:
        """A connection for each thread: SQLite's own locks keep threads and processes apart."""
        if not hasattr(self._own, "connection"):
            self._own.connection = self._open()
            self._own.connection.execute("PRAGMA synchronous = OFF")
        found: sqlite3.Connection = self._own.connection
        return found

    def get(self, user: str) -> UserMemory | None:
        """The memory of a user, or None; what cannot be read counts as absent."""
        asked = "SELECT content FROM memories WHERE run = ? AND user = ?"
        try:
            row = self._connection.execute(asked, (self._run, user)).fetchone()
        except sqlite3.Error as error:
            raise BackendError(f"store: {self._file}: {error}") from None
        return None if row is None else _load_or_none(row[0])

    def put(self, user: str, memory: UserMemory) -> None:
        """Keep the memory of a user; the oldest others make room."""
        content = dump_memory(memory)
        try:
            with self._connection as connection:
                connection.execute(
                    "INSERT OR REPLACE INTO memories (run, user, bytes, content) VALUES (?, ?, ?, ?)",
                    (self._run, user, len(content), content),
                )
                taken = connection.execute("SELECT coalesce(sum(bytes), 0) FROM memories").fetchone()[0]
                while taken > self._most_bytes:
                    oldest, freed = connection.execute(
                        "SELECT number, bytes FROM memories ORDER BY number LIMIT 1"
                    ).fetchone()
                    connection.execute("DELETE FROM memories WHERE number = ?", (oldest,))
                    taken -= freed
        except sqlite3.Error as error:
            raise BackendError(f"store: {self._file}: {error}") from None

    def count(self) -> int:
        """Number of users that are kept."""
        asked = "SELECT count(*) FROM memories WHERE run = ?"
        return int(self._connection.execute(asked, (self._run,)).fetchone()[0])


class RedisMemories:
    """Memories in Redis, which workers of any machine share and which outlive them.

    Args:
        url: Address, as ``redis://127.0.0.1:6379/0``.
        run: What tells the run's weights from all others, whose memories mean nothing to it.
        seconds: How long a memory is kept.

    Raises:
        ConfigError: The package ``redis`` is not installed, or the address is none.
        BackendError: No Redis answers there.
    """

    def __init__(self, url: str, run: str, *, seconds: int = 86_400) -> None:
        try:
            import redis
        except ImportError:
            raise ConfigError(
                f"store: {url} needs the package redis; pip install 'causalneg-lain[serve]'"
            ) from None
        self._url, self._prefix, self._seconds, self._error = url, f"lain:{run}:", seconds, redis.RedisError
        try:
            self._redis = redis.Redis.from_url(url)
        except ValueError as error:
            raise ConfigError(f"store: {url}: {error}") from None
        self._ask(self._redis.ping)

    def get(self, user: str) -> UserMemory | None:
        """The memory of a user, or None; what cannot be read counts as absent."""
        content = self._ask(lambda: self._redis.get(self._prefix + user))
        return _load_or_none(content) if isinstance(content, bytes) else None

    def put(self, user: str, memory: UserMemory) -> None:
        """Keep the memory of a user for a while."""
        content = dump_memory(memory)
        self._ask(lambda: self._redis.set(self._prefix + user, content, ex=self._seconds))

    def count(self) -> int:
        """Number of users that are kept."""
        found = self._ask(lambda: list(self._redis.scan_iter(match=f"{self._prefix}*", count=1000)))
        return len(found)

    def _ask(self, request: Callable[[], Any]) -> Any:
        try:
            return request()
        except self._error as error:
            raise BackendError(f"store: {self._url} does not answer ({error})") from None


def _load_or_none(content: bytes) -> UserMemory | None:
    try:
        return load_memory(content)
    except (ValueError, KeyError, SafetensorError):
        return None


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
        where: ``memory``, the address of a Redis, or a file.
        run: The run folder.
        most_bytes: Bytes of a store in memory or in a file.

    Raises:
        ConfigError: It is none of these, or cannot be used.
        BackendError: The Redis does not answer.
    """
    if where == "memory":
        return LocalMemories(most_bytes)
    weights = fingerprint([best_checkpoint(run)])
    if where.startswith(("redis://", "rediss://", "unix://")):
        return RedisMemories(where, weights)
    if where.endswith((".sqlite", ".db")):
        return FileMemories(Path(where), weights, most_bytes=most_bytes)
    raise ConfigError(
        f"store: must be memory, a file (NAME.sqlite) or a Redis (redis://HOST:PORT/0), got '{where}'"
    )
