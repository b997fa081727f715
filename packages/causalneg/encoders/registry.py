"""Encoders by name.

A new encoder is a class with a class method ``build`` whose keyword arguments are its settings, and a line
``ENCODERS.add("name", "module:Class.build")``. Its ``kind`` is that name: a saved folder is read back by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from causalneg.encoders.base import Encoder
from causalneg.encoders.small import SmallTransformer
from causalneg.encoders.static import StaticEncoder
from common.config import Registry, read_component

ENCODERS: Registry[Encoder] = Registry("encoder", given={"texts", "seed"})
"""Encoders by name; code passes the corpus (``texts``) and the seed of the weights."""

ENCODERS.add("static", StaticEncoder.build)
ENCODERS.add("small", SmallTransformer.build)
# transformers and peft take seconds to import, so only when they are asked for
ENCODERS.add("transformer", "causalneg.encoders.transformer:HFEncoder.build")
ENCODERS.add("saved", "causalneg.encoders.saved:build")


def encoder_class(kind: str) -> type[Encoder] | None:
    """The class of a registered encoder; None where no class is registered under that name."""
    owner = getattr(ENCODERS[kind], "__self__", None) if kind in ENCODERS else None
    return owner if isinstance(owner, type) and issubclass(owner, Encoder) else None


def build_encoder(
    name: str, options: Mapping[str, Any], *, texts: Sequence[str] = (), seed: int = 0
) -> Encoder:
    """Make an encoder by name, for callers without a config.

    Args:
        name: One of :data:`ENCODERS`.
        options: Its settings.
        texts: The corpus that the vocabulary of ``static`` and ``small`` is made from.
        seed: Of random weights.

    Raises:
        ConfigError: The name is unknown, or a setting is unknown or out of range.
    """
    return read_component(ENCODERS, {"name": name, **options}, "encoder").build(texts=texts, seed=seed)
