"""Typed settings: one YAML file and ``key=value`` overrides, every mistake reported at once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.errors import ConfigError, nearest
from common.files import atomic_write

T = TypeVar("T")

MISSING = "???"
"""A value that the user must still give, as OmegaConf writes it."""

_WRONG: Any = object()


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars (``off`` is text, ``1e-3`` a number), dates as text, duplicate keys kept apart."""


class _Dumper(yaml.SafeDumper):
    """Quotes text that any YAML reader, 1.1 or 1.2, would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _add_yaml_1_2(cls: type[_Loader] | type[_Dumper]) -> None:
    plain: list[tuple[str, str, str]] = [
        ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
        ("int", r"^[-+]?[0-9][0-9_]*$", "-+0123456789"),
        (
            "float",
            r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
            "-+.0123456789",
        ),
    ]
    for name, pattern, first in plain:
        cls.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(pattern), list(first))


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in entries if tag.rsplit(":", 1)[-1] in {"null", "merge"}]
    for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_add_yaml_1_2(_Loader)
_add_yaml_1_2(_Dumper)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).replace("_", "").lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(str(loader.construct_scalar(node)).replace("_", ""))


_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def _duplicates(node: yaml.Node | None, prefix: str = "") -> Iterator[str]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            path = f"{prefix}{name}"
            if name in seen:
                yield f"{path}: the key stands here twice (again on line {key.start_mark.line + 1}); keep one"
            seen.add(name)
            yield from _duplicates(value, f"{path}.")
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _duplicates(value, f"{prefix.removesuffix('.')}[{index}].")


def _yaml_mistake(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    return f"{where}not valid YAML: {getattr(error, 'problem', None) or error}"


def _parse(text: str, mistakes: list[str], where: str) -> Any:
    """Read one YAML text; what is wrong with it is added to the mistakes."""
    try:
        mistakes.extend(f"{where}: {line}" for line in _duplicates(yaml.compose(text, Loader=_Loader)))
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        message = _yaml_mistake(error) if isinstance(error, yaml.YAMLError) else f"not valid YAML: {error}"
        mistakes.append(f"{where}: {message}")
        return _WRONG


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML file that holds keys and values; duplicate keys are mistakes.

    Args:
        path: The file.

    Raises:
        ConfigError: The file is missing, not readable as YAML, or not a mapping.
    """
    mistakes: list[str] = []
    content = _read(path, mistakes)
    ConfigError.raise_if(mistakes)
    return content


def _read(path: Path, mistakes: list[str]) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        mistakes.append(f"{path}: there is no such config file")
        return {}
    except IsADirectoryError:
        mistakes.append(f"{path}: this is a folder; give the YAML file in it")
        return {}
    except UnicodeDecodeError:
        mistakes.append(f"{path}: not a text file in UTF-8")
        return {}
    content = _parse(text, mistakes, str(path))
    if content is _WRONG or content is None:
        return {}
    if not isinstance(content, dict):
        mistakes.append(f"{path}: expected `key: value` lines, got {_shown(content)}")
        return {}
    return content


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = repr(text) if isinstance(value, str) else text
    return text if len(text) <= 60 else f"{text[:57]}..."


def _type_name(kind: Any) -> str:
    """A type in the words of a config file."""
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    if kind in names:
        return names[kind]
    if kind is type(None):
        return "null"
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(member) for member in get_args(kind))
    if origin is Literal:
        return "one of " + ", ".join(_shown(choice) for choice in get_args(kind))
    if kind in (list, tuple) or origin in (list, tuple, Sequence):
        return "a list"
    return "keys and values"


