"""What tells a model's weights from others that lay under the same name before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

_PART = 1 << 16
_PARTS = 256


def weights_digest(folders: Iterable[str | Path]) -> str:
    """A digest of the models in some folders; empty if none is a folder.

    Of large files parts are read that lie evenly over them: training changes weights everywhere.

    Args:
        folders: Folders of a model and its adapter; names of models elsewhere are passed over.
    """
    digest, found = hashlib.blake2b(digest_size=6), False
    for folder in map(Path, folders):
        if not folder.is_dir():
            continue
        for path in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
            size, found = path.stat().st_size, True
            digest.update(f"{path.name}\0{size}\0".encode())
            with path.open("rb") as file:
                for start in range(0, size, max(_PART, size // _PARTS)):
                    file.seek(start)
                    digest.update(file.read(_PART))
    return digest.hexdigest() if found else ""


def local_identity(
    backend: str, model: str, folders: Iterable[str | Path], **options: object
) -> dict[str, str]:
    """Identity of a backend that loads weights itself: their digest, and every option that is set.

    Args:
        backend: Its name.
        model: Name of the model.
        folders: Where weights may lie.
        options: What changes an answer, by name; what is None or empty is left out.
    """
    weights = weights_digest(folders)
    chosen = {name: str(value) for name, value in options.items() if value not in (None, {}, "")}
    return {"backend": backend, "model": model, **({"weights": weights} if weights else {}), **chosen}
