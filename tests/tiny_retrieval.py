"""A retrieval data set of a dozen documents, and the command line run on it inside the test's process."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from causalneg.cli import main
from causalneg.data import write_dataset
from causalneg.data.schema import Document, Query

SUBJECTS = ("fox", "owl", "bee", "cod", "elm", "oak")
PLACES = ("den", "barn", "hive", "sea", "hill", "park")

DOCUMENTS = [
    Document(id=f"{subject}{number}", text=f"The {subject} of {place} number {number} is {colour}.")
    for subject, place in zip(SUBJECTS, PLACES, strict=True)
    for number, colour in enumerate(("red", "blue"))
]
QUERIES = [
    Query(id=f"q-{subject}{number}", text=f"Which {subject} of {place} is {colour}?")
    for subject, place in zip(SUBJECTS, PLACES, strict=True)
    for number, colour in enumerate(("red", "blue"))
]
QRELS = {"train": {query.id: {query.id.removeprefix("q-"): 1} for query in QUERIES}}
QRELS["test"] = dict(list(QRELS["train"].items())[:6])

TRAIN = [
    "train.batch_size=4", "fit.epochs=1", "fit.progress=false", "fit.accelerator=cpu", "fit.log_every=1",
    "tracking.wandb=disabled", "diagnose.holdout=0.0", "exact=false", "encoder={name: static, dim: 16}",
]  # fmt: skip
"""Settings of a training that takes a second."""


def tiny_data(folder: Path) -> Path:
    """Write the data set as a BEIR folder."""
    write_dataset(folder, DOCUMENTS, QUERIES, QRELS)
    return folder


def causalneg(*arguments: object) -> Result:
    """Run the command line; it must succeed."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, f"{result.output}\n{result.stderr}"
    return result


def train(folder: Path, data: Path, *settings: str) -> Path:
    """Mine and train, and give the run folder."""
    config = folder / "train.yaml"
    config.write_text(json.dumps({"data": str(data), "out": str(folder / "runs"), "name": "run"}))
    mined = folder / "mined.jsonl"
    causalneg("mine", data, mined, "--count", 2, "--depth", 6, "--quiet")
    sets = f"sets=[{{path: {mined}, count: 2}}]"
    return Path(causalneg("train", config, sets, *TRAIN, *settings).stdout.strip().splitlines()[-1])
