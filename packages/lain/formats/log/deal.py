"""From raw values on disk to indices and numbers on disk."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from jaxtyping import Int, Shaped

from lain.formats.log.entries import Fitted
from lain.formats.log.fit import SplitRule
from lain.formats.log.plan import Plan


def encoded(plan: Plan, fitted: Fitted, rule: SplitRule, piece: pl.DataFrame) -> pl.DataFrame:
    """A piece of the spool with indices for ids and numbers for features."""
    found: dict[str, Any] = {"u": fitted.users.encode(piece["u"])}
    if "i" in piece.columns:
        found["i"] = fitted.items.encode(piece["i"])
    for name in ("t", "b", "r", "n"):
        if name in piece.columns:
            found[name] = piece[name]
    if "y" in piece.columns:
        found["y"] = piece["y"].fill_null(0)
        found["s"] = rule.codes(piece)
    elif "s" in piece.columns:
        found["s"] = piece["s"]
    for encoder in plan.in_log("context"):
        if f"f:{encoder.name}" in piece.columns:
            values = encoder.encode(piece[f"f:{encoder.name}"])
            found[f"f:{encoder.name}"] = values if values.ndim == 1 else _as_arrays(values)
    lists = "h" in piece.columns
    for name, column in plan.columns.items():
        if f"c:{name}" in piece.columns:
            raw = piece[f"c:{name}"]
            found[f"c:{name}"] = _encoded_lists(raw, column.encode) if lists else column.encode(raw)
    if lists:
        found["h"] = _encoded_lists(piece["h"], fitted.items.encode)
        if "ht" in piece.columns:
            found["ht"] = piece["ht"]
    return pl.DataFrame(found)


def _encoded_lists(lists: pl.Series, encode: Any) -> pl.Series:
    """Lists with every entry encoded."""
    flat = encode(lists.explode(empty_as_null=False, keep_nulls=False))
    lengths = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return _as_lists(flat, offsets)


def _as_arrays(values: Shaped[np.ndarray, "rows width"]) -> pl.Series:
    """Rows of equal length."""
    inner = pl.Float32 if values.dtype == np.float32 else pl.Int32
    return pl.Series(values, dtype=pl.Array(inner, values.shape[1]))


def _as_lists(flat: np.ndarray, offsets: Int[np.ndarray, " edges"]) -> pl.Series:
    array = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(flat))
    found = pl.from_arrow(array)
    assert isinstance(found, pl.Series)
    return found
