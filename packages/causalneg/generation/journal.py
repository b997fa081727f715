"""An append-only journal of finished calls: what is paid for is never asked again.

One JSON object a line. A generation set begins with a line that says what decides its texts (backend, model,
prompt version, schema, seed, settings); every finished call is one line that names its set. Lines are written
the moment a call is finished and forced to the disk in batches: a killed process loses what was on its way,
a power cut the last few seconds. A last line that was cut is taken off at the next start. Other settings
begin another set in the same file; going back to the old ones finds the old answers.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from common.errors import DataError, describe_os_error

Step = Literal["analysis", "negatives", "rewrite", "judge"]
"""What a call was for."""

_SYNC_RECORDS = 64
_SYNC_SECONDS = 5.0
_VALUES = (b', "value": ', b', "result": ')


@dataclass(frozen=True, slots=True)
class Record:
    """A finished call.

    Args:
        key: Digest of what was asked.
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


@dataclass
class Totals:
    """What a generation set amounts to so far.

    Args:
        settings: What decides its texts.
        pairs: Pairs that its last run was started for; 0 if unknown.
        done: Pairs that have their negatives.
        analysed: Pairs that have their analysis and no more.
        failures: Pairs that failed, by kind.
        steps: Finished calls by what they were for.
        asked_again: Finished calls that took more than one attempt.
        repaired: Finished calls whose answer was not the JSON that was asked for.
        prompt_tokens: Tokens read, failed calls included.
        completion_tokens: Tokens written, failed calls included.
        prompt_price: Price of a million tokens read, as the last run had it.
        completion_price: Price of a million tokens written, as the last run had it.
        started: When the last run began, in seconds since 1970.
        latest: When the last call was finished.
        done_before: Pairs that were done or failed when the last run began.
        running: Whether a process is writing to the journal now.
    """

    settings: dict[str, str] = field(default_factory=dict)
    pairs: int = 0
    done: int = 0
    analysed: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    asked_again: int = 0
    repaired: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_price: float = 0.0
    completion_price: float = 0.0
    started: float = 0.0
    latest: float = 0.0
    done_before: int = 0
    running: bool = False

    @property
    def tokens(self) -> int:
        """Tokens read and written."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def finished(self) -> int:
        """Pairs that are done or failed."""
        return self.done + self.failures.total()

    @property
    def rate(self) -> float:
        """Pairs per minute of the last run; 0 if it has finished none."""
        seconds = self.latest - self.started
        return 60 * (self.finished - self.done_before) / seconds if seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds to go at this rate; None if nobody can say."""
        left = self.pairs - self.finished
        if left <= 0:
            return 0.0 if self.pairs else None
        return 60 * left / self.rate if self.rate > 0 else None


class _Count:
    """Adds calls up, in their order."""

    def __init__(self, totals: Totals) -> None:
        self.totals = totals
        self._states: dict[str, str] = {}

    def add(self, head: Mapping[str, Any]) -> None:
        """A finished call; the last call of a pair says where the pair stands."""
        totals, failure = self.totals, head.get("failure", "")
        # A writer without a model has no calls, and tells its pairs and failures in its own words.
        unit = head["unit"] if "unit" in head else head["pair"]
        failure = sys.intern(failure["reason"] if isinstance(failure, dict) else failure)
        totals.prompt_tokens += head.get("prompt_tokens", 0)
        totals.completion_tokens += head.get("completion_tokens", 0)
        totals.latest = head.get("time", 0.0)
        totals.steps[head["step"]] += not failure
        totals.asked_again += not failure and head.get("attempts", 1) > 1
        totals.repaired += head.get("repaired", False)
        if head["step"] not in ("analysis", "negatives"):
            return
        before = self._states.get(unit)
        self._states[unit] = after = failure or sys.intern(head["step"])
        for state, change in ((before, -1), (after, 1)):
            if state == "negatives":
                totals.done += change
            elif state == "analysis":
                totals.analysed += change
            elif state is not None:
                totals.failures[state] += change
        totals.failures += Counter()  # drops the zeros

    def begin(self, head: Mapping[str, Any]) -> None:
        """A run that begins."""
        totals = self.totals
        totals.pairs, totals.started, totals.latest = head["run"], head["time"], head["time"]
        totals.done_before = totals.finished
        totals.prompt_price, totals.completion_price = head.get("prices", (0.0, 0.0))


