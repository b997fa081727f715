"""Mistakes a user can repair: one clear line each, exit code 2, no traceback."""

from __future__ import annotations

import difflib
import errno
import signal
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can repair; holds one line for each mistake found.

    Args:
        messages: What is wrong, where, and what to do; one line each.

    Raises:
        ValueError: There is no message.
    """

    messages: tuple[str, ...]

    def __init__(self, *messages: str) -> None:
        if not messages:
            raise ValueError(f"{type(self).__name__} needs at least one message")
        super().__init__(*messages)
        self.messages = messages

    def __str__(self) -> str:
        """All messages, one per line."""
        return "\n".join(self.messages)

    @classmethod
    def raise_if(cls, messages: Iterable[str]) -> None:
        """Raise one error that holds every message, or nothing when there is none.

        Args:
            messages: The mistakes that were found together.
        """
        found = tuple(messages)
        if found:
            raise cls(*found)


class ConfigError(UserError):
    """A setting is unknown, missing, of the wrong type or out of range."""


class DataError(UserError):
    """A file or array does not hold what it should."""


class BackendError(UserError):
    """Something outside this program (a device, a server, a library) is missing or refused."""


class DivergedError(UserError):
    """A training's loss, weights or scores are not finite any more."""


class Interrupted(BaseException):  # not an error: the user or the system asked for it
    """A signal stopped the command.

    Args:
        signum: Number of the signal.
        message: What is kept and how to go on, in one line; empty says only which signal it was.
    """

    def __init__(self, signum: int = signal.SIGINT, message: str = "") -> None:
        self.signum = signum
        word = "interrupted" if signum == signal.SIGINT else f"stopped by {signal.Signals(signum).name}"
        self.message = f"{word}; {message}" if message else word
        super().__init__(self.message)


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice that looks most like a name, or None when none is close.

    Args:
        name: What the user wrote.
        choices: What there is.
    """
    found = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return found[0] if found else None


def suggest(name: str, choices: Iterable[str]) -> str:
    """The end of an error line: ``"; did you mean 'x'?"``, or nothing when no choice is close.

    Args:
        name: What the user wrote.
        choices: What there is.
    """
    found = nearest(name, choices)
    return "" if found is None else f"; did you mean '{found}'?"


def describe_os_error(error: OSError) -> str:
    """One line for a failed file operation.

    Args:
        error: What the operating system said.
    """
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno == errno.ENOSPC:
        reason = "the disk is full"
    path = error.filename2 or error.filename
    return reason if path is None else f"{path}: {reason[0].lower()}{reason[1:]}"
