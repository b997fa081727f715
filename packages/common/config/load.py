"""From a YAML file and ``key=value`` overrides to a typed config."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser
from omegaconf.grammar_parser import parse as parse_interpolation

from common.config.plain import plain_value
from common.config.typed import Reader, paths
from common.config.yaml_text import WRONG, parse, read_file
from common.errors import ConfigError

T = TypeVar("T")


def _resolvers(tree: Any) -> Iterator[str]:
    if isinstance(tree, OmegaConfGrammarParser.InterpolationResolverContext):
        yield str(tree.getText())
    for child in tree.getChildren() if hasattr(tree, "getChildren") else ():
        yield from _resolvers(child)


def _refuse_resolvers(value: Any, where: str, path: str, mistakes: list[str]) -> Any:
    """The value without ``${name:...}``, which would run something or read the environment."""
    if isinstance(value, dict):
        prefix = f"{path}." if path else ""
        return {key: _refuse_resolvers(v, where, f"{prefix}{key}", mistakes) for key, v in value.items()}
    if isinstance(value, list):
        return [_refuse_resolvers(v, where, f"{path}[{i}]", mistakes) for i, v in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    try:
        found = next(_resolvers(parse_interpolation(value)), None)
    except GrammarParseError:
        return value  # OmegaConf names what is wrong with it
    if found is None:
        return value
    mistakes.append(
        f"{where}: {path}: {found} is not resolved; write the value itself (${{other.key}} may be used)"
    )
    return None


def _override(config: Any, key: str, value: Any, mistakes: list[str]) -> None:
    try:
        old = OmegaConf.select(config, key)
        # Another component brings its own settings: those of the one before do not belong to it.
        other = (
            isinstance(value, dict)
            and OmegaConf.is_dict(old)
            and value.get("name") not in (None, old.get("name"))
        )
        OmegaConf.update(config, key, value, merge=not other, force_add=True)
    except OmegaConfBaseException as error:
        mistakes.append(f"command line: {key}: {str(error).splitlines()[0]}")
    except (AttributeError, TypeError, ValueError, IndexError, KeyError):
        mistakes.append(f"command line: {key}: there is no such place in the config")


def load(
    cls: type[T],
    path: Path | None,
    overrides: Sequence[str] = (),
    base: Mapping[str, Any] | None = None,
    *,
    renamed: Mapping[str, str] | None = None,
) -> T:
    """Build a typed config from one YAML file and ``key=value`` overrides.

    Later sources win: the defaults of the dataclass, ``base``, the file, the overrides. Interpolations
    such as ``${train.seed}`` are OmegaConf's; resolvers (``${oc.env:HOME}``) are refused. Scalars follow
    YAML 1.2: ``off`` is text and ``1e-3`` a number.

    Types and ranges (``Annotated[int, Ge(1)]``) are checked by pydantic. A ``__post_init__`` may raise
    ConfigError; a message that begins with the name of a field (``"epochs: must be at least 1, got 0"``) is
    completed to the dotted path of that field.

    Args:
        cls: A dataclass; fields may be dataclasses, components (``Annotated[Component[...], REGISTRY]``),
            ``Literal``, optional, lists, tuples, paths, mappings.
        path: The YAML file, or None.
        overrides: ``a.b=value``; the value is read as YAML.
        base: Values below the file, for callers that hold a config in memory.
        renamed: What a setting is called now, by the dotted key that it had before.

    Raises:
        ConfigError: All mistakes that were found, one line each, with path and nearest valid name.
    """
    mistakes: list[str] = []
    given: list[str] = []
    try:
        config = OmegaConf.create(plain_value(base or {}))
        if path is not None:
            content_of_file = read_file(path, mistakes)
            if not path.is_file():  # what else is missing would only follow from that
                raise ConfigError(*mistakes)
            content_of_file = _refuse_resolvers(content_of_file, str(path), "", mistakes)
            config = OmegaConf.merge(config, OmegaConf.create(content_of_file))
        for override in overrides:
            key, separator, text = override.partition("=")
            key = key.strip()
            if not separator or not key:
                mistakes.append(f"command line: {override!r} is not of the form key=value")
                continue
            value = parse(text, mistakes, f"command line: {key}")
            if value is not WRONG:
                _override(config, key, _refuse_resolvers(value, "command line", key, mistakes), mistakes)
                given.append(key)
        content: Any = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or ""
        mistakes.append(f"{path or 'config'}: {key}{': ' if key else ''}{str(error).splitlines()[0]}")
        raise ConfigError(*mistakes) from error

    def origin(key: str) -> str:
        from_command = any(key == name or (key and name.startswith(f"{key}.")) for name in given)
        from_command = from_command or any(key.startswith((f"{name}.", f"{name}[")) for name in given)
        return "command line" if from_command else str(path or "config")

    reader = Reader(origin=origin, all_keys=tuple(paths(cls)), renamed=renamed or {})
    result = reader.read(cls, content, "")
    ConfigError.raise_if([*mistakes, *reader.mistakes])
    return typing.cast(T, result)
