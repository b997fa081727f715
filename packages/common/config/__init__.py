"""Typed settings: one YAML file and ``key=value`` overrides, every mistake reported at once.

A component's constructor is its config: a :class:`Registry` holds named constructors, a field
``Annotated[Component[T], REGISTRY]`` is written ``{name: twin, top_k: 50}``, and :func:`settings` lists
every key.
"""

from common.config.checked import Dropout, Positive, Share, checked
from common.config.listing import Setting, settings
from common.config.load import load
from common.config.plain import config_hash, plain_value, save, to_dict, to_yaml
from common.config.registry import Component, Registry
from common.config.typed import MISSING, read_component
from common.config.yaml_text import read_yaml

__all__ = [
    "MISSING",
    "Component",
    "Dropout",
    "Positive",
    "Registry",
    "Setting",
    "Share",
    "checked",
    "config_hash",
    "load",
    "plain_value",
    "read_component",
    "read_yaml",
    "save",
    "settings",
    "to_dict",
    "to_yaml",
]
