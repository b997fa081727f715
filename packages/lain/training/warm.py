"""Start a training from the weights of a run on older data, whose vocabularies have grown since."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch

from common.errors import ConfigError, DataError
from common.training.checkpoint import best_checkpoint, load_checkpoint
from common.training.record import Record
from common.training.run import RECORD_FILE
from lain.data.schema import Feature, file_stem
from lain.data.store import Store
from lain.formats.log.encode import FOLDER as ENCODING_FOLDER
from lain.formats.log.vocabulary import UNKNOWN
from lain.formats.log.write import ENCODING
from lain.layers.embedding import module_key
from lain.model import CTRModel

PARTS = {"item": "items", "user": "context", "context": "context", "behaviour": "columns"}
"""The part of a model that embeds the features of a source."""


@torch.no_grad()
def warm_start(
    model: CTRModel, run: Path, before: Sequence[Feature], store: Store, *, same_encoding: bool = False
) -> dict[str, int]:
    """Give a model the best weights of a run on older data.

    Tables keep their old rows, bit for bit. Rows of values that are new to a log's vocabulary start as that
    of the unknown value, so that before the first step the model scores as the run does.

    Args:
        model: The model, made for the newer data.
        run: The run folder.
        before: The features that the run was trained on.
        store: The newer data.
        same_encoding: Whether ids that both have stand for the same things, where no vocabulary says so.

    Returns:
        Number of new rows of each table that grew.

    Raises:
        ConfigError: The run's model has other parts.
        DataError: The run has no weights, or ids of the newer data stand for other things.
    """
    _check_growth(run, before, store, same_encoding=same_encoding)
    weights = load_checkpoint(best_checkpoint(run))["state_dict"]
    old = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    own = model.state_dict()
    tables = {f"{PARTS[f.source]}.layers.{module_key(f.name)}.weight": f for f in store.features}
    from_log = ENCODING in store.vocabularies
    grown: dict[str, int] = {}
    wrong = sorted(own.keys() ^ old.keys())
    for name in own.keys() & old.keys():
        kept, new = old[name], own[name]
        if kept.shape == new.shape:
            new.copy_(kept)
        elif name in tables and kept.shape[1:] == new.shape[1:] and len(kept) < len(new):
            new[: len(kept)] = kept
            if from_log:
                new[len(kept) :] = kept[UNKNOWN]
            grown[tables[name].name] = len(new) - len(kept)
        else:
            wrong.append(name)
    if wrong:
        raise ConfigError(
            f"--from {run}: its model has other parts ('{sorted(wrong)[0]}' differs); give model, embedding, "
            f"head, history.columns and length as {run / 'config.yaml'} has them"
        )
    return grown


def _check_growth(run: Path, before: Sequence[Feature], store: Store, *, same_encoding: bool) -> None:
    """Refuse data in which an old id stands for another thing than in the run."""
    now = {(f.source == "behaviour", f.name): f for f in store.features}
    wrong = []
    for feature in before:
        twin = now.pop((feature.source == "behaviour", feature.name), None)
        if twin is None:
            wrong.append(f"{store.path}: feature {feature.name} is missing, {run} was trained on it")
        elif (twin.source, twin.kind, twin.width) != (feature.source, feature.kind, feature.width):
            wrong.append(f"{store.path}: feature {feature.name} has another kind than in {run}")
        elif twin.size < feature.size:
            wrong.append(
                f"{store.path}: feature {feature.name} has {twin.size} values, {run} knows {feature.size}"
            )
    wrong += [f"{store.path}: feature {f.name} is not one that {run} was trained on" for f in now.values()]
    DataError.raise_if(wrong)
    folder = run / ENCODING_FOLDER
    if folder.is_dir() and ENCODING in store.vocabularies:
        differing = _differing(folder, store)
        if differing:
            raise DataError(
                f"{store.path}: {differing} does not grow from what {run} knows; prepare the log with "
                f"`lain prepare log SOURCE OUT --from {run}`"
            )
    elif not same_encoding and store.fingerprint != Record.load(run / RECORD_FILE).inputs.get("data"):
        raise DataError(
            f"{store.path}: nothing says that its ids stand for the same things as those of {run}; if they "
            "do, say so with --same-encoding"
        )


def _differing(folder: Path, store: Store) -> str | None:
    """The first vocabulary or scale of a run that the store does not go on from."""
    old, new = (_about(file) for file in (folder / file_stem(ENCODING), store.vocabularies[ENCODING]))
    for part, prefix in (("features", ""), ("columns", "behaviour ")):
        for name, state in old[part].items():
            if new[part].get(name) != state:
                return f"the scale of {prefix}{name}"
    for name, file in store.vocabularies.items():
        kept = folder / file_stem(name)
        if name in (ENCODING, "item_id", "user_id") or not kept.is_file():
            continue
        values, grown = pl.read_parquet(kept)["value"], pl.read_parquet(file)["value"]
        if not values.equals(grown.head(len(values))):
            return f"the vocabulary of {name}"
    return None


def _about(file: Path) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from None
