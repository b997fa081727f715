"""Single values: pydantic checks type and range, in the words of a config file."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BeforeValidator, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from common.config.yaml_text import shown
from common.errors import nearest

_UNION = (Union, types.UnionType)
_RANGES = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("above", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("below", "lt"),
}
_PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def type_name(kind: Any) -> str:
    """A type in the words of a config file."""
    if get_origin(kind) is Annotated:
        return type_name(get_args(kind)[0])
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind is type(None):
        return "null"
    origin = get_origin(kind)
    if origin in _UNION:
        return " or ".join(type_name(member) for member in get_args(kind))
    if origin is Literal:
        return "one of " + ", ".join(shown(choice) for choice in get_args(kind))
    if kind in (list, tuple) or origin in (list, tuple, Sequence):
        return "a list"
    return "keys and values"


def range_text(kind: Any) -> str:
    """The range of a number in words, such as ``at least 1``; empty where there is none."""
    signs = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))
    parts = [
        f"{word} {getattr(mark, name)}"
        for mark in getattr(kind, "__metadata__", ())
        for name, word in signs
        if hasattr(mark, name)
    ]
    inner = [range_text(member) for member in get_args(kind)] if get_origin(kind) in _UNION else []
    return ", ".join([*parts, *filter(None, inner)])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise PydanticCustomError("plain_type", "")
    return value


def _int(value: Any) -> int:
    if not _is_number(value) or not (isinstance(value, int) or value.is_integer()):
        raise PydanticCustomError("plain_type", "")
    return int(value)


def _float(value: Any) -> float:
    if not _is_number(value) or math.isnan(value):
        raise PydanticCustomError("plain_type", "")
    try:
        return float(value)
    except OverflowError:
        raise PydanticCustomError("plain_type", "") from None


def _text(value: Any) -> str:
    if not isinstance(value, str) and not (isinstance(value, int) and not isinstance(value, bool)):
        raise PydanticCustomError("plain_type", "")
    return str(value)


def _path(value: Any) -> Path:
    if not isinstance(value, (str, Path)) or not str(value):
        raise PydanticCustomError("plain_type", "")
    return Path(value)


_READERS = {bool: _bool, int: _int, float: _float, str: _text, Path: _path}


def _lists(value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        raise PydanticCustomError("plain_type", "")
    return value


def _checked(kind: Any) -> Any:
    """The type with a reader for YAML's values before each plain type in it."""
    if kind in _READERS:
        return Annotated[kind, BeforeValidator(_READERS[kind])]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return Annotated[(_checked(arguments[0]), *kind.__metadata__)]
    if origin in _UNION:
        return Union[tuple(_checked(member) for member in arguments)]  # noqa: UP007  # made at run time
    if origin in (list, tuple, Sequence):
        inner = tuple(part if part is Ellipsis else _checked(part) for part in arguments)
        rebuilt: Any = tuple[inner] if origin is tuple else list[inner[0]]  # type: ignore[valid-type]  # made at run time
        return Annotated[rebuilt, BeforeValidator(_lists)]
    if origin in (dict, Mapping):
        return dict[tuple(_checked(part) for part in arguments)]  # type: ignore[misc]  # made at run time
    return kind


@cache
def _reader(kind: Any) -> Callable[[Any], Any]:
    return TypeAdapter(_checked(kind)).validate_python


def _optional(kind: Any) -> Any:
    """The one type beside null of an optional type; other types as they are."""
    members = [member for member in get_args(kind) if member is not type(None)]
    return members[0] if get_origin(kind) in _UNION and len(members) == 1 else kind


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _place(kind: Any, value: Any, loc: Sequence[int | str]) -> tuple[str, Any, Any]:
    """Path below the value, type and value of the place that an error names."""
    path = ""
    for step in loc:
        inner = _bare(_optional(_bare(kind)))
        origin, arguments = get_origin(inner), get_args(inner)
        if origin in (list, Sequence) and isinstance(step, int):
            kind = arguments[0]
        elif origin is tuple and isinstance(step, int) and isinstance(value, (list, tuple)):
            if arguments[-1] is not Ellipsis and len(arguments) != len(value):
                break
            kind = arguments[0] if arguments[-1] is Ellipsis else arguments[step]
        elif origin in (dict, Mapping) and step != "[key]" and isinstance(value, Mapping) and step in value:
            kind = arguments[1]
        else:
            break
        path += f"[{step}]" if isinstance(step, int) else f".{step}"
        value = value[step]
    return path, kind, value


def _message(error: ErrorDetails, kind: Any, value: Any) -> str:
    if error["type"] in _RANGES and _is_number(value):
        words, name = _RANGES[error["type"]]
        limit = error.get("ctx", {}).get(name)
        limit = int(limit) if isinstance(limit, float) and limit.is_integer() else limit
        return f"must be {words} {limit}, got {value}"
    bare = _bare(_optional(_bare(kind)))
    if get_origin(bare) is tuple and isinstance(value, (list, tuple)) and get_args(bare)[-1] is not Ellipsis:
        return f"expected {len(get_args(bare))} values, got {shown(list(value))}"
    if get_origin(bare) is Literal:
        close = nearest(str(value), [str(choice) for choice in get_args(bare)])
        hint = "" if close is None else f"; did you mean '{close}'?"
        return f"{shown(value)} is not {type_name(kind)}{hint}"
    hint = "; put it in quotes" if bare is str and isinstance(value, (bool, float)) else ""
    return f"expected {type_name(kind)}, got {shown(value)}{hint}"


def read_leaf(kind: Any, value: Any) -> tuple[Any, list[tuple[str, str]]]:
    """A value as its type wants it.

    Args:
        kind: A type without dataclasses in it; ranges as ``Annotated[int, Ge(1)]``.
        value: A value as YAML gives it.

    Returns:
        The typed value, and every mistake as the path below the value and what is wrong there.
    """
    try:
        return _reader(kind)(value), []
    except ValidationError as error:
        mistakes: dict[str, str] = {}
        for details in error.errors(include_url=False, include_context=True):
            path, inner, at = _place(kind, value, details["loc"])
            mistakes.setdefault(path, _message(details, inner, at))
        return None, list(mistakes.items())


def is_union(kind: Any) -> bool:
    """Whether a type is a union, null included."""
    return get_origin(kind) in _UNION


def members(kind: Any) -> tuple[Any, ...]:
    """The types of a union without null; otherwise the type itself."""
    if not is_union(kind):
        return (kind,)
    return tuple(member for member in typing.get_args(kind) if member is not type(None))
