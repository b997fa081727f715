"""What sentence-transformers noted in a model's folder: pooling, prompts, the longest text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causalneg.encoders.base import CONFIG_FILE, Pooling, departure, read_json
from common.errors import DataError

_MODULES = "modules.json"


@dataclass(frozen=True)
class Noted:
    """What sentence-transformers noted in a folder beside the model.

    Args:
        home: Folder of the model's own files.
        pooling: Which tokens make the vector; None where it was not noted.
        query_prompt: What is put in front of a query.
        document_prompt: What is put in front of a document.
        max_tokens: Tokens of a text that are read; None where it was not noted.
        own_ending: Whether the tokenizer decides how a text ends.
    """

    home: Path
    pooling: Pooling | None = None
    query_prompt: str = ""
    document_prompt: str = ""
    max_tokens: int | None = None
    own_ending: bool = False

    def departures(self, **asked: Any) -> list[str]:
        """What is asked for otherwise than it was noted, in words; what was not noted may be anything."""
        own = {key: getattr(self, key) for key in asked}
        found = [
            departure(key, value, own[key])
            for key, value in asked.items()
            if value is not None and own[key] is not None
        ]
        return [one for one in found if one is not None]


def read_noted(folder: Path) -> Noted | None:
    """What a folder of sentence-transformers says of itself; None for other folders.

    Raises:
        DataError: It holds a module that cannot be read here, or ranks by the dot product of vectors that are
            not normalised.
    """
    parts = _modules(folder)
    if not parts:
        return None
    pooling: Pooling | None = None
    for kind, path in parts:
        if kind == "Pooling":
            pooling = _pooling(path / CONFIG_FILE)
        elif kind not in ("Transformer", "Normalize"):
            raise DataError(f"{folder / _MODULES}: has a module '{kind}', which cannot be read here")
    noted = folder / "config_sentence_transformers.json"
    if _noted(noted, "similarity_fn_name") == "dot" and "Normalize" not in [kind for kind, _ in parts]:
        raise DataError(
            f"{noted}: ranks by the dot product of vectors of any length, but here every vector has length "
            "1, so it would rank otherwise; take a model that ranks by the cosine"
        )
    home = parts[0][1]
    length = _noted(home / "sentence_bert_config.json", "max_seq_length")
    length = length or _noted(home / "tokenizer_config.json", "model_max_length")
    prompts = _noted(noted, "prompts") or {}
    return Noted(
        home,
        pooling,
        query_prompt=prompts.get("query") or "",
        document_prompt=prompts.get("document") or prompts.get("passage") or "",
        max_tokens=length if isinstance(length, int) else None,
        own_ending=True,
    )


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Kind and folder of each module of sentence-transformers; none where it did not write the folder."""
    path = folder / _MODULES
    if not path.is_file():
        return []
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        return [(str(one["type"]).rpartition(".")[2], folder / one["path"]) for one in listed]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: does not list modules ({error}); export the model again") from error


def _noted(path: Path, key: str) -> Any:
    """What a file says under a key; None where it says nothing, or is not there."""
    return read_json(path).get(key) if path.is_file() else None


def _pooling(path: Path) -> Pooling:
    """What the Pooling module of sentence-transformers does, in the words of this package."""
    config = read_json(path)
    names: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
    flags = {
        "cls": "pooling_mode_cls_token",
        "mean": "pooling_mode_mean_tokens",
        "lasttoken": "pooling_mode_lasttoken",
    }
    chosen = [name for name, flag in flags.items() if config.get(flag)] or [str(config.get("pooling_mode"))]
    if len(chosen) != 1 or chosen[0] not in names:
        raise DataError(
            f"{path}: pools by {' and '.join(chosen)}; here there is mean, last token and first token"
        )
    return names[chosen[0]]
