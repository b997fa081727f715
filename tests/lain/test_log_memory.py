"""Memory of `lain prepare log` does not grow with the rows, but for some bytes each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

PREPARE = """
import resource, sys
from pathlib import Path
from lain.formats.log import load_schema, prepare_log
from lain.formats.tables import Progress
source, out, schema = map(Path, sys.argv[1:])
prepare_log(source, out, load_schema(schema), Progress(False), part_rows=100_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""
SCHEMA = """
columns: {user: user, item: item, time: time, label: click}
features: {place: {}, price: {kind: numeric}, hour: {kind: hour}}
history: {events: click == 1, columns: {place: {}}}
"""
BYTES_PER_ROW = 40
"""Far below what a row takes anywhere else: 60 bytes of text, 100 in a table, 50 in the prepared set."""


def peak(folder: Path, rows: int) -> int:
    """Peak memory of a preparation, in bytes."""
    rng = np.random.default_rng(0)
    source = folder / str(rows)
    source.mkdir(parents=True)
    for number in range(0, rows, 200_000):
        size = min(200_000, rows - number)
        pl.DataFrame({
            "user": rng.integers(5_000, size=size), "item": rng.integers(5_000, size=size),
            "time": 1_700_000_000 + rng.integers(30 * 86_400, size=size), "click": rng.integers(2, size=size),
            "place": rng.integers(40, size=size), "price": rng.normal(size=size).round(4),
        }).write_csv(source / f"{number:08d}.csv")  # fmt: skip
    (folder / "log.yaml").write_text(SCHEMA)
    paths = map(str, (source, folder / f"out-{rows}", folder / "log.yaml"))
    command = [sys.executable, "-c", PREPARE, *paths]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.slow
def test_memory_is_bounded(tmp_path: Path) -> None:
    small, large = 400_000, 3_000_000
    grown = peak(tmp_path, large) - peak(tmp_path, small)
    assert grown < BYTES_PER_ROW * (large - small)
