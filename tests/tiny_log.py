"""A small run on a log of raw ids, made by the real command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import yaml
from click.testing import CliRunner, Result

from lain.cli import main

FAST = [
    "embedding.dim=16",
    "head.hidden=[24]",
    "history.max_length=60",
    "train.batch_size=64",
    "fit.max_steps=4",
    "fit.progress=false",
    "fit.accelerator=cpu",
    "tracking.wandb=disabled",
    "diagnose_rows=0",
]
"""Settings of a run that takes a second."""

SCHEMA = """
columns: {user: who, item: what, time: when, label: clicked}
ids: {user: true}
features:
  topic: {source: item, kind: list, separator: "|", min_count: 1}
  age: {source: user, kind: numeric}
  place: {min_count: 1}
  price: {kind: buckets, buckets: 4}
  hour: {kind: hour}
items: [{file: items.csv, key: what}]
history: {events: clicked == 1, columns: {place: {min_count: 1}}}
splits: {by: time, fractions: [0.6, 0.2, 0.2]}
"""


def lain(*args: object) -> Result:
    """The command, which has to succeed."""
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exit_code == 0, result.output
    return result


def train(data: Path, *settings: str) -> Path:
    """The folder of a short run on prepared data."""
    config = data.parent / "train.yaml"
    config.write_text(yaml.safe_dump({"data": str(data), "out": str(data.parent / "runs")}))
    return Path(lain("train", config, *FAST, *settings).output.splitlines()[-1])


def make_log(folder: Path, *, rows: int = 300) -> pl.DataFrame:
    """Write ``log.csv``, ``items.csv`` and ``log.yaml``: columns of every kind, 9 users, 15 items."""
    rng = np.random.default_rng(1)
    user = rng.integers(9, size=rows)
    log = pl.DataFrame({
        "who": [f"u{u}" for u in user], "what": rng.integers(15, size=rows),
        "when": 1_700_000_000 + np.sort(rng.choice(100_000, rows, replace=False)),
        "clicked": rng.integers(2, size=rows), "age": 20 + user * 5,
        "place": [["a", "b", None][n] for n in rng.integers(3, size=rows)],
        "price": rng.normal(size=rows).round(2),
    })  # fmt: skip
    items = {"what": range(15), "topic": [f"t{n % 4}|t{n % 3}" for n in range(15)]}
    pl.DataFrame(items).write_csv(folder / "items.csv")
    log.write_csv(folder / "log.csv")
    (folder / "log.yaml").write_text(SCHEMA)
    return log


def make_log_run(folder: Path, *settings: str) -> tuple[Path, pl.DataFrame]:
    """A run on that log, whose data are gone, and the log."""
    log = make_log(folder)
    lain("prepare", "log", folder / "log.csv", folder / "data", "--schema", folder / "log.yaml", "--quiet")
    run = train(folder / "data", "history.columns=[place, gap]", "length.preset=lain", *settings)
    kept = folder / "kept"
    shutil.move(run, kept)
    for gone in ("data", "runs"):
        shutil.rmtree(folder / gone)
    (folder / "items.csv").unlink()
    return kept, log
