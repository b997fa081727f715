"""A new backbone is one file and one registry line: its constructor is its settings, `lain train` runs it."""

from __future__ import annotations

from pathlib import Path

import yaml

from command import run_with

TOY = '''
"""The mean of a history's last behaviours, times the target."""

from typing import Annotated

from annotated_types import Ge
from torch import nn

from lain.backbones import BACKBONES, Backbone, Interests, Memory


class Mean(Backbone):
    """interest = scale * target * mean of the last behaviours.

    Args:
        width: Width of an item's vector.
        last: Behaviours that are read.
        scale: What the mean is multiplied by.
    """

    def __init__(self, *, width: int, last: Annotated[int, Ge(1)] = 10, scale: float = 1.0) -> None:
        super().__init__()
        self.width, self.last, self.scale = width, last, scale
        self.project = nn.Linear(width, width)

    @property
    def branches(self):
        return {"long": 0}

    @property
    def interest_width(self):
        return self.width

    def encode(self, table, spans, length):
        return Memory(spans.tail(self.last), {"item": self.project(table)})

    def score(self, memory, target, context, length):
        spans = memory.spans
        total = target.new_zeros(target.shape).index_add(0, spans.row, memory.rows["item"][spans.index])
        return Interests(self.scale * target * total / spans.lengths.clamp(min=1)[:, None])


BACKBONES.add("mean", Mean)
'''


def test_a_backbone_from_one_file(tmp_path: Path) -> None:
    train = ["train", "settings.yaml", "model={name: mean, last: 5}", "length.preset=lain", "name=run"]
    run_with(tmp_path, "mean_backbone", TOY, train)
    config = yaml.safe_load((tmp_path / "runs" / "run" / "config.yaml").read_text())
    assert config["model"] == {"name": "mean", "last": 5, "scale": 1.0}
    assert (tmp_path / "runs" / "run" / "predictions" / "test.parquet").is_file()
    wrong = run_with(tmp_path, "mean_backbone", TOY, [*train, "model.last=0", "model.scal=1"], code=2)
    assert "model.last: must be at least 1, got 0" in wrong
    assert "did you mean 'model.scale'?" in wrong
