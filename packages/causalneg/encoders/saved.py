"""Encoders from a folder: one that was saved here, or a transformer as other libraries leave it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from causalneg.encoders.base import CONFIG_FILE, Encoder, read_json
from causalneg.encoders.models import locate_model
from causalneg.encoders.small import SmallTransformer
from causalneg.encoders.static import StaticEncoder
from common.errors import DataError, suggest


def _transformer() -> type[Encoder]:
    from causalneg.encoders.transformer import HFEncoder  # takes seconds

    return HFEncoder


KINDS: dict[str, Callable[[], type[Encoder]]] = {
    "static": lambda: StaticEncoder,
    "small": lambda: SmallTransformer,
    "transformer": _transformer,
}
"""Classes by the name that a saved folder holds."""


def build(*, folder: Path, trust_remote_code: bool = False) -> Encoder:
    """An encoder that was saved.

    Args:
        folder: Folder of an encoder, of a run, or of a model of Hugging Face or sentence-transformers.
        trust_remote_code: Whether code that lies in the folder may run.
    """
    return find_encoder(folder, trust_remote_code=trust_remote_code)


def find_encoder(path: Path, *, trust_remote_code: bool = False) -> Encoder:
    """The encoder of a run folder, of the folder itself, or a packaged one; see :func:`load_encoder`."""
    return load_encoder(encoder_folder(path), trust_remote_code=trust_remote_code)


def encoder_folder(path: Path) -> Path:
    """Where the encoder of a run folder, of a folder of its own, or of a package lies."""
    inner = Path(path) / "encoder"
    return inner if inner.is_dir() else Path(locate_model(path))


def load_encoder(folder: Path | str, *, trust_remote_code: bool = False) -> Encoder:
    """Read an encoder that :meth:`Encoder.save` wrote, or a transformer as others leave it.

    Args:
        folder: Its folder; also that of a model of Hugging Face or sentence-transformers.
        trust_remote_code: Whether code that lies in the folder may run. What the folder says of itself does
            not count.

    Raises:
        DataError: The folder holds no encoder, a broken one, or one that needs code of its own to run.
    """
    folder = Path(folder)
    foreign = (folder / "modules.json").is_file()
    settings = {} if foreign else read_json(folder / CONFIG_FILE)
    kind = settings.pop("causalneg_encoder", None)
    if foreign or (kind is None and "model_type" in settings):
        from causalneg.encoders.transformer import HFEncoder

        try:
            return HFEncoder.build(model=folder, offline=True, trust_remote_code=trust_remote_code)
        except ValueError as error:
            raise DataError(f"{folder}: {error}") from error
    if kind is None:
        raise DataError(f"{folder / CONFIG_FILE}: does not name a kind of encoder; was it saved by train?")
    if kind not in KINDS:
        raise DataError(
            f"{folder / CONFIG_FILE}: unknown kind of encoder '{kind}'{suggest(str(kind), KINDS)}"
        )
    if settings.pop("trust_remote_code", False):
        if not trust_remote_code:
            raise DataError(
                f"{folder}: its model needs code that lies in the folder; read that code, and let it run "
                "with --trust-remote-code (in a config, encoder.trust_remote_code=true)"
            )
        settings["trust_remote_code"] = True
    try:
        return KINDS[kind]()._load_parts(folder, settings)
    except (TypeError, ValueError) as error:
        raise DataError(f"{folder / CONFIG_FILE}: does not describe an encoder ({error})") from error
