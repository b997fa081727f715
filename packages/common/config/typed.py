"""Plain values to dataclasses and components; every mistake on the way is collected."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar, get_args, get_origin

from common.config.docstrings import meanings
from common.config.leaves import is_union, members, read_leaf, type_name
from common.config.plain import plain_value, to_dict
from common.config.registry import Component, Parameter, Registry
from common.config.yaml_text import WRONG, parse, shown
from common.errors import ConfigError, nearest

T = TypeVar("T")

MISSING = "???"
"""A value that the user must still give, as OmegaConf writes it."""


def registry_of(kind: Any) -> Registry[Any] | None:
    """The registry of a field ``Annotated[Component[...], REGISTRY]``."""
    marks = getattr(kind, "__metadata__", ())
    return next((mark for mark in marks if isinstance(mark, Registry)), None)


def fields_of(kind: type) -> dict[str, Parameter]:
    """The settings of a dataclass."""
    hints = typing.get_type_hints(kind, include_extras=True)
    documented = meanings(kind)
    found = {}
    for each in dataclasses.fields(kind):
        if each.init:
            default: Any = each.default
            if each.default_factory is not dataclasses.MISSING:
                default = each.default_factory()
            if default is dataclasses.MISSING:
                default = inspect.Parameter.empty
            found[each.name] = Parameter(each.name, hints[each.name], default, documented.get(each.name, ""))
    return found


def _is_dataclass(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) and isinstance(kind, type)


def _is_group(kind: Any) -> bool:
    """Whether a dataclass or a component stands in a type."""
    if registry_of(kind) is not None or _is_dataclass(kind):
        return True
    return any(_is_group(argument) for argument in get_args(kind))


def paths(kind: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key that a config type knows; those of a component are the ones of its default."""
    for member in members(kind):
        if _is_dataclass(member):
            for name, setting in fields_of(member).items():
                yield f"{prefix}{name}"
                yield from paths(setting.kind, f"{prefix}{name}.")


