"""Encoders from a folder: one that was saved here, or a transformer as other libraries leave it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from causalneg.encoders.base import CONFIG_FILE, Dtype, Encoder, Pooling, departure, read_json
from causalneg.encoders.models import locate_model
from causalneg.encoders.registry import ENCODERS, encoder_class
from common.errors import ConfigError, DataError, suggest


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How an encoder's folder is read otherwise than it says of itself; None keeps what it says.

    Args:
        max_tokens: Tokens of a text that are read.
        pooling: Which tokens make the vector.
        query_prompt: What is put in front of a query.
        document_prompt: What is put in front of a document.
        dtype: Type of the weights.
    """

    max_tokens: int | None = None
    pooling: Pooling | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    dtype: Dtype | None = None

    def chosen(self) -> dict[str, Any]:
        """What is read otherwise."""
        return {key: value for key, value in vars(self).items() if value is not None}


def build(
    *,
    folder: Path,
    max_tokens: Annotated[int, Ge(1)] | None = None,
    pooling: Pooling | None = None,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    dtype: Dtype | None = None,
    trust_remote_code: bool = False,
) -> Encoder:
    """An encoder that was saved.

    Args:
        folder: Folder of an encoder, of a run, or of a model of Hugging Face or sentence-transformers; or
            the name of a packaged model (``minilm``).
        max_tokens: Tokens of a text that are read; by default as the folder says.
        pooling: Which tokens make the vector, of a transformer; by default as the folder says.
        query_prompt: What is put in front of a query; by default as the folder says.
        document_prompt: What is put in front of a document; by default as the folder says.
        dtype: Type of the weights of a transformer; by default as the folder says.
        trust_remote_code: Whether code that lies in the folder may run.
    """
    reading = Reading(
        max_tokens=max_tokens, pooling=pooling, query_prompt=query_prompt, document_prompt=document_prompt,
        dtype=dtype,
    )  # fmt: skip
    return find_encoder(folder, reading=reading, trust_remote_code=trust_remote_code)


def find_encoder(path: Path, *, reading: Reading | None = None, trust_remote_code: bool = False) -> Encoder:
    """The encoder of a run folder, of the folder itself, or a packaged one; see :func:`load_encoder`."""
    return load_encoder(encoder_folder(path), reading=reading, trust_remote_code=trust_remote_code)


def encoder_folder(path: Path) -> Path:
    """Where the encoder of a run folder, of a folder of its own, or of a package lies."""
    inner = Path(path) / "encoder"
    return inner if inner.is_dir() else Path(locate_model(path))


def load_encoder(
    folder: Path | str, *, reading: Reading | None = None, trust_remote_code: bool = False
) -> Encoder:
    """Read an encoder that :meth:`Encoder.save` wrote, or a transformer as others leave it.

    Args:
        folder: Its folder; also that of a model of Hugging Face or sentence-transformers.
        reading: What is read otherwise than the folder says; ``departures`` of the encoder lists it.
        trust_remote_code: Whether code that lies in the folder may run. What the folder says of itself does
            not count.

    Raises:
        ConfigError: This kind of encoder does not know something that is to be read otherwise.
        DataError: The folder holds no encoder, a broken one, or one that needs code of its own to run.
    """
    folder = Path(folder)
    chosen = reading.chosen() if reading is not None else {}
    foreign = (folder / "modules.json").is_file()
    settings = {} if foreign else read_json(folder / CONFIG_FILE)
    kind = settings.pop("causalneg_encoder", None)
    if foreign or (kind is None and "model_type" in settings):
        from causalneg.encoders.transformer import HFEncoder

        try:
            return HFEncoder.build(model=folder, offline=True, trust_remote_code=trust_remote_code, **chosen)
        except ValueError as error:
            raise DataError(f"{folder}: {error}") from error
    if kind is None:
        raise DataError(f"{folder / CONFIG_FILE}: does not name a kind of encoder; was it saved by train?")
    encoder_of = encoder_class(str(kind))
    if encoder_of is None:
        raise DataError(
            f"{folder / CONFIG_FILE}: unknown kind of encoder '{kind}'{suggest(str(kind), ENCODERS)}"
        )
    if settings.pop("trust_remote_code", False):
        if not trust_remote_code:
            raise DataError(
                f"{folder}: its model needs code that lies in the folder; read that code, and let it run "
                "with --trust-remote-code (in a config, encoder.trust_remote_code=true)"
            )
        settings["trust_remote_code"] = True
    known = {*settings, *(["dtype"] if kind == "transformer" else [])}
    ConfigError.raise_if(
        f"{key}: an encoder of the kind '{kind}' has none ({folder})" for key in chosen if key not in known
    )
    departures = [departure(key, value, settings[key]) for key, value in chosen.items() if key in settings]
    try:
        encoder = encoder_of._load_parts(folder, settings | chosen)
        encoder.departures = tuple(filter(None, departures))
        return encoder
    except (TypeError, ValueError) as error:
        raise DataError(f"{folder / CONFIG_FILE}: does not describe an encoder ({error})") from error
