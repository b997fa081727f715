"""`lain recipe`: from a log to a served model in one command, on files as people have them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from click.testing import CliRunner

from lain.cli import main
from lain.serving.scorer import Scorer
from lain.study.data import recognise
from lain.study.recipe import COMPARE_SECONDS, START_SECONDS, Budget, Speed, choose_budget

ROWS = {"train": 80_000, "valid": 10_000, "test": 10_000}
CASES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "ctr"


def write_log(path: Path, *, label: str = "clicked", rows: int = 1500) -> pl.DataFrame:
    """Clicks on the user's own group of items are likelier."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(30, size=rows), rng.integers(40, size=rows)
    likes = rng.random(rows) < np.where(user % 4 == item % 4, 0.8, 0.2)
    log = pl.DataFrame({
        "user_id": [f"ü{u}" for u in user], "item_id": item + 1000,
        "timestamp": 1_700_000_000 + 60 * np.arange(rows), label: likes.astype(int),
        "category": [f"c{i % 4}" for i in item], "comment": [f"text {n}" for n in range(rows)],
    })  # fmt: skip
    log.write_csv(path, separator=";")
    return log


@pytest.mark.parametrize("seconds", [0.0, 60.0, 300.0, 3000.0, 1e6])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_budget_fits_into_its_time(seconds: float, workers: int) -> None:
    speed = Speed(train=2000.0, score=10_000.0)
    budget = choose_budget(ROWS, speed, seconds, workers=workers, batch=512)
    share = 1.0 if budget.max_steps is None else budget.max_steps * 512 / ROWS["train"]
    scored = (budget.epochs + 1) * ROWS["valid"] + ROWS["test"]
    one = START_SECONDS + share * budget.epochs * ROWS["train"] / speed.train + scored / speed.score
    cost = -(-2 * budget.seeds // workers) * one + COMPARE_SECONDS
    assert cost <= seconds or budget == Budget(1, 1, 1, 20)


def test_more_time_is_more_seeds_and_epochs() -> None:
    speed = Speed(2000.0, 10_000.0)
    times = (30.0, 150.0, 600.0, 6000.0)
    found = [choose_budget(ROWS, speed, seconds, workers=2, batch=512) for seconds in times]
    assert found[0] == Budget(1, 1, 1, 20)
    assert found[-1] == Budget(3, 8, 3)
    sizes = [b.seeds * b.epochs for b in found]
    assert sizes == sorted(sizes)
    tuned = choose_budget(ROWS, speed, 300.0, workers=2, batch=512, tuned=True)
    untuned = choose_budget(ROWS, speed, 300.0, workers=2, batch=512)
    assert tuned.seeds * tuned.epochs >= untuned.seeds * untuned.epochs


@pytest.mark.slow
def test_a_csv_becomes_a_model_that_scores(tmp_path: Path) -> None:
    log = write_log(tmp_path / "clicks.csv")
    command = ["recipe", str(tmp_path / "clicks.csv"), str(tmp_path / "out"), "--minutes", "0.2"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "assumed" in result.stderr
    assert "left out" in result.stderr  # the comments, each its own
    lines = result.stdout.splitlines()
    assert lines[-1] == f"lain serve {tmp_path / 'out' / 'model'}"
    assert "## lain against base, AUC x 100" in lines
    page = (tmp_path / "out" / "page.html").read_text()
    assert "<html" in page
    schema = yaml.safe_load((tmp_path / "out" / "log.yaml").read_text())
    assert schema["columns"]["user"] == "user_id"
    scorer = Scorer(tmp_path / "out" / "model")
    memory = scorer.encode(log["item_id"][:5].to_list(), user="ü1")
    time = {"timestamp": 1_700_100_000}
    assert len(scorer.score(memory, [1000, 1001, "new"], time)) == 3

    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "study").glob("*/record.json")}
    assert len(before) == 2
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 0, again.output
    assert again.stdout == result.stdout
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_without_a_label_the_schema_is_left_to_be_edited(tmp_path: Path) -> None:
    write_log(tmp_path / "log.csv", label="watched_seconds")
    command = ["recipe", str(tmp_path / "log.csv"), str(tmp_path / "out")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert "no column of" in result.output
    assert "put one there as columns.label" in result.output
    assert (tmp_path / "out" / "log.yaml").is_file()
    assert not (tmp_path / "out" / "data").exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--backbone", "twinn"], "did you mean 'twin'?"),
        (["--minutes", "0"], "0"),
        (["--schema", "none.yaml"], "none.yaml"),
    ],
)
def test_mistakes(tmp_path: Path, options: list[str], line: str) -> None:
    write_log(tmp_path / "log.csv", rows=50)
    result = CliRunner().invoke(main, ["recipe", str(tmp_path / "log.csv"), str(tmp_path / "out"), *options])
    assert result.exit_code == 2
    assert line in result.output
    assert not (tmp_path / "out").exists()


def test_no_such_log(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["recipe", str(tmp_path / "none.csv"), str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "none.csv" in result.output


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the data sets beside the checkout")
def test_public_logs_are_recognised() -> None:
    assert recognise(CASES / "ebnerd-demo") == "ebnerd"
    assert recognise(CASES / "ml-latest-small") is None
    assert recognise(CASES / "ml-latest-small" / "ratings.csv") is None


@pytest.mark.slow
@pytest.mark.skipif(not CASES.is_dir(), reason="needs the data sets beside the checkout")
def test_movielens_as_it_is_downloaded(tmp_path: Path) -> None:
    source = CASES / "ml-latest-small"
    result = CliRunner().invoke(main, ["recipe", str(source), str(tmp_path / "out"), "--minutes", "0.1"])
    assert result.exit_code == 0, result.output
    assert "rating >= 4" in result.stderr
    state = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert state["budget"]["max_steps"] == 20
