"""Stand-ins for training that leave real run folders; importable, since studies spawn their workers."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.metrics.ctr import ctr_metrics
from common.study.plan import RunSpec
from common.training.record import Record

BUCKETS = ("0-50", "50-100", "100-200", "200+")


def count_call(folder: Path) -> None:
    """Leave a trace of every call, however it ends."""
    with (folder.parent / "calls.txt").open("a") as file:
        file.write(f"{folder.name}\n")


def finish(spec: RunSpec, folder: Path, metrics: dict[str, float | None]) -> None:
    """Leave a finished record."""
    record = Record.start(config=spec.config, seed=spec.seed, parameters=1000 + 20 * (spec.arm != "base"))
    record.notes["milliseconds_per_sample"] = 0.1 + 0.01 * (spec.arm != "base")
    record.finish({f"test/{key}": value for key, value in metrics.items()} | {"valid/auc": 0.5})
    record.save(folder / "record.json")


def small(spec: RunSpec, folder: Path) -> None:
    """Finish at once, or as the settings say: fail, die, or go on for long."""
    count_call(folder)
    match spec.config.get("do"):
        case "fail":
            raise ValueError("two\nlines")
        case "die":
            os._exit(9)
        case "sleep":
            (folder / "pid").write_text(str(os.getpid()))
            time.sleep(60)
    finish(spec, folder, {"auc": 0.5 + spec.seed / 10, "gauc": None})


def simulate(spec: RunSpec, folder: Path) -> None:
    """Scores of a model whose error depends on arm, history length and maximum length.

    LAIN helps histories under 100 and harms those over 200; temperature-loglength does nothing.
    """
    count_call(folder)
    world = np.random.default_rng(0)
    users, rows = 400, 6000
    length_of = np.minimum(world.lognormal(4.4, 1.2, users).astype(np.int32), 1000)
    user = world.integers(0, users, rows).astype(np.int32)
    item = world.integers(1, 300, rows).astype(np.int32)
    length, logit = length_of[user], world.normal(-0.3, 1.2, rows)
    probability = 1 / (1 + np.exp(-logit))
    label = (world.random(rows) < probability).astype(np.uint8)

    own = np.random.default_rng([spec.seed, *spec.backbone.encode()])
    kept = spec.config["history"]["max_length"]
    error = 1.0 + 0.3 * (np.log1p(length) - np.log1p(np.minimum(length, kept)))
    if spec.arm.startswith("lain"):
        error = np.where(length < 100, error - 0.4, np.where(length >= 200, error + 0.5, error))
    common = np.random.default_rng(7).normal(0, 1, rows)
    guess = logit + error * (0.95 * common + 0.3 * own.normal(0, 1, rows))
    score = 1 / (1 + np.exp(-guess))
    columns = {"user": user, "item": item, "length": length, "label": label, "score": score}
    (folder / "predictions").mkdir(exist_ok=True)
    pq.write_table(pa.table({**columns, "probability": probability}), folder / "predictions/test.parquet")

    prompt = 0.2 if spec.arm.startswith("lain") else 0.0
    shape = {
        branch: {
            name: {"gini": 0.3 + 0.1 * place, "entropy": 0.9, "prompt_mass": prompt / (1 + place)}
            for place, name in enumerate(BUCKETS)
        }
        for branch in ("short", "long")
    }
    (folder / "attention.json").write_text(json.dumps(shape))
    found = ctr_metrics(label=label, score=score, user=user, length=length, probability=probability)
    finish(spec, folder, dict(found.values))
