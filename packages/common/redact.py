"""What looks like a secret, left out of what is kept of a command line or sent elsewhere."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

HIDDEN = "(redacted)"
"""Stands where a secret stood."""

_NAME = (
    r"(?:(?:api|access|private|secret|auth)[_-]?key|token|secret|password|passwd|passphrase|credentials?"
    r"|authorization)"
)
_NAMED = re.compile(rf"{_NAME}$", re.IGNORECASE)
_SETTING = re.compile(
    rf"""({_NAME}["']?\s*[=:]\s*)("[^"]*"|'[^']*'|[^\s,}}\]]+)""",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"\b(Bearer|Basic)\s+[^\s,}\]\"']+", re.IGNORECASE)
_KNOWN = re.compile(
    r"\b(?:(?:sk|pk|rk)-[\w-]{16,}|hf_\w{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|AKIA[A-Z0-9]{16}"
    r"|xox[abprs]-[\w-]{10,}|glpat-[\w-]{16,})"
)
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@:]*:[^/\s@]+(?=@)")


def redact_text(text: str) -> str:
    """A text without what looks like a secret: ``api_key=...``, ``sk-...``, ``://user:password@``.

    Args:
        text: An argument, or the value of a setting.
    """
    text = _SCHEME.sub(rf"\1 {HIDDEN}", text)
    text = _SETTING.sub(rf"\1{HIDDEN}", text)
    return _IN_ADDRESS.sub(HIDDEN, _KNOWN.sub(HIDDEN, text))


def redact(value: Any) -> Any:
    """Settings without what looks like a secret, by its key or by its form.

    Args:
        value: Mappings, lists and scalars.
    """
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if isinstance(entry, str) and entry and _NAMED.search(str(key)) else redact(entry)
            for key, entry in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [redact(entry) for entry in value]
    return redact_text(value) if isinstance(value, str) else value


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line without what looks like a secret.

    Args:
        arguments: Its words.
    """
    found: list[str] = []
    for word in arguments:
        option = found[-1] if found else ""
        follows = option.startswith("--") and "=" not in option and _NAMED.search(option.lstrip("-"))
        found.append(HIDDEN if follows and not word.startswith("--") else redact_text(word))
    return found


@contextmanager
def redacted_command_line() -> Iterator[None]:
    """For a library that reads the command line of this process by itself: it sees no secret there."""
    before = sys.argv
    sys.argv = [before[0], *redact_arguments(before[1:])]
    try:
        yield
    finally:
        sys.argv = before
