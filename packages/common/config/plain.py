"""Configs as plain values: mappings, YAML, and what tells two of them apart."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from common.config.registry import Component
from common.config.yaml_text import Dumper
from common.files import atomic_write


def plain_value(value: Any) -> Any:
    """A value of a config as mappings, lists and scalars; paths become text."""
    if isinstance(value, Component):
        return {"name": value.name, **{key: plain_value(item) for key, item in value.options.items()}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain_value(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain mappings, lists and scalars; paths become text.

    Args:
        config: A dataclass instance or a mapping.

    Raises:
        TypeError: It is neither.
    """
    plain = plain_value(config)
    if not isinstance(plain, dict):
        raise TypeError(f"a config is a dataclass or a mapping, got {type(config).__name__}")
    return plain


def to_yaml(config: Any) -> str:
    """A config as YAML that :func:`load` reads back to an equal config.

    Args:
        config: A dataclass instance or a mapping.
    """
    text: str = yaml.dump(to_dict(config), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)
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