def set_id(settings: Mapping[str, str]) -> str:
    """Short name of a generation set.

    Args:
        settings: What decides its texts.
    """
    return hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode()).hexdigest()[:12]


class Journal:
    """The journal of one generation set, open for one process.

    Args:
        path: The file; made if there is none.
        settings: What decides the texts: texts of equal settings may be mixed.
        report: Gets one line about everything that a user should know: a new set, a repaired line.

    Raises:
        DataError: Another process writes to it, the file is no journal, or it cannot be opened.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, str], *, report: Callable[[str], None] | None = None
    ) -> None:
        self.path, self.set, self.settings = path, set_id(settings), dict(settings)
        self._report = report or (lambda line: None)
        self._index: dict[bytes, int] = {}
        self._unsynced, self._synced = 0, time.monotonic()
        self.totals = Totals(settings=self.settings, running=True)
        self._count = _Count(self.totals)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise DataError(f"journal {describe_os_error(error)}") from error
        try:
            self._lock()
            self._load()
        except BaseException:
            os.close(self._file)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise DataError(f"{self.path}: cannot be locked ({describe_os_error(error)})") from error
            raise _taken(self.path) from None

    def _load(self) -> None:
        others: dict[str, dict[str, str]] = {}
        known = False
        self._end = _repair(self._file, self.path, self._report)
        for offset, head in _heads(self.path):
            if "about" in head:
                known |= head["set"] == self.set
                others[head["set"]] = head["about"]
            elif head["set"] == self.set and "key" in head:
                self._index[bytes.fromhex(head["key"])] = offset
                self._count.add(head)
        others.pop(self.set, None)
        if not known:
            if others:
                last = list(others.values())[-1]
                self._report(f"{self.path}: {_difference(last, self.settings)}: a new generation set begins")
            self._write({"set": self.set, "about": self.settings, "time": _now()})

    def begin(self, pairs: int, prices: tuple[float, float] = (0.0, 0.0)) -> None:
        """Note that a run begins, for those who look at the progress.

        Args:
            pairs: Pairs that it is for, those already done included.
            prices: Prices of a million tokens read and of a million written.
        """
        head: dict[str, Any] = {"set": self.set, "run": pairs, "time": _now()}
        if any(prices):
            head["prices"] = list(prices)
        self._write(head)
        self._count.begin(head)
        self.sync()

    def get(self, key: str) -> Record | None:
        """What is known of a call; the last word if it was made more than once.

        Args:
            key: Digest of what is asked.

        Raises:
            DataError: The line in the journal is damaged.
        """
        offset = self._index.get(bytes.fromhex(key))
        if offset is None:
            return None
        line = _read_line(self._file, offset)
        try:
            found = json.loads(line)
            return Record(
                key=key,
                step=found["step"],
                unit=found["unit"],
                value=found.get("value"),
                failure=found.get("failure", ""),
                detail=found.get("detail", ""),
                prompt_tokens=found["prompt_tokens"],
                completion_tokens=found["completion_tokens"],
                attempts=found["attempts"],
                repaired=found["repaired"],
            )
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{self.path}: the line at byte {offset} is damaged; delete that line and run again"
            ) from None

    def add(self, record: Record) -> None:
        """Write a finished call down.

        Args:
            record: The call.

        Raises:
            DataError: The disk is full or gone; the journal stays whole.
        """
        head: dict[str, Any] = {
            "set": self.set,
            "key": record.key,
            "step": record.step,
            "unit": record.unit,
            "time": _now(),
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.completion_tokens,
            "attempts": record.attempts,
            "repaired": record.repaired,
        }
        if record.failure:
            head |= {"failure": record.failure, "detail": record.detail}
        # The answer comes last, so that whoever counts need not parse it.
        offset = self._write(head if record.failure else head | {"value": record.value})
        self._index[bytes.fromhex(record.key)] = offset
        self._count.add(head)
        self._unsynced += 1
        if self._unsynced >= _SYNC_RECORDS or time.monotonic() - self._synced >= _SYNC_SECONDS:
            self.sync()

    def _write(self, content: dict[str, Any]) -> int:
        line = json.dumps(content, ensure_ascii=False).encode() + b"\n"
        offset, written = self._end, 0
        try:
            while written < len(line):
                written += os.pwrite(self._file, line[written:], offset + written)
        except OSError as error:
            os.ftruncate(self._file, offset)
            raise self._no_room(error) from error
        self._end = offset + len(line)
        return offset

    def sync(self) -> None:
        """Force what is written to the disk.

        Raises:
            DataError: The disk is full or gone.
        """
        try:
            os.fsync(self._file)
        except OSError as error:
            raise self._no_room(error) from error
        self._unsynced, self._synced = 0, time.monotonic()

    def _no_room(self, error: OSError) -> DataError:
        return DataError(
            f"{self.path}: {describe_os_error(error)}; "
            "what is finished so far is kept, make room and run the same again"
        )

    def close(self) -> None:
        """Force everything to the disk and let the next process in."""
        if self._file >= 0:
            try:
                os.fsync(self._file)
            finally:
                os.close(self._file)
                self._file = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_totals(path: Path) -> Totals:
    """What the generation set that was worked on last amounts to, while a process may be at work on it.

    Args:
        path: The journal.

    Raises:
        DataError: There is no such file, or it is no journal.
    """
    counts: dict[str, _Count] = {}
    latest = ""
    try:
        for _, head in _heads(path):
            latest = head["set"]
            if "about" in head:
                about = {name: str(value) for name, value in head["about"].items()}
                counts[latest] = _Count(Totals(settings=about))
            elif "run" in head:
                counts[latest].begin(head)
            elif "step" in head:
                counts[latest].add(head)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no journal; nothing has been generated here yet") from None
    except KeyError:
        raise DataError(f"{path}: is not a journal of generated negatives") from None
    if latest not in counts:
        raise DataError(f"{path}: is empty; nothing has been generated here yet")
    totals = counts[latest].totals
    totals.running = _is_locked(path)
    return totals


def refuse_if_open(path: Path) -> None:
    """Refuse a journal that another process writes to, before anything costly is begun.

    Args:
        path: The journal; there need not be one.

    Raises:
        DataError: Another process writes to it.
    """
    if path.is_file() and _is_locked(path):
        raise _taken(path)


def _taken(path: Path) -> DataError:
    return DataError(
        f"{path}: another process is writing to this journal; wait for it, or write to another output"
    )


def _is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _now() -> float:
    return round(time.time(), 3)


def _repair(file: int, path: Path, report: Callable[[str], None]) -> int:
    """Take a cut last line off; where the journal ends afterwards."""
    size = os.fstat(file).st_size
    end = size
    while end > 0:
        start = max(0, end - (1 << 16))
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end < size:
        os.ftruncate(file, end)
        report(f"{path}: the last line was cut off, {size - end} bytes of it are taken away")
    return end


def _heads(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a journal without the answers, and where each begins; a cut last line is left out."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            head = line
            for value in _VALUES:
                head, found, _ = head.partition(value)
                head += b"}" if found else b""
            try:
                content = json.loads(head)
                if not isinstance(content, dict) or "set" not in content:
                    raise ValueError
            except ValueError:
                raise DataError(
                    f"{path}:{number}: is no line of a journal of generated negatives; "
                    "delete that line, or write to another output"
                ) from None
            yield offset, content
            offset += len(line)


def _read_line(file: int, offset: int) -> bytes:
    size, line = 1 << 13, b""
    while b"\n" not in line:
        part = os.pread(file, size, offset + len(line))
        if not part:
            break
        line += part
        size *= 4
    return line.partition(b"\n")[0]


def _difference(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    changed = [
        f"{name} is {new.get(name, 'none')} and was {old.get(name, 'none')}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    return ", ".join(changed)
