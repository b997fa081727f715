"""Encoders: a bag of words, a small transformer, any of Hugging Face, and saved ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from causalneg.encoders.base import Encoder, encode, even_chunks
from causalneg.encoders.registry import ENCODERS, build_encoder
from causalneg.encoders.saved import find_encoder, load_encoder
from causalneg.encoders.small import SmallTransformer
from causalneg.encoders.static import StaticEncoder

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


def __getattr__(name: str) -> Any:
    """Import transformers and peft only when they are asked for."""
    if name == "HFEncoder":
        from causalneg.encoders.transformer import HFEncoder

        return HFEncoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
