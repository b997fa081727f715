"""What a run folder keeps of the items and users of its data, so that it scores without them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.files import fill_once
from lain.data.store import Store

CATALOG = "catalog"
"""Folder of a run that keeps the features of items and users, one array each, to be memory-mapped."""


def keep_catalog(store: Store, run: Path) -> None:
    """Copy the features of items and users, ``catalog/item/FEATURE.npy``, into the folder of a run, once."""

    def fill(folder: Path) -> None:
        for feature in store.features:
            tables = {"item": store.items, "user": store.users}.get(feature.source, {})
            if feature.name in tables:
                (folder / feature.source).mkdir(exist_ok=True)
                np.save(folder / feature.source / feature.file, tables[feature.name])

    fill_once(run / CATALOG, fill)