@dataclass
class Reader:
    """Turns plain values into typed ones and collects every mistake on the way.

    Args:
        origin: Where the value of a dotted key was written.
        all_keys: Every dotted key of the whole config, for hints.
        renamed: New key, or what to say, by the dotted key that a setting had before.
        mistakes: One line for each mistake found so far.
    """

    origin: Callable[[str], str]
    all_keys: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)

    def wrong(self, path: str, message: str) -> Any:
        """Note a mistake."""
        self.mistakes.append(f"{self.origin(path)}: {path}: {message}")
        return WRONG

    def expected(self, path: str, kind: Any, value: Any) -> Any:
        """Note that a value has another type."""
        return self.wrong(path, f"expected {type_name(kind)}, got {shown(plain_value(value))}")

    def read(self, kind: Any, value: Any, path: str, default: Any = None) -> Any:
        """The value as the type wants it, or WRONG."""
        if isinstance(value, str) and value == MISSING:
            return self.wrong(path, "a value is needed here")
        registry = registry_of(kind)
        if registry is not None:
            return self.component(registry, value, path, default)
        if kind is Any:
            return value
        if not _is_group(kind):
            return self.leaf(kind, value, path)
        if get_origin(kind) is Annotated:
            return self.read(get_args(kind)[0], value, path, default)
        if is_union(kind):
            return self.union(kind, value, path, default)
        if _is_dataclass(kind):
            return self.dataclass(kind, value, path)
        return self.collection(kind, value, path)

    def leaf(self, kind: Any, value: Any, path: str) -> Any:
        """A single value, or a collection of them."""
        found, mistakes = read_leaf(kind, value)
        for below, message in mistakes:
            self.wrong(path + below, message)
        return WRONG if mistakes else found

    def union(self, kind: Any, value: Any, path: str, default: Any) -> Any:
        """The first member that the value fits."""
        rest = members(kind)
        if value is None and len(rest) < len(get_args(kind)):
            return None
        if len(rest) == 1:
            return self.read(rest[0], value, path, default)
        for member in rest:
            attempt = dataclasses.replace(self, mistakes=[])
            result = attempt.read(member, value, path, default)
            if not attempt.mistakes:
                return result
        return self.expected(path, kind, value)

    def collection(self, kind: Any, value: Any, path: str) -> Any:
        """A list or mapping of groups."""
        arguments = get_args(kind)
        if get_origin(kind) in (dict, Mapping):
            if not isinstance(value, Mapping):
                return self.expected(path, kind, value)
            read = {key: self.read(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
            return WRONG if any(item is WRONG for item in read.values()) else read
        if get_origin(kind) not in (list, tuple, Sequence):
            raise TypeError(f"{path}: config fields of type {kind!r} are not supported")
        if not isinstance(value, (list, tuple)):
            return self.expected(path, kind, value)
        items = [self.read(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value)]
        if any(item is WRONG for item in items):
            return WRONG
        return tuple(items) if get_origin(kind) is tuple else items

    def component(self, registry: Registry[Any], value: Any, path: str, default: Any) -> Any:
        """A component by name, its other keys being its settings."""
        if isinstance(value, Component):
            value = plain_value(value)
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping):
            return self.wrong(path, f"expected {{name: ..., ...}}, got {shown(value)}")
        base = plain_value(default) if isinstance(default, Component) else {}
        name = value.get("name", base.get("name"))
        if name is None:
            return self.wrong(path, f"name: missing; there are {', '.join(registry)}")
        if not isinstance(name, str) or name not in registry:
            close = nearest(str(name), registry.names())
            hint = f"did you mean '{close}'?" if close else f"there are {', '.join(registry)}"
            return self.wrong(f"{path}.name", f"there is no {registry.kind} {shown(name)}; {hint}")
        if name == base.get("name"):
            value = {**base, **value}
        given = {key: item for key, item in value.items() if key != "name"}
        try:
            known = registry.settings(name)
        except ImportError as error:
            return self.wrong(f"{path}.name", f"{registry.kind} '{name}' cannot be imported ({error})")
        unknown = f"{registry.kind} '{name}' has no such setting"
        typed, clean = self.settings(known, given, f"{path}.", unknown)
        return Component(registry, name, typed) if clean else WRONG

    def settings(
        self, known: Mapping[str, Parameter], value: Mapping[str, Any], prefix: str, unknown: str
    ) -> tuple[dict[str, Any], bool]:
        """Typed values by name, and whether all were right."""
        clean = True
        for key in value:
            if key not in known:
                clean = False
                self.unknown(f"{prefix}{key}", [f"{prefix}{name}" for name in known], unknown)
        typed: dict[str, Any] = {}
        for name, setting in known.items():
            where = f"{prefix}{name}"
            if name in value:
                result = self.read(setting.kind, value[name], where, setting.default)
            elif not setting.required:
                continue
            elif _is_dataclass(setting.kind):
                result = self.read(setting.kind, {}, where)
            else:
                result = self.wrong(where, f"missing; give {type_name(setting.kind)}")
            if result is WRONG:
                clean = False
            else:
                typed[name] = result
        return typed, clean

    def dataclass(self, kind: Any, value: Any, path: str) -> Any:
        """A group of settings."""
        if isinstance(value, kind):
            value = to_dict(value)
        if not isinstance(value, Mapping):
            return self.expected(path, kind, value)
        known = fields_of(kind)
        prefix = f"{path}." if path else ""
        typed, clean = self.settings(known, value, prefix, "unknown key")
        if any(setting.required and name not in typed for name, setting in known.items()):
            return WRONG
        # Where a value was wrong its default stands in, so that __post_init__ still judges the others.
        try:
            built = kind(**typed)
        except ConfigError as error:
            for message in error.messages:
                head = re.split(r"[:.\[]", message, maxsplit=1)[0]
                about = f"{prefix}{head}" if head in known else path
                joint = "" if not path else "." if head in known else ": "
                self.mistakes.append(f"{self.origin(about)}: {path}{joint}{message}")
            return WRONG
        return built if clean else WRONG

    def unknown(self, path: str, siblings: list[str], words: str) -> None:
        """Note a key that there is not."""
        if path in self.renamed:
            self.wrong(path, f"this setting is now {self.renamed[path]}")
            return
        last, by_name = path.rsplit(".", 1)[-1], {key.rsplit(".", 1)[-1]: key for key in siblings}
        close = by_name.get(nearest(last, by_name) or "")
        if close is None:
            close = next((key for key in self.all_keys if key.rsplit(".", 1)[-1] == last), None)
        hint = f"did you mean '{close}'?" if close else f"there are: {', '.join(siblings) or 'none'}"
        self.wrong(path, f"{words}; {hint}")


def read_component(
    registry: Registry[T], value: Any, where: str, overrides: Sequence[str] = ()
) -> Component[T]:
    """A component that stands alone: its name, or ``{name: hnsw, effort: 256}``.

    Args:
        registry: Where it is registered.
        value: What was given: a name, a mapping, or one of them as YAML.
        where: What it was given as, for error lines: ``"--index"``.
        overrides: More settings, ``key=value``.

    Raises:
        ConfigError: There is no such component, or its settings have mistakes, all of them named.
    """
    mistakes: list[str] = []
    if isinstance(value, str):
        value = parse(value, mistakes, where)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            mistakes.append(f"{override!r} is not of the form key=value")
        value = {**value, key: parse(text, mistakes, key)} if isinstance(value, Mapping) else value
    ConfigError.raise_if(mistakes)
    reader = Reader(origin=lambda _: "")
    found: Component[T] = reader.component(registry, value, where, None)
    ConfigError.raise_if(
        line.removeprefix(": ").replace(f"{where}.name: ", f"{where}: ", 1) for line in reader.mistakes
    )
    return found
