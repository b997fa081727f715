"""A term of the loss is one file and one line in TERMS."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from causalneg.losses import TERMS
from tiny_retrieval import tiny_data, train

FILE = '''
from __future__ import annotations
from typing import Annotated
from annotated_types import Ge
import torch
from causalneg.losses.term import EmbeddedBatch, Term

class Spread(Term):
    """Pushes the positives of a batch apart.

    Args:
        weight: Its weight.
        power: Power of the cosine.
    """

    def __init__(self, *, weight: Annotated[float, Ge(0)] = 1.0, power: Annotated[int, Ge(1)] = 2) -> None:
        super().__init__(weight=weight)
        self.power = power

    def value(self, batch: EmbeddedBatch) -> torch.Tensor:
        return (batch.positive @ batch.positive.T).pow(self.power).mean()
'''


def test_a_loss_from_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny_spread.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    TERMS.add("spread", "tiny_spread:Spread")
    try:
        run = train(
            tmp_path, tiny_data(tmp_path / "data"), "loss.terms=[{name: spread, weight: 0.5, power: 4}]"
        )
    finally:
        TERMS.remove("spread")
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/spread")]
    assert rows
    for row in rows:
        assert 0 < float(row["train/spread"]) <= 0.5
        assert float(row["train/loss"]) == pytest.approx(
            float(row["train/info_nce"]) + float(row["train/spread"]), rel=1e-5
        )
