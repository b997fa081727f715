"""Scores for the rows of a log: raw ids in, raw ids out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from common.files import atomic_path
from lain.data.module import CTRData
from lain.evaluation.predictions import predict
from lain.formats.log.encode import encode_rows
from lain.formats.log.write import ROWS
from lain.formats.tables import Progress
from lain.model import CTRModel


def score_log(
    model: CTRModel,
    encoding: Path,
    source: Path,
    out: Path,
    *,
    open_rows: Callable[[Path], CTRData],
    history: Path | None = None,
    progress: bool = False,
) -> list[str]:
    """Score the rows of a log with a trained model, and write them in the order of the log.

    The file has columns ``user`` and ``item`` (raw ids, as text), ``length`` of the history and ``score``;
    a row that shows several items becomes several.

    Args:
        model: The model.
        encoding: The run that it is from, or the prepared data set that it was trained on.
        source: The log: a file, a folder or a pattern.
        out: The Parquet file to write.
        open_rows: Opens a prepared data set as the model reads it.
        history: A log of earlier events that histories are made of.
        progress: Whether to say on standard error how far reading is.

    Returns:
        What the user should know, one line each.

    Raises:
        DataError: The run keeps no encoding of raw values, or the log has mistakes.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        rows = encode_rows(
            encoding, source, Path(folder) / ROWS, history=history, progress=Progress(progress)
        )
        data = open_rows(rows.path)
        found = predict(model, data.eval_loader(ROWS), data.store.split(ROWS))
        order = np.argsort(rows.number)
        table = pl.DataFrame({
            "user": rows.user[order],
            "item": rows.item[order],
            "length": np.asarray(found.length)[order],
            "score": found.score[order],
        })  # fmt: skip
        with atomic_path(out) as temporary:
            table.write_parquet(temporary)
    return rows.notices
