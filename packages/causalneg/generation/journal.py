"""What is finished and paid for, in one SQLite file beside a set: nothing in it is ever asked again.

A *ledger* is the part of a journal whose answers may be mixed: those of one identity (writer or judge,
backend, model, prompt version, schema, seed, settings). Another identity begins another ledger in the same
file; going back to the first one finds its answers.

Every finished call is one row, committed the moment it is finished (write-ahead log), and forced to the disk
every few seconds: a killed process loses what was on its way, a power cut the last few seconds. Every
finished job (a pair, a rewritten passage, a judged one) is one row too, so that progress is counted by an
index; a job without calls keeps its result there.

Over 400 lines: schema, records and every query of the database stand in one place.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from causalneg.generation.totals import Totals, count, damaged, read_identity
from common.errors import DataError, describe_os_error

Step = Literal["analysis", "negatives", "rewrite", "judge", "question"]
"""What a call or a job is for."""

Role = Literal["writer", "judge"]
"""Whose ledger it is."""

APPLICATION = 0x636E6567
"""Says in the head of the file that it is a journal of this kind; ``user_version`` counts its layout."""

_VERSION = 1
_SYNC_RECORDS = 64
_SYNC_SECONDS = 5.0
_TABLES = """
CREATE TABLE ledgers (id INTEGER PRIMARY KEY, digest TEXT UNIQUE NOT NULL, role TEXT NOT NULL,
    identity TEXT NOT NULL) STRICT;
CREATE TABLE runs (id INTEGER PRIMARY KEY, ledger INTEGER NOT NULL, pairs INTEGER NOT NULL,
    done_before INTEGER NOT NULL, prompt_price REAL NOT NULL, completion_price REAL NOT NULL,
    began REAL NOT NULL) STRICT;
CREATE TABLE calls (id INTEGER PRIMARY KEY, ledger INTEGER NOT NULL, key BLOB NOT NULL, step TEXT NOT NULL,
    unit TEXT NOT NULL, failure TEXT NOT NULL, detail TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, attempts INTEGER NOT NULL, repaired INTEGER NOT NULL,
    value TEXT) STRICT;
CREATE INDEX calls_by_key ON calls (ledger, key);
CREATE INDEX calls_counted ON calls
    (ledger, step, failure, attempts, repaired, prompt_tokens, completion_tokens);
CREATE TABLE jobs (ledger INTEGER NOT NULL, step TEXT NOT NULL, key BLOB NOT NULL, unit TEXT NOT NULL,
    failure TEXT NOT NULL, time REAL NOT NULL, value TEXT, PRIMARY KEY (ledger, step, key)) STRICT;
CREATE INDEX jobs_counted ON jobs (ledger, step, failure, time);
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished call.

    Args:
        key: Digest of what was asked, in hexadecimal digits.
        step: What for.
        unit: Pair or passage that it belongs to.
        value: The answer; None if it failed.
        failure: Kind of failure; empty if it did not fail.
        detail: What happened.
        prompt_tokens: Tokens read.
        completion_tokens: Tokens written.
        attempts: How often it was asked.
        repaired: Whether the answer was not the JSON that was asked for.
    """

    key: str
    step: Step
    unit: str
    value: dict[str, Any] | None = None
    failure: str = ""
    detail: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    attempts: int = 1
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished job.

    Args:
        key: Digest of what it was for, in hexadecimal digits.
        step: What for.
        unit: Pair or passage that it belongs to.
        failure: Kind of failure; empty if it did not fail.
        value: What it found, if no call tells; None otherwise.
    """

    key: str
    step: Step
    unit: str
    failure: str = ""
    value: Any = None


