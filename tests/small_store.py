"""Small prepared data sets for tests, with a feature of every kind."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.ragged import Ragged
from lain.data.schema import Feature
from lain.data.store import Store, sealed
from lain.data.writer import StoreWriter

HOURS = 24
FEATURES = (
    Feature("item_id", "item", "categorical", 0),
    Feature("category", "item", "categorical", 5),
    Feature("tags", "item", "list", 6, 3),
    Feature("image", "item", "vector", 0, 2),
    Feature("user_id", "user", "categorical", 0),
    Feature("group", "user", "categorical", 4),
    Feature("hour", "context", "categorical", HOURS),
)


def _column(values: Iterable[int]) -> np.ndarray:
    return np.array(list(values), dtype=np.int64)


@dataclass(frozen=True)
class Row:
    """One impression; ``length`` None means that nothing was cut off."""

    user: int
    item: int
    end: int
    label: int = 0
    length: int | None = None
    hour: int = 0


def seal(path: Path) -> None:
    """Have a store that a test changed pass for one that was written like this."""
    file = path / "dataset.json"
    file.write_text(json.dumps(sealed(path, json.loads(file.read_text()))))


def write(
    path: Path,
    histories: Sequence[Sequence[int]],
    splits: Mapping[str, Sequence[Row]],
    *,
    num_items: int,
    features: Sequence[Feature] = FEATURES,
    columns: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
) -> Store:
    """Write and open a store whose item and user features are random.

    ``columns`` are those of the behaviours, history after history.
    """
    rng = np.random.default_rng(seed)
    counts = {"item": num_items, "user": len(histories)}
    about = {"features": features, "num_items": num_items, "num_users": len(histories)}
    with StoreWriter(path, name="small", **about) as writer:  # type: ignore[arg-type]  # of several types
        for feature in features:
            if feature.source in ("context", "behaviour") or feature.name in ("item_id", "user_id"):
                continue
            shape = feature.shape(counts[feature.source])
            is_vector = feature.kind == "vector"
            values = rng.normal(size=shape) if is_vector else rng.integers(0, feature.size, shape)
            write_table = writer.items if feature.source == "item" else writer.users
            write_table(feature.name, values)
        writer.histories(Ragged.from_lists(histories), columns)
        for name, rows in splits.items():
            writer.split(name, len(rows)).append(
                user=_column(row.user for row in rows),
                item=_column(row.item for row in rows),
                end=_column(row.end for row in rows),
                length=_column(row.end if row.length is None else row.length for row in rows),
                label=_column(row.label for row in rows),
                context={"hour": _column(row.hour for row in rows)},
            )
    return Store.open(path)
