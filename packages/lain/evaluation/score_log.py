"""Scores for the rows of a log: raw ids in, raw ids out."""

from __future__ import annotations

import tempfile
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
    max_length: int,
    batch_size: int,
    history: Path | None = None,
    columns: tuple[str, ...] = (),
    progress: bool = False,
) -> list[str]:
    """Score the rows of a log with a trained model, and write them in the order of the log.

    The file has the columns ``user`` and ``item`` (raw ids, as text), ``length`` (of the history), ``score``;
    a row that shows several items becomes several.

    Args:
        model: The model.
        encoding: The run that it is from, or the prepared data set that it was trained on.
        source: The log: a file, a folder or a pattern.
        out: The Parquet file to write.
        max_length: Behaviours of a history that are kept, counted from its end.
        batch_size: Rows per step.
        history: A log of earlier events that histories are made of.
        columns: Columns of the behaviours that the model reads.
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
        data = CTRData(
            rows.path,
            max_length=max_length,
            batch_size=batch_size,
            eval_batch_size=batch_size,
            columns=columns,
        )
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
