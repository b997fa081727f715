"""The list of all settings: key, type, default, and one line of meaning."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from common.config.leaves import members, range_text, type_name
from common.config.plain import plain_value
from common.config.registry import Component, Parameter
from common.config.typed import fields_of, registry_of
from common.config.yaml_text import shown


@dataclass(frozen=True)
class Setting:
    """One key of a config.

    Args:
        key: Dotted; that of a component's setting names the component: ``model[twin].top_k``.
        kind: Type and range in words.
        default: As YAML shows it; ``required`` where a value must be given.
        meaning: One line.
    """

    key: str
    kind: str
    default: str
    meaning: str


def settings(cls: type) -> list[Setting]:
    """Every setting of a config, those of each component included.

    Args:
        cls: A dataclass.
    """
    return list(_group(fields_of(cls), ""))


def _group(known: dict[str, Parameter], prefix: str) -> Iterator[Setting]:
    for name, parameter in known.items():
        yield from _setting(parameter, f"{prefix}{name}")


def _setting(parameter: Parameter, key: str) -> Iterator[Setting]:
    default = "required" if parameter.required else _default(parameter.default)
    direct = members(parameter.kind)
    for member in _inner(parameter.kind):
        many = "" if member in direct else "[]"
        registry = registry_of(member)
        if registry is not None:
            yield Setting(f"{key}{many}.name", f"one of {', '.join(registry)}", default, parameter.meaning)
            for name in registry:
                yield from _group(registry.settings(name), f"{key}{many}[{name}].")
            return
        if dataclasses.is_dataclass(member) and isinstance(member, type):
            yield from _group(fields_of(member), f"{key}{many}.")
            return
    words = ", ".join(filter(None, (type_name(parameter.kind), range_text(parameter.kind))))
    yield Setting(key, words, default, parameter.meaning)


def _inner(kind: Any) -> Iterator[Any]:
    """A type and the types that it is made of."""
    yield kind
    if registry_of(kind) is None:
        for argument in getattr(kind, "__args__", ()):
            yield from _inner(argument)


def _default(value: Any) -> str:
    return value.name if isinstance(value, Component) else shown(plain_value(value))