class Journal:
    """A journal, open for one process.

    Args:
        path: The file; made if there is none. None keeps everything in memory.
        report: Gets one line about everything that a user should know: a new ledger.

    Raises:
        DataError: Another process writes to it, the file is no journal, or it cannot be opened.
    """

    def __init__(self, path: Path | None = None, *, report: Callable[[str], None] | None = None) -> None:
        self.path = path
        self.ledgers: list[Ledger] = []
        self._report = report or (lambda line: None)
        self._pending, self._synced = 0, time.monotonic()
        self._lock = -1 if path is None else _lock(path)
        try:
            with self.said():
                self.database = sqlite3.connect(path or ":memory:", isolation_level=None)
                if path is not None:
                    check_layout(self.database, path, empty=True)
                    self.database.execute("PRAGMA journal_mode = WAL")
                    self.database.execute("PRAGMA synchronous = NORMAL")
                if not self.database.execute("PRAGMA user_version").fetchone()[0]:
                    self.database.executescript(
                        f"BEGIN;{_TABLES}PRAGMA application_id = {APPLICATION};"
                        f"PRAGMA user_version = {_VERSION};COMMIT"
                    )
        except BaseException:
            self._unlock()
            raise

    def ledger(self, role: Role, identity: Mapping[str, str]) -> Ledger:
        """The part of the journal that has the answers of an identity.

        Args:
            role: Whose it is.
            identity: What decides the answers.

        Raises:
            DataError: The journal is damaged, or cannot be written.
        """
        own = json.dumps(dict(identity), sort_keys=True)
        digest = hashlib.sha256(f"{role}\0{own}".encode()).hexdigest()[:16]
        with self.said():
            rows = self.database.execute(
                "SELECT id, digest, identity FROM ledgers WHERE role = ? ORDER BY id", (role,)
            ).fetchall()
            known = [number for number, other, _ in rows if other == digest]
            if not known and rows:
                changed = _difference(read_identity(rows[-1][2], self.path), identity)
                self._report(f"{self.path}: {changed}: a new generation set begins")
            if not known:
                cursor = self.database.execute(
                    "INSERT INTO ledgers (digest, role, identity) VALUES (?, ?, ?)", (digest, role, own)
                )
                known = [int(cursor.lastrowid or 0)]
        ledger = Ledger(self, known[0])
        self.ledgers.append(ledger)
        return ledger

    @property
    def spent(self) -> tuple[int, int]:
        """Tokens read and written of all ledgers that were opened, earlier runs included."""
        prompt = sum(ledger.prompt_tokens for ledger in self.ledgers)
        return prompt, sum(ledger.completion_tokens for ledger in self.ledgers)

    @contextmanager
    def said(self) -> Iterator[None]:
        """Say in one line what SQLite finds wrong."""
        try:
            yield
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", "")
            if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
                raise DataError(
                    f"{self.path}: {error}; what is finished so far is kept, make room and run the same again"
                ) from error
            raise damaged(self.path, str(error)) from error

    def wrote(self) -> None:
        """Force to the disk what was written, now and then."""
        self._pending += 1
        if self._pending >= _SYNC_RECORDS or time.monotonic() - self._synced >= _SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Force everything to the disk.

        Raises:
            DataError: The disk is full or gone.
        """
        with self.said():
            self.database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        self._pending, self._synced = 0, time.monotonic()

    def close(self) -> None:
        """Force everything to the disk and let the next process in."""
        try:
            with self.said():
                self.database.close()
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self._lock >= 0 and self.path is not None:
            _lock_path(self.path).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Ledger:
    """The answers of one identity; made by :meth:`Journal.ledger`.

    Args:
        journal: Where it is.
        number: Its number there.
    """

    def __init__(self, journal: Journal, number: int) -> None:
        self.journal, self._number = journal, number
        totals = self.totals()
        self.prompt_tokens, self.completion_tokens = totals.prompt_tokens, totals.completion_tokens
        self.before = totals.finished
        """Pairs that were finished when it was opened."""

    def begin(self, pairs: int, prices: tuple[float, float] = (0.0, 0.0)) -> None:
        """Note that a run begins, for those who look at the progress.

        Args:
            pairs: Pairs that it is for, those already done included.
            prices: Prices of a million tokens read and of a million written.
        """
        self._write(
            "INSERT INTO runs (ledger, pairs, done_before, prompt_price, completion_price, began) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (self._number, pairs, self.before, *prices, time.time()),
        )
        self.journal.sync()

    def get(self, key: str) -> Answer | None:
        """What is known of a call; the last word if it was made more than once.

        Args:
            key: Digest of what is asked.

        Raises:
            DataError: The row is damaged.
        """
        with self.journal.said():
            row = self.journal.database.execute(
                "SELECT step, unit, value, failure, detail, prompt_tokens, completion_tokens, attempts, "
                "repaired FROM calls WHERE ledger = ? AND key = ? ORDER BY id DESC LIMIT 1",
                (self._number, bytes.fromhex(key)),
            ).fetchone()
        if row is None:
            return None
        step, unit, value, failure, detail, read, written, attempts, repaired = row
        content = None if failure else self._json(value, f"the answer to {step} of '{unit}'")
        return Answer(key, step, unit, content, failure, detail, read, written, attempts, bool(repaired))

    def add(self, answer: Answer) -> None:
        """Write a finished call down.

        Args:
            answer: The call.

        Raises:
            DataError: The disk is full or gone; the journal stays whole.
        """
        value = None if answer.failure else json.dumps(answer.value, ensure_ascii=False)
        self._write(
            "INSERT INTO calls (ledger, key, step, unit, failure, detail, prompt_tokens, completion_tokens, "
            "attempts, repaired, value) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self._number,
                bytes.fromhex(answer.key),
                answer.step,
                answer.unit,
                answer.failure,
                answer.detail,
                answer.prompt_tokens,
                answer.completion_tokens,
                answer.attempts,
                int(answer.repaired),
                value,
            ),
        )
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens

    def finished(self, step: Step, key: str) -> Finished | None:
        """What is known of a job.

        Args:
            step: What for.
            key: Digest of what it is for.

        Raises:
            DataError: The row is damaged.
        """
        with self.journal.said():
            row = self.journal.database.execute(
                "SELECT unit, failure, value FROM jobs WHERE ledger = ? AND step = ? AND key = ?",
                (self._number, step, bytes.fromhex(key)),
            ).fetchone()
        if row is None:
            return None
        unit, failure, value = row
        content = None if value is None else self._json(value, f"the result of {step} of '{unit}'")
        return Finished(key, step, unit, failure, content)

    def finish(self, job: Finished) -> None:
        """Write a finished job down; one that was there gives way.

        Args:
            job: The job.

        Raises:
            DataError: The disk is full or gone; the journal stays whole.
        """
        value = None if job.value is None else json.dumps(job.value, ensure_ascii=False)
        self._write(
            "INSERT OR REPLACE INTO jobs (ledger, step, key, unit, failure, time, value) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (self._number, job.step, bytes.fromhex(job.key), job.unit, job.failure, time.time(), value),
        )

    def totals(self) -> Totals:
        """What it amounts to so far."""
        with self.journal.said():
            return count(self.journal.database, self._number, self.journal.path)

    def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        with self.journal.said():
            self.journal.database.execute(statement, values)
        self.journal.wrote()

    def _json(self, text: Any, what: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, TypeError):
            raise damaged(self.journal.path, f"{what} is no JSON") from None


def is_locked(path: Path) -> bool:
    """Whether a process is writing to a journal.

    Args:
        path: The journal.
    """
    try:
        with _lock_path(path).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _difference(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    changed = [
        f"{name} is {new.get(name, 'none')} and was {old.get(name, 'none')}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    return ", ".join(changed)


def _foreign(path: Path) -> DataError:
    return DataError(
        f"{path}: is no journal of generated negatives; move it away, or write to another output"
    )


def refuse_foreign(path: Path) -> None:
    """Refuse what is no SQLite file before SQLite touches it.

    Args:
        path: What may be a journal.

    Raises:
        DataError: It is something else.
    """
    if not path.exists():
        return
    if not path.is_file():
        raise DataError(f"{path}: is no file that a journal can be; write to another output")
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(b'{"set": '):
        raise DataError(
            f"{path}: is a journal of an earlier version, whose answers cannot be taken over; "
            "move it away, or write to another output"
        )
    if head and head != b"SQLite format 3\0":
        raise _foreign(path)


def check_layout(database: sqlite3.Connection, path: Path, *, empty: bool) -> None:
    """Refuse an SQLite file that is no journal.

    Args:
        database: The file.
        path: Where it is.
        empty: Whether a file without tables will do.

    Raises:
        DataError: It is something else.
    """
    application = database.execute("PRAGMA application_id").fetchone()[0]
    version = database.execute("PRAGMA user_version").fetchone()[0]
    tables = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if empty and not tables:
        return
    if application != APPLICATION or version != _VERSION:
        raise _foreign(path)


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _lock(path: Path) -> int:
    """Take the lock of a journal: a file of its own, for SQLite loses its locks where its file is closed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        refuse_foreign(path)
        while True:
            file = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(file), os.stat(_lock_path(path))):
                    return file
            except FileNotFoundError:
                pass  # whoever had it took it away just now
            except BaseException:
                os.close(file)
                raise
            os.close(file)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN) and error.filename is None:
            raise DataError(
                f"{path}: another process is writing to this journal; wait for it, or write to another output"
            ) from None
        raise DataError(f"journal {describe_os_error(error)}") from error
