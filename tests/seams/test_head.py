"""A new head is one file and one registry line; it can be conditioned on the length like any other."""

from __future__ import annotations

from pathlib import Path

import yaml

from command import run_with

TOY = '''
"""Logistic regression."""

from torch import nn

from lain.heads import HEADS, Head


class Logistic(Head):
    """logit = sharpness * (w . x + b).

    Args:
        width: Width of the input.
        sharpness: What the logit is multiplied by.
    """

    def __init__(self, *, width: int, sharpness: float = 1.0) -> None:
        super().__init__()
        self.width, self.sharpness, self.linear = width, sharpness, nn.Linear(width, 1)

    @property
    def conditioned_units(self):
        return self.width

    def forward(self, x, condition):
        return self.sharpness * self.linear(self.conditioned(x, condition))[:, 0]


HEADS.add("logistic", Logistic)
'''


def test_a_head_from_one_file(tmp_path: Path) -> None:
    train = ["train", "settings.yaml", "head={name: logistic, sharpness: 2}", "length.preset=loglength"]
    run_with(tmp_path, "logistic_head", TOY, [*train, "name=run", "model.name=sim"])
    config = yaml.safe_load((tmp_path / "runs" / "run" / "config.yaml").read_text())
    assert config["head"] == {"name": "logistic", "sharpness": 2.0}
    assert (tmp_path / "runs" / "run" / "predictions" / "test.parquet").is_file()
