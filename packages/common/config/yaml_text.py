"""YAML 1.2 scalars, duplicate keys named, no more values than a file spells out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from common.errors import ConfigError

WRONG: Any = object()
"""Stands in for a value that could not be read."""

MOST_VALUES = 100_000
"""Values that a config may hold, those that aliases repeat included."""


class Loader(yaml.SafeLoader):
    """YAML 1.2 scalars (``off`` is text, ``1e-3`` a number), dates as text, duplicate keys kept apart."""


class Dumper(yaml.SafeDumper):
    """Quotes text that any YAML reader, 1.1 or 1.2, would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """Every value is written out."""
        return True


def _add_yaml_1_2(cls: type[Loader] | type[Dumper]) -> None:
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


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in entries if tag.rsplit(":", 1)[-1] in {"null", "merge"}]
    for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_add_yaml_1_2(Loader)
_add_yaml_1_2(Dumper)


def _construct_float(loader: Loader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).replace("_", "").lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _construct_int(loader: Loader, node: yaml.ScalarNode) -> int:
    return int(str(loader.construct_scalar(node)).replace("_", ""))


Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


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


def _count(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Values of a node, each as often as aliases repeat it."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = -1
        parts = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    if known[id(node)] < 0:
        raise ValueError("an alias stands inside the value that it names")
    return known[id(node)]


def _yaml_mistake(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    return f"{where}not valid YAML: {getattr(error, 'problem', None) or error}"


def parse(text: str, mistakes: list[str], where: str) -> Any:
    """Read one YAML text; what is wrong with it is added to the mistakes."""
    try:
        node = yaml.compose(text, Loader=Loader)
        if (count := _count(node, {})) > MOST_VALUES:
            raise ValueError(f"its aliases make {count:,} values of it; at most {MOST_VALUES:,} are read")
        mistakes.extend(f"{where}: {line}" for line in _duplicates(node))
        return yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        message = _yaml_mistake(error) if isinstance(error, yaml.YAMLError) else f"not valid YAML: {error}"
        mistakes.append(f"{where}: {message}")
        return WRONG


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML file that holds keys and values; duplicate keys are mistakes.

    Args:
        path: The file.

    Raises:
        ConfigError: The file is missing, not readable as YAML, or not a mapping.
    """
    mistakes: list[str] = []
    content = read_file(path, mistakes)
    ConfigError.raise_if(mistakes)
    return content


def read_file(path: Path, mistakes: list[str]) -> dict[str, Any]:
    """Read one YAML file; what is wrong with it is added to the mistakes."""
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
    content = parse(text, mistakes, str(path))
    if content is WRONG or content is None:
        return {}
    if not isinstance(content, dict):
        mistakes.append(f"{path}: expected `key: value` lines, got {shown(content)}")
        return {}
    return content


def shown(value: Any) -> str:
    """A value for an error line, cut where it is long."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = repr(text) if isinstance(value, str) else text.replace("NaN", "nan").replace("Infinity", "inf")
    return text if len(text) <= 60 else f"{text[:57]}..."
