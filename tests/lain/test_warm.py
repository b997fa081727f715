"""`lain prepare log --from` and `lain train --from`: newer data, grown vocabularies, old rows kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from click.testing import CliRunner, Result

from common.config import load
from common.errors import ConfigError, DataError
from lain.cli import main
from lain.data.store import Store
from lain.formats.log.vocabulary import UNKNOWN
from lain.training.config import TrainConfig
from lain.training.run import CTRTask, load_model
from tiny_log import FAST, lain, make_log, train

SETTINGS = ["history.columns=[place, gap]", "length.preset=lain", "fit.max_steps=8", "name=old"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An older run, and a newer log with users, items, topics and places that it does not know."""
    folder = tmp_path_factory.mktemp("warm")
    log = make_log(folder)
    lain("prepare", "log", folder / "log.csv", folder / "old", "--schema", folder / "log.yaml", "--quiet")
    train(folder / "old", *SETTINGS)
    newer = log.with_columns(
        when=pl.col("when") + 1_000_000,
        who=pl.when(pl.arange(pl.len()) % 3 == 0).then(pl.lit("a-new-user")).otherwise("who"),
        what=pl.when(pl.arange(pl.len()) % 4 == 0).then(pl.col("what") + 100).otherwise("what"),
        place=pl.when(pl.arange(pl.len()) % 5 == 0).then(pl.lit("A")).otherwise("place"),
        price=pl.col("price") * 7 + 3,
    )
    (folder / "newer").mkdir()
    newer.write_csv(folder / "newer" / "log.csv")
    items = [*range(15), *range(100, 115)]
    pl.DataFrame({"what": items, "topic": [f"t{n % 4}|s{n % 7}" for n in items]}).write_csv(
        folder / "newer" / "items.csv"
    )
    run = folder / "runs" / "old"
    lain("prepare", "log", folder / "newer" / "log.csv", folder / "new", "--from", run, "--quiet")
    return folder


def new_task(folder: Path, **options: Any) -> CTRTask:
    """The older run's settings on the newer data."""
    old = folder / "runs" / "old"
    return CTRTask(load(TrainConfig, old / "config.yaml", [f"data={folder / 'new'}", "name=new"]), **options)


def vocabulary(path: Path, name: str) -> list[str]:
    return pl.read_parquet(Store.open(path).vocabularies[name])["value"].to_list()


def test_ids_and_scales_grow(folder: Path) -> None:
    for name in ("item", "user", "topic", "place", "behaviour place"):
        old, new = vocabulary(folder / "old", name), vocabulary(folder / "new", name)
        assert new[: len(old)] == old
        assert len(new) > len(old), name
        assert len(set(new)) == len(new)
    states = [
        json.loads(Store.open(folder / which).vocabularies["encoding.json"].read_text())["features"]
        for which in ("old", "new")
    ]
    assert states[0] == states[1]
    assert states[0]["price"]["edges"]


def test_old_rows_are_kept_to_the_last_bit(folder: Path, tmp_path: Path) -> None:
    """Before the first step: old rows bit-equal, new ones the unknown's, all other weights the run's."""
    run = folder / "runs" / "old"
    _, before, _ = load_model(run)
    task = new_task(folder, start=run)
    task.build(tmp_path)
    assert task._built is not None
    model = task._built[0]
    old, new = before.state_dict(), model.state_dict()
    grown = set()
    for name, weight in new.items():
        kept = old[name]
        same = weight[: len(kept)] if kept.ndim else weight
        assert same.numpy().tobytes() == kept.numpy().tobytes()
        if weight.shape != kept.shape:
            grown.add(name.split(".")[-2])
            assert (weight[len(kept) :] == kept[UNKNOWN]).all()
    assert grown >= {"item", "user", "topic", "place"}


def test_the_command_line(folder: Path) -> None:
    """The real thing, finished, found again, and another run than the same one from scratch."""
    run = folder / "runs" / "old"
    command = ["train", run / "config.yaml", f"data={folder / 'new'}", "name=warm", "--from", run]
    lain(*command)
    record = json.loads((folder / "runs" / "warm" / "record.json").read_text())
    assert record["notes"]["started_from"]["run"] == str(run)
    assert record["notes"]["started_from"]["new_rows"]["item"] > 0
    assert "nothing to do" in lain(*command).output
    cold = CliRunner().invoke(main, [str(a) for a in command[:4]])
    assert (cold.exit_code, "start" in cold.output) == (2, True)
    lain("predict", folder / "runs" / "warm", folder / "newer" / "log.csv", folder / "s.parquet", "--quiet")
    assert np.isfinite(pl.read_parquet(folder / "s.parquet")["score"].to_numpy()).all()


def fails(*command: object) -> Result:
    result = CliRunner().invoke(main, [str(part) for part in command])
    assert result.exit_code == 2, result.output
    return result


def test_mistakes_are_one_line(folder: Path, tmp_path: Path) -> None:
    run = folder / "runs" / "old"
    fresh = tmp_path / "fresh"
    lain("prepare", "log", folder / "newer" / "log.csv", fresh, "--schema", folder / "log.yaml", "--quiet")
    config = folder / "runs" / "old" / "config.yaml"
    found = fails("train", config, f"data={fresh}", f"out={tmp_path}", "--from", run)
    assert "does not grow from what" in found.output
    assert "--from" in found.output
    to_new = ["train", config, f"data={folder / 'new'}", f"out={tmp_path}"]
    assert "its model has other parts" in fails(*to_new, "embedding.dim=8", "--from", run).output
    assert "not a run folder" in fails(*to_new, "--from", tmp_path / "none").output
    log = folder / "log.csv"
    found = fails("prepare", "log", log, tmp_path / "x", "--from", run, "--schema", folder / "log.yaml")
    assert "takes the schema over too" in found.output
    assert not list(tmp_path.glob("*-seed0"))


def test_ids_without_a_vocabulary_are_not_guessed(tmp_path: Path) -> None:
    for seed in (1, 2):
        lain("world", tmp_path / f"world{seed}", "--users", 20, "--seed", seed)
    run = train(tmp_path / "world1", "name=first")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"data": str(tmp_path / "world2"), "out": str(tmp_path)}))
    config = load(TrainConfig, tmp_path / "c.yaml", FAST)
    with pytest.raises(DataError, match="nothing says that its ids stand for the same"):
        CTRTask(config, start=run).build(tmp_path / "run")
    CTRTask(config, start=run, same_encoding=True).build(tmp_path / "run")
    other = load(TrainConfig, tmp_path / "c.yaml", [*FAST, "embedding.dim=4"])
    with pytest.raises(ConfigError, match="has other parts"):
        CTRTask(other, start=run, same_encoding=True).build(tmp_path / "run")
