"""Constructors that refuse arguments outside the ranges and choices of their own annotations."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from annotated_types import Ge, Le, Lt

from common.config.leaves import range_text, read_leaf
from common.errors import ConfigError

C = TypeVar("C", bound=type)

Positive = Annotated[int, Ge(1)]
"""A whole number from 1: a width, or a number of things."""

Share = Annotated[float, Ge(0), Le(1)]
"""A share."""

Dropout = Annotated[float, Ge(0), Lt(1)]
"""A share that may not be all."""


def checked(cls: C) -> C:
    """Class decorator: what ``Annotated[int, Ge(1)]`` or ``Literal`` rules out is refused, all at once.

    So a range is declared once: a config checks it when it is read, and the constructor when Python calls it.
    A dataclass raises ConfigError (``"epochs: must be at least 1, got 0"``), any other class ValueError
    (``"epochs must be at least 1, got 0"``).

    Args:
        cls: The class; annotations of its constructor that have neither range nor choice are left alone.
    """
    init: Any = vars(cls)["__init__"]
    signature = inspect.signature(init)

    @functools.cache
    def kinds() -> dict[str, Any]:
        hints = typing.get_type_hints(inspect.unwrap(init), include_extras=True)
        return {name: kind for name, kind in hints.items() if _is_bounded(kind)}

    @functools.wraps(init)
    def check(*args: Any, **kwargs: Any) -> None:
        given = signature.bind(*args, **kwargs).arguments
        wrong = [
            (f"{name}{below}", message)
            for name, kind in kinds().items()
            if name in given
            for below, message in read_leaf(kind, given[name])[1]
        ]
        if wrong and not dataclasses.is_dataclass(cls):
            raise ValueError("; ".join(f"{where} {message}" for where, message in wrong))
        found = [f"{where}: {message}" for where, message in wrong]
        try:
            init(*args, **kwargs)
        except ConfigError as error:
            if not found:
                raise
            found += error.messages  # of its __post_init__
        ConfigError.raise_if(found)

    setattr(cls, "__init__", check)  # noqa: B010  # mypy refuses the assignment
    return cls


def _is_bounded(kind: Any) -> bool:
    """Whether a type has a range or a choice anywhere in it."""
    if range_text(kind) or get_origin(kind) is Literal:
        return True
    return any(_is_bounded(argument) for argument in get_args(kind))
