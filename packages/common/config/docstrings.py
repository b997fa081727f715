"""What a docstring says of each argument."""

from __future__ import annotations

import inspect
import re
from typing import Any

_ARGUMENT = re.compile(r"^ {4}(\w+)(?: \([^)]*\))?: (.*)$")


def meanings(documented: Any) -> dict[str, str]:
    """The first sentence about each argument in the ``Args:`` of a Google-style docstring.

    Args:
        documented: A class, whose docstring adds to those of its bases; a function or a class method.
    """
    if not isinstance(documented, type):
        return _meanings(inspect.getdoc(documented) or "")
    found: dict[str, str] = {}
    for base in reversed(documented.__mro__):
        found |= _meanings(inspect.cleandoc(vars(base).get("__doc__") or ""))
    return found


def _meanings(docstring: str) -> dict[str, str]:
    sections = re.split(r"^Args:$", docstring, maxsplit=1, flags=re.MULTILINE)
    if len(sections) == 1:
        return {}
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in sections[1].splitlines():
        if line.strip() and not line.startswith(" "):
            break
        if match := _ARGUMENT.match(line):
            current = found.setdefault(match[1], [])
            current.append(match[2])
        elif line.strip():
            current.append(line.strip())
    whole = {name: " ".join(lines).replace("``", "") for name, lines in found.items()}
    return {name: re.split(r"(?<=\.)\s(?=[A-Z])", text)[0] for name, text in whole.items()}
