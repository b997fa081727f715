"""A new part of the length, here a temperature, is one file and one registry line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from command import run_with

TOY = '''
"""A temperature that falls with a learned power of the length."""

import torch
from torch import nn

from lain.length import TEMPERATURES, Temperature


class Power(Temperature):
    """tau = (1 + L / center)^-w, from w = 0.

    Args:
        center: A length in behaviours; an option of every temperature.
    """

    def __init__(self, *, center: float = 100.0) -> None:
        super().__init__()
        self.center, self.weight = center, nn.Parameter(torch.zeros(()))

    def forward(self, length, scaled, encoding):
        return (1 + length.to(scaled.dtype) / self.center) ** -self.weight


TEMPERATURES.add("power", Power)
'''


@pytest.mark.parametrize("backbone", ["twin", "dien"])
def test_a_temperature_from_one_file(tmp_path: Path, backbone: str) -> None:
    train = ["train", "settings.yaml", "length.preset=lain", "length.temperature=power", "length.center=50"]
    run_with(tmp_path, "power_temperature", TOY, [*train, "name=run", f"model.name={backbone}"])
    run = tmp_path / "runs" / "run"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["length"]["temperature"] == "power"
    assert (run / "predictions" / "test.parquet").is_file()
    wrong = run_with(tmp_path, "power_temperature", TOY, [*train, "length.temperature=powr"], code=2)
    assert "there is no temperature 'powr'; did you mean 'power'?" in wrong
