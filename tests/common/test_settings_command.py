"""The list of settings: nothing is left out, every key says what it is, what it says can be written."""

from __future__ import annotations

import importlib

import click
import pytest
from click.testing import CliRunner

from common.config import load, settings
from common.config.typed import paths

METHODS = ["lain", "causalneg"]


def command(method: str) -> click.Command:
    found: click.Command = importlib.import_module(f"{method}.cli").main
    return found


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_has_a_line_of_meaning(method: str) -> None:
    config = importlib.import_module(f"{method}.training.config").TrainConfig
    listed = settings(config)
    assert [s.key for s in listed if not s.meaning] == []
    assert len({s.key for s in listed}) == len(listed) > 30
    groups = {s.key.split(".")[0].split("[")[0] for s in listed}
    assert groups == {path.split(".")[0] for path in paths(config)}


@pytest.mark.parametrize("method", METHODS)
def test_the_command_prints_them(method: str) -> None:
    shown = CliRunner().invoke(command(method), ["settings", "fit.epochs"], standalone_mode=False).output
    assert shown.startswith("fit.epochs = ")
    assert "Most passes over the training" in shown


@pytest.mark.parametrize("method", METHODS)
def test_a_default_that_is_listed_is_one_that_the_config_takes(method: str) -> None:
    config = importlib.import_module(f"{method}.training.config").TrainConfig
    shown = [s for s in settings(config) if s.default != "required" and not set("[") & set(s.key)]
    overrides = [f"{s.key}={s.default}" for s in shown]
    assert load(config, None, ["data=x", *overrides]) == load(config, None, ["data=x"])


def test_a_part_that_no_key_holds_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command("lain").main(["settings", "learning_rat"[::-1]])
    assert stopped.value.code == 2
    assert "no key holds" in capsys.readouterr().err
