"""Encoders: a bag of words, a small transformer, any of Hugging Face, and saved ones.

A new encoder is a class with a constructor method ``build`` whose keyword arguments are its settings, and a
line ``ENCODERS.add("name", "module:Class.build")``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from causalneg.encoders.base import Encoder, encode, even_chunks
from causalneg.encoders.saved import find_encoder, load_encoder
from causalneg.encoders.small import SmallTransformer
from causalneg.encoders.static import StaticEncoder
from common.config import Registry
from common.errors import ConfigError, suggest

if TYPE_CHECKING:
    from causalneg.encoders.transformer import HFEncoder

__all__ = [
    "ENCODERS",
    "Encoder",
    "HFEncoder",
    "SmallTransformer",
    "StaticEncoder",
    "build_encoder",
    "encode",
    "even_chunks",
    "find_encoder",
    "load_encoder",
]

ENCODERS: Registry[Encoder] = Registry("encoder", given={"texts", "seed"})
"""Encoders by name; code passes the corpus (``texts``) and the seed of the weights."""

ENCODERS.add("static", StaticEncoder.build)
ENCODERS.add("small", SmallTransformer.build)
# transformers and peft take seconds to import, so only when they are asked for
ENCODERS.add("transformer", "causalneg.encoders.transformer:HFEncoder.build")
ENCODERS.add("saved", "causalneg.encoders.saved:build")


def __getattr__(name: str) -> Any:
    """Import transformers and peft only when they are asked for."""
    if name == "HFEncoder":
        from causalneg.encoders.transformer import HFEncoder

        return HFEncoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
    if name not in ENCODERS:
        raise ConfigError(
            f"unknown encoder '{name}'{suggest(name, ENCODERS)}; there are {', '.join(ENCODERS)}"
        )
    known = ENCODERS.settings(name)
    ConfigError.raise_if(
        f"encoder '{name}' has no setting '{key}'{suggest(key, known)}" for key in options if key not in known
    )
    return ENCODERS.component(name, **options).build(texts=texts, seed=seed)
