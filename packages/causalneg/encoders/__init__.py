"""Encoders: a bag of words, a small transformer for embedded worlds, and any of Hugging Face."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from causalneg.encoders.base import CONFIG_FILE, Encoder, encode, even_chunks, read_json
from causalneg.encoders.small import SmallTransformer
from causalneg.encoders.static import StaticEncoder
from common.errors import ConfigError, DataError, suggest

if TYPE_CHECKING:
    from causalneg.encoders.transformer import HFEncoder

__all__ = [
    "Encoder",
    "HFEncoder",
    "SmallTransformer",
    "StaticEncoder",
    "build_encoder",
    "encode",
    "even_chunks",
    "load_encoder",
]

KINDS = ("static", "small", "transformer")
"""Names of the encoders."""


def __getattr__(name: str) -> Any:
    """Import transformers and peft, which take seconds, only when they are asked for."""
    if name == "HFEncoder":
        from causalneg.encoders.transformer import HFEncoder

        return HFEncoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _kind(name: str) -> type[Encoder]:
    if name == "transformer":
        from causalneg.encoders.transformer import HFEncoder

        return HFEncoder
    return StaticEncoder if name == "static" else SmallTransformer


def build_encoder(kind: str, options: Mapping[str, Any], *, texts: Sequence[str] = ()) -> Encoder:
    """Make an untrained encoder by name.

    Args:
        kind: ``"static"``, ``"small"`` or ``"transformer"``.
        options: Keyword arguments of the kind's ``build``.
        texts: The corpus that the vocabulary of ``static`` and ``small`` is made from.

    Raises:
        ConfigError: The kind is unknown, or an option is unknown or out of range.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown encoder '{kind}'{suggest(kind, KINDS)}; there are {', '.join(KINDS)}")
    build: Any = _kind(kind).build
    known = [name for name in inspect.signature(build).parameters if name != "texts"]
    ConfigError.raise_if(
        f"encoder '{kind}' has no option '{name}'{suggest(name, known)}"
        for name in options
        if name not in known
    )
    try:
        encoder: Encoder = build(texts, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"encoder '{kind}': {error}") from error
    return encoder


def load_encoder(folder: Path | str) -> Encoder:
    """Read an encoder that :meth:`Encoder.save` wrote, or a transformer as others leave it.

    Args:
        folder: Its folder; also that of a model of Hugging Face or sentence-transformers.

    Raises:
        DataError: The folder holds no encoder, or a broken one.
    """
    folder = Path(folder)
    foreign = (folder / "modules.json").is_file()
    settings = {} if foreign else read_json(folder / CONFIG_FILE)
    kind = settings.pop("causalneg_encoder", None)
    if foreign or (kind is None and "model_type" in settings):
        from causalneg.encoders.transformer import HFEncoder

        try:
            return HFEncoder.read_hub_folder(folder)
        except ValueError as error:
            raise DataError(f"{folder}: {error}") from error
    if kind is None:
        raise DataError(f"{folder / CONFIG_FILE}: says nothing of a kind of encoder; was it saved by train?")
    if kind not in KINDS:
        raise DataError(
            f"{folder / CONFIG_FILE}: unknown kind of encoder '{kind}'{suggest(str(kind), KINDS)}"
        )
    try:
        return _kind(kind)._load_parts(folder, settings)
    except (TypeError, ValueError) as error:
        raise DataError(f"{folder / CONFIG_FILE}: does not describe an encoder ({error})") from error