@dataclasses.dataclass
class _Reader:
    """Turns plain values into typed ones and collects every mistake on the way."""

    origin: Callable[[str], str]
    all_keys: tuple[str, ...]
    mistakes: list[str] = dataclasses.field(default_factory=list)

    def wrong(self, path: str, message: str) -> Any:
        self.mistakes.append(f"{self.origin(path)}: {path}: {message}")
        return _WRONG

    def expected(self, path: str, kind: Any, value: Any) -> Any:
        hint = ""
        if kind is str and isinstance(value, (bool, float)):
            hint = "; put it in quotes"
        return self.wrong(path, f"expected {_type_name(kind)}, got {_shown(value)}{hint}")

    def read(self, kind: Any, value: Any, path: str) -> Any:
        """The value as the type wants it, or _WRONG."""
        origin = get_origin(kind)
        if isinstance(value, str) and value == MISSING:
            return self.wrong(path, "a value is needed here")
        if kind is Any:
            return value
        if origin in (Union, types.UnionType):
            return self.union(kind, value, path)
        if origin is Literal:
            return self.choice(kind, value, path)
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            return self.dataclass(kind, value, path)
        if kind in (list, tuple) or origin in (list, tuple, Sequence):
            return self.sequence(kind, value, path)
        if kind is dict or origin in (dict, Mapping):
            return self.mapping(kind, value, path)
        return self.scalar(kind, value, path)

    def scalar(self, kind: Any, value: Any, path: str) -> Any:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if kind is bool and isinstance(value, bool):
            return value
        if kind is int and number and (isinstance(value, int) or value.is_integer()):
            return int(value)
        if kind is float and number:
            return self.wrong(path, "expected a number, got nan") if math.isnan(value) else float(value)
        if kind is str and (isinstance(value, str) or (number and isinstance(value, int))):
            return str(value)
        if kind is Path and isinstance(value, (str, Path)) and str(value):
            return Path(value)
        if kind is type(None) and value is None:
            return None
        if kind not in (bool, int, float, str, Path, type(None)):
            raise TypeError(f"{path}: config fields of type {kind!r} are not supported")
        return self.expected(path, kind, value)

    def union(self, kind: Any, value: Any, path: str) -> Any:
        members = get_args(kind)
        if value is None and type(None) in members:
            return None
        rest = [member for member in members if member is not type(None)]
        if len(rest) == 1:
            found = len(self.mistakes)
            result = self.read(rest[0], value, path)
            if result is _WRONG and len(self.mistakes) == found + 1 and _is_scalar(rest[0]):
                self.mistakes.pop()
                return self.expected(path, kind, value)
            return result
        for member in rest:
            attempt = dataclasses.replace(self, mistakes=[])
            result = attempt.read(member, value, path)
            if not attempt.mistakes:
                return result
        return self.expected(path, kind, value)

    def choice(self, kind: Any, value: Any, path: str) -> Any:
        choices = get_args(kind)
        for choice in choices:
            if type(choice) is type(value) and choice == value:
                return value
        close = nearest(str(value), [str(choice) for choice in choices])
        hint = "" if close is None else f"; did you mean '{close}'?"
        return self.wrong(path, f"{_shown(value)} is not {_type_name(kind)}{hint}")

    def sequence(self, kind: Any, value: Any, path: str) -> Any:
        if not isinstance(value, (list, tuple)):
            return self.expected(path, kind, value)
        arguments = get_args(kind)
        fixed = get_origin(kind) is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis)
        if fixed and len(arguments) != len(value):
            return self.wrong(path, f"expected {len(arguments)} values, got {_shown(list(value))}")
        kinds = arguments if fixed else [arguments[0] if arguments else Any] * len(value)
        items = [self.read(k, v, f"{path}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True))]
        if any(item is _WRONG for item in items):
            return _WRONG
        return tuple(items) if kind is tuple or get_origin(kind) is tuple else items

    def mapping(self, kind: Any, value: Any, path: str) -> Any:
        if not isinstance(value, Mapping):
            return self.expected(path, kind, value)
        key_kind, value_kind = get_args(kind) or (str, Any)
        keys = [self.read(key_kind, key, f"{path}.{key}") for key in value]
        values = [self.read(value_kind, item, f"{path}.{key}") for key, item in value.items()]
        if any(item is _WRONG for item in (*keys, *values)):
            return _WRONG
        return dict(zip(keys, values, strict=True))

    def dataclass(self, kind: Any, value: Any, path: str) -> Any:
        if isinstance(value, kind):
            value = to_dict(value)
        if not isinstance(value, Mapping):
            return self.expected(path, kind, value)
        hints = typing.get_type_hints(kind)
        fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
        prefix = f"{path}." if path else ""
        for key in value:
            if key not in fields:
                self.unknown(f"{prefix}{key}", [f"{prefix}{name}" for name in fields])
        arguments: dict[str, Any] = {}
        clean = True
        for name, field in fields.items():
            where = f"{prefix}{name}"
            if name in value or (_is_required(field) and dataclasses.is_dataclass(hints[name])):
                result = self.read(hints[name], value.get(name, {}), where)
            elif _is_required(field):
                result = self.wrong(where, f"missing; give {_type_name(hints[name])}")
            else:
                continue
            if result is _WRONG:
                clean = False
            else:
                arguments[name] = result
        if any(_is_required(field) and name not in arguments for name, field in fields.items()):
            return _WRONG
        # Where a value was wrong its default stands in, so that __post_init__ still judges the others.
        try:
            built = kind(**arguments)
        except ConfigError as error:
            for message in error.messages:
                head = re.split(r"[:.\[]", message, maxsplit=1)[0]
                about = f"{prefix}{head}" if head in fields else path
                joint = "" if not path else "." if head in fields else ": "
                self.mistakes.append(f"{self.origin(about)}: {path}{joint}{message}")
            return _WRONG
        return built if clean else _WRONG

    def unknown(self, path: str, siblings: list[str]) -> None:
        close = nearest(path, siblings)
        if close is None:
            last = path.rsplit(".", 1)[-1]
            close = next((key for key in self.all_keys if key.rsplit(".", 1)[-1] == last), None)
        hint = f"did you mean '{close}'?" if close else f"there are: {', '.join(siblings)}"
        self.wrong(path, f"unknown key; {hint}")


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _is_scalar(kind: Any) -> bool:
    return kind in (bool, int, float, str, Path)


def _field_paths(kind: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key that a config type knows."""
    for member in get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,):
        if dataclasses.is_dataclass(member) and isinstance(member, type):
            hints = typing.get_type_hints(member)
            for field in dataclasses.fields(member):
                yield f"{prefix}{field.name}"
                yield from _field_paths(hints[field.name], f"{prefix}{field.name}.")


def _override(config: Any, key: str, value: Any, mistakes: list[str]) -> None:
    try:
        OmegaConf.update(config, key, value, merge=True, force_add=True)
    except OmegaConfBaseException as error:
        mistakes.append(f"command line: {key}: {str(error).splitlines()[0]}")
    except (AttributeError, TypeError, ValueError, IndexError, KeyError):
        mistakes.append(f"command line: {key}: there is no such place in the config")


def load(
    cls: type[T],
    path: Path | None,
    overrides: Sequence[str] = (),
    base: Mapping[str, Any] | None = None,
) -> T:
    """Build a typed config from one YAML file and ``key=value`` overrides.

    Later sources win: the defaults of the dataclass, ``base``, the file, the overrides. Interpolations
    such as ``${train.seed}`` are OmegaConf's. Scalars follow YAML 1.2: ``off`` is text and ``1e-3`` a number.

    A ``__post_init__`` may raise ConfigError; a message that begins with the name of a field
    (``"epochs: must be at least 1, got 0"``) is completed to the dotted path of that field.

    Args:
        cls: A dataclass; fields may be dataclasses, ``Literal``, optional, lists, tuples, paths, mappings.
        path: The YAML file, or None.
        overrides: ``a.b=value``; the value is read as YAML.
        base: Values below the file, for callers that hold a config in memory.

    Raises:
        ConfigError: All mistakes that were found, one line each, with path and nearest valid name.
    """
    mistakes: list[str] = []
    given: list[str] = []
    content: Any = {}
    try:
        config = OmegaConf.create(_plain(base or {}))
        if path is not None:
            content_of_file = _read(path, mistakes)
            if not path.is_file():  # what else is missing would only follow from that
                raise ConfigError(*mistakes)
            config = OmegaConf.merge(config, OmegaConf.create(content_of_file))
        for override in overrides:
            key, separator, text = override.partition("=")
            key = key.strip()
            if not separator or not key:
                mistakes.append(f"command line: {override!r} is not of the form key=value")
                continue
            value = _parse(text, mistakes, f"command line: {key}")
            if value is not _WRONG:
                _override(config, key, value, mistakes)
                given.append(key)
        content = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or ""
        mistakes.append(f"{path or 'config'}: {key}{': ' if key else ''}{str(error).splitlines()[0]}")
        raise ConfigError(*mistakes) from error

    def origin(key: str) -> str:
        from_command = any(key == name or (key and name.startswith(f"{key}.")) for name in given)
        from_command = from_command or any(key.startswith((f"{name}.", f"{name}[")) for name in given)
        return "command line" if from_command else str(path or "config")

    reader = _Reader(origin=origin, all_keys=tuple(_field_paths(cls)))
    result = reader.read(cls, content, "")
    ConfigError.raise_if([*mistakes, *reader.mistakes])
    return typing.cast(T, result)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain mappings, lists and scalars; paths become text.

    Args:
        config: A dataclass instance or a mapping.

    Raises:
        TypeError: It is neither.
    """
    plain = _plain(config)
    if not isinstance(plain, dict):
        raise TypeError(f"a config is a dataclass or a mapping, got {type(config).__name__}")
    return plain


def to_yaml(config: Any) -> str:
    """A config as YAML that :func:`load` reads back to an equal config.

    Args:
        config: A dataclass instance or a mapping.
    """
    text: str = yaml.dump(to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


def save(config: Any, path: Path) -> None:
    """Write a config as YAML, whole or not at all.

    Args:
        config: A dataclass instance or a mapping.
        path: The file.
    """
    atomic_write(path, to_yaml(config))


def config_hash(config: Any, ignore: Collection[str] = ()) -> str:
    """What tells two configs apart: 12 hexadecimal digits of the SHA-256 of the canonical JSON.

    Args:
        config: A dataclass instance or a mapping.
        ignore: Dotted keys that do not change the result of a run, such as ``"fit.progress"``.
    """
    content = to_dict(config)
    for key in ignore:
        *parents, last = key.split(".")
        holder: Any = content
        for parent in parents:
            holder = holder.get(parent) if isinstance(holder, dict) else None
        if isinstance(holder, dict):
            holder.pop(last, None)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
