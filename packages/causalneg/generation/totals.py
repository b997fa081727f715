"""What a ledger of a journal amounts to."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import DataError


@dataclass
class Totals:
    """What a ledger amounts to so far.

    Args:
        identity: What decides its texts.
        pairs: Pairs that its last run was started for; 0 if unknown.
        done: Pairs that have their negatives.
        failures: Pairs that failed, by kind.
        steps: Calls that were answered, by what they were for.
        asked_again: Answered calls that took more than one attempt.
        repaired: Answers that were not the JSON that was asked for.
        prompt_tokens: Tokens read, failed calls included.
        completion_tokens: Tokens written, failed calls included.
        prompt_price: Price of a million tokens read, as the last run had it.
        completion_price: Price of a million tokens written, as the last run had it.
        began: When the last run began, in seconds since 1970.
        latest: When the last pair was finished.
        done_before: Pairs that were done or failed when the last run began.
        running: Whether a process is writing to the journal now.
    """

    identity: dict[str, str] = field(default_factory=dict)
    pairs: int = 0
    done: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    asked_again: int = 0
    repaired: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_price: float = 0.0
    completion_price: float = 0.0
    began: float = 0.0
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
        seconds = self.latest - self.began
        return 60 * (self.finished - self.done_before) / seconds if seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds to go at this rate; None if nobody can say."""
        left = self.pairs - self.finished
        if left <= 0:
            return 0.0 if self.pairs else None
        return 60 * left / self.rate if self.rate > 0 else None


def damaged(path: Path | None, what: str) -> DataError:
    """The error of a journal that holds what it cannot hold.

    Args:
        path: The journal.
        what: What is wrong.
    """
    return DataError(f"{path}: the journal is damaged ({what}); move it away, or write to another output")


def count(database: sqlite3.Connection, number: int, path: Path | None) -> Totals:
    """What a ledger amounts to, counted by its indexes.

    Args:
        database: The journal.
        number: Number of the ledger.
        path: Where the journal is, for errors.
    """
    (identity,) = database.execute("SELECT identity FROM ledgers WHERE id = ?", (number,)).fetchone()
    totals = Totals(read_identity(identity, path), running=True)
    for step, failed, answers, again, repaired, read, written in database.execute(
        "SELECT step, failure <> '', count(*), sum(attempts > 1), sum(repaired), sum(prompt_tokens), "
        "sum(completion_tokens) FROM calls WHERE ledger = ? GROUP BY step, failure <> ''",
        (number,),
    ):
        totals.prompt_tokens += read
        totals.completion_tokens += written
        if not failed:
            totals.steps[step] += answers
            totals.asked_again += again
            totals.repaired += repaired
    for failure, count, latest in database.execute(
        "SELECT failure, count(*), max(time) FROM jobs WHERE ledger = ? AND step = 'negatives' "
        "GROUP BY failure",
        (number,),
    ):
        totals.latest = max(totals.latest, latest)
        if failure:
            totals.failures[failure] = count
        else:
            totals.done = count
    run = database.execute(
        "SELECT pairs, done_before, prompt_price, completion_price, began FROM runs WHERE ledger = ? "
        "ORDER BY id DESC LIMIT 1",
        (number,),
    ).fetchone()
    if run is not None:
        (totals.pairs, totals.done_before, totals.prompt_price, totals.completion_price, totals.began) = run
    return totals


def read_identity(text: str, path: Path | None) -> dict[str, str]:
    """An identity as it stands in a journal.

    Args:
        text: What stands there.
        path: Where the journal is, for errors.

    Raises:
        DataError: It is none.
    """
    try:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError
    except ValueError:
        raise damaged(path, "an identity is no JSON object") from None
    return {str(name): str(value) for name, value in found.items()}
