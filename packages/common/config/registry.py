"""Registries: named constructors whose signatures are their settings."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from common.config.docstrings import meanings
from common.errors import ConfigError, suggest

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Parameter:
    """One setting of a constructor.

    Args:
        name: Its key.
        kind: Its type, annotations of ranges included.
        default: Its default; ``inspect.Parameter.empty`` where a value must be given.
        meaning: What it is, in one line, from the constructor's docstring.
    """

    name: str
    kind: Any
    default: Any
    meaning: str

    @property
    def required(self) -> bool:
        """Whether a value must be given."""
        return self.default is inspect.Parameter.empty


def parameters(constructor: Callable[..., Any], given: Collection[str] = ()) -> dict[str, Parameter]:
    """The settings of a constructor: its keyword parameters, less those that code passes.

    Args:
        constructor: A class, a class method or a function.
        given: Parameters that code passes.

    Raises:
        TypeError: A parameter has no type.
    """
    target = getattr(constructor, "__init__") if isinstance(constructor, type) else constructor  # noqa: B009
    hints = typing.get_type_hints(inspect.unwrap(getattr(target, "__func__", target)), include_extras=True)
    documented = meanings(constructor)
    found = {}
    for parameter in inspect.signature(constructor).parameters.values():
        if parameter.name in given or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if parameter.name not in hints:
            raise TypeError(f"{constructor!r}: parameter {parameter.name!r} has no type")
        found[parameter.name] = Parameter(
            parameter.name, hints[parameter.name], parameter.default, documented.get(parameter.name, "")
        )
    return found


class Registry(Generic[T_co]):
    """Named constructors of one kind of component; their signatures are the settings.

    As the metadata of an annotation, ``Annotated[Component[Backbone], BACKBONES]``, it makes a field of a
    config that is written ``{name: twin, top_k: 50}``.

    Args:
        kind: What is registered, for error lines: ``"backbone"``.
        given: Parameters of the constructors that code passes when it builds; they are no settings.
    """

    def __init__(self, kind: str, *, given: Collection[str] = ()) -> None:
        self.kind, self.given = kind, frozenset(given)
        self._constructors: dict[str, Callable[..., T_co] | str] = {}

    def add(self, name: str, constructor: Callable[..., T_co] | str) -> None:
        """Register a constructor.

        Args:
            name: Its name in configs.
            constructor: It, or ``"module:name"``, imported when it is first asked for.

        Raises:
            ValueError: The name is taken.
        """
        if name in self._constructors:
            raise ValueError(f"there is already a {self.kind} '{name}'")
        self._constructors[name] = constructor

    def remove(self, name: str) -> None:
        """Forget a constructor."""
        del self._constructors[name]

    def names(self) -> list[str]:
        """All names, in the order in which they were added."""
        return list(self._constructors)

    def __iter__(self) -> Iterator[str]:
        """All names, in the order in which they were added."""
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        """Whether there is a constructor of that name."""
        return name in self._constructors

    def __getitem__(self, name: str) -> Callable[..., T_co]:
        """The constructor of a name.

        Raises:
            ConfigError: There is none; the line names the nearest.
        """
        if name not in self._constructors:
            there = ", ".join(self._constructors)
            hint = suggest(name, self._constructors)
            raise ConfigError(f"name: there is no {self.kind} '{name}'{hint or f'; there are {there}'}")
        found = self._constructors[name]
        if isinstance(found, str):
            module, _, attribute = found.partition(":")
            value: Any = importlib.import_module(module)
            for part in attribute.split("."):
                value = getattr(value, part)
            self._constructors[name] = found = value
        return found

    def settings(self, name: str) -> dict[str, Parameter]:
        """The settings of a component."""
        found = parameters(self[name], self.given)
        if "name" in found:
            raise TypeError(f"{self.kind} '{name}': a setting cannot be called 'name'")
        return found

    def component(self, name: str, **options: Any) -> Component[T_co]:
        """A choice from this registry, as the default of a field or for callers in Python.

        Args:
            name: Which one.
            options: Its settings; defaults are filled in.
        """
        return Component(self, name, options)


class Component(Generic[T_co]):
    """A component that a config names, not yet built.

    Args:
        registry: Where it is registered.
        name: Its name there.
        given: Settings that differ from the defaults.
    """

    def __init__(self, registry: Registry[T_co], name: str, given: Mapping[str, Any]) -> None:
        self.registry, self.name, self._given = registry, name, dict(given)

    @property
    def options(self) -> dict[str, Any]:
        """All settings, defaults filled in."""
        known = self.registry.settings(self.name)
        return {
            key: self._given.get(key, setting.default)
            for key, setting in known.items()
            if key in self._given or not setting.required
        }

    def build(self, **given: Any) -> T_co:
        """Call the constructor.

        Args:
            given: What code passes beside the settings; parameters that a constructor does not have are
                left out.

        Raises:
            ConfigError: The constructor refuses its settings.
        """
        constructor = self.registry[self.name]
        taken = inspect.signature(constructor).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in taken.values())
        passed = {key: value for key, value in given.items() if open_ended or key in taken}
        try:
            return constructor(**passed, **self.options)
        except ValueError as error:
            raise ConfigError(f"{self.registry.kind} '{self.name}': {error}") from error

    def __eq__(self, other: object) -> bool:
        """Whether it is the same component with the same settings."""
        if not isinstance(other, Component):
            return NotImplemented
        mine, its = (self.registry, self.name), (other.registry, other.name)
        return mine == its and _as_lists(self.options) == _as_lists(other.options)

    def __hash__(self) -> int:
        """The hash of its name."""
        return hash(self.name)

    def __repr__(self) -> str:
        """``BACKBONES.component('twin', top_k=20)``, in effect."""
        given = "".join(f", {key}={value!r}" for key, value in self._given.items())
        return f"<{self.registry.kind} {self.name}{given}>"


def _as_lists(value: Any) -> Any:
    """A value with lists for tuples, as YAML gives it back."""
    if isinstance(value, Mapping):
        return {key: _as_lists(item) for key, item in value.items()}
    return [_as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value
