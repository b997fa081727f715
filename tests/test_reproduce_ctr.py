"""Click-through studies: a whole one on stand-ins for training, its mistakes, and the real command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from matplotlib.image import imread

from common.config import load
from common.errors import ConfigError, DataError
from common.study.command import find_study
from common.study.kind import Head
from common.study.plan import RunSpec, Study
from common.study.results import complete, reproduce, resolve, tuning_table, write_results
from common.training.record import Record
from fake_train import simulate
from lain.cli import main
from lain.study.data import PreparedCTR, prepare_data
from lain.study.kind import CTR

ROOT = Path(__file__).resolve().parent.parent

TINY = """
name: tiny
description: A study of stand-ins.
backbones: [din, twin]
arms:
  base: {length.preset: base}
  lain: {length.preset: lain}
  temperature-loglength: {length.preset: temperature-loglength}
  loglength: {length.preset: loglength}
main: [base, lain, temperature-loglength]
seeds: [0, 1]
base: {history: {max_length: 200}}
extra:
  - {backbones: [twin], arms: [loglength]}
  - {backbones: [twin], arms: [base, lain], tag: sweep, vary: {history.max_length: [50, 200, 1000]}}
"""


def section(table: str, title: str) -> list[list[str]]:
    """Cells of the table under a heading, without head and rule."""
    lines = table.split(f"## {title}\n\n")[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def quiet(line: str) -> None:
    assert "\n" not in line


def test_a_whole_study(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    study, out = load(Study, path), tmp_path / "out"
    plan = study.plan()
    head = Head(study.name, study.description, "the command", len({s.key for s in plan}), 2)
    prepared = PreparedCTR(tmp_path, "a world", "fingerprint")

    def run() -> str | None:
        table, failures = reproduce(CTR, study, prepared, plan, out, head, worker=simulate, report=quiet)
        assert failures == []
        return table

    printed = run()
    # 2 backbones x 3 arms, twin's loglength, and a sweep whose 200s are in the main matrix already.
    trained = 2 * (2 * 3 + 1 + 2 * 2)
    assert len((out / "calls.txt").read_text().split()) == trained

    results = json.loads((out / "results.json").read_text())
    assert set(results) == {"study", "rows"}
    assert len(results["rows"]) == 2 * (2 * 3 + 1 + 2 * 3)
    assert all(set(row) - {"tag"} == {"backbone", "arm", "seed", "metrics"} for row in results["rows"])
    assert sum(row.get("tag") == "sweep:max_length=50" for row in results["rows"]) == 4
    assert all(
        {"auc", "gauc", "logloss", "auc/0-100", "auc/200+"} <= set(row["metrics"]) for row in results["rows"]
    )

    table = (out / "table.md").read_text()
    assert printed == table
    overview = section(table, "lain minus base, AUC x 100")
    assert [row[0] for row in overview] == ["din", "twin"]
    for _, _, below_50, _, below_100, _, above in overview:
        assert below_50.startswith("+")
        assert below_50.endswith("*")
        assert below_100.endswith("*")
        assert above.startswith("-")
    text = table.split("## What this shows")[1].split("## ")[0]
    assert text.index("lain against base, all rows") < text.index(
        "lain against temperature-loglength, all rows"
    )
    assert "lengths 0-100: gains for all 2 backbones (mean +3." in text
    assert "lengths 200+: loses for all 2 backbones (mean -3." in text
    assert "- runs: 22 of 22, seeds 0, 1;" in table

    detail = section(table, "lain against base, AUC x 100")
    assert len(detail) == 2 * 6
    means = {
        arm: sum(
            row["metrics"]["auc/0-100"]
            for row in results["rows"]
            if (row["backbone"], row["arm"]) == ("din", arm) and "tag" not in row
        )
        / 2
        for arm in ("base", "lain")
    }
    cells = next(row for row in detail if row[1] == "0-100")
    assert cells[2].startswith(f"{100 * means['base']:.2f} ± ")
    assert cells[3].startswith(f"{100 * means['lain']:.2f} ± ")
    difference = 100 * (means["lain"] - means["base"])
    assert cells[4] == f"{difference:+.2f}"
    low, high = (float(end) for end in cells[5].strip("[]").split(", "))
    assert 0 < low < difference < high

    metrics = results["rows"][0]["metrics"]
    best = {row[0]: row for row in section(table, "Test rows by history length")}
    assert best["all"][1] == "6000"
    assert best["200+"][2] == f"{metrics['users/200+']:.0f}"
    assert best["0-50"][4:] == [
        f"{100 * metrics['best_auc/0-50']:.2f}",
        f"{metrics['best_logloss/0-50']:.4f}",
    ]
    assert {row[1] for row in section(table, "Controls and ablations against base, AUC x 100")} == {
        "temperature-loglength",
        "loglength",
    }
    assert len(section(table, "lain against temperature-loglength, AUC x 100")) == 2
    cost = section(table, "Parameters and time per row, base and lain")
    assert cost[0] == ["din", "1000", "1020", "1.020", "0.100", "0.110", "1.100"]
    assert len(section(table, "AUC x 100 against the maximum length")) == 2 * 3

    for name in ("auc_by_bucket.png", "length_sweep.png", "attention.png"):
        assert imread(out / name).min() < 0.9

    # The second call trains nothing, makes nothing and prints the same.
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}
    assert run() == table
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()} == before

    # Predictions on other rows are no pair.
    moved = out / "din-lain-0" / "predictions" / "test.parquet"
    moved.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"test\.parquet: cannot be read"):
        write_results(CTR, study, prepared, plan, out, head, report=quiet, again=True)


def test_the_studies_of_this_repository_are_valid(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repo)
    for name in ("world", "kuairand", "movielens"):
        study = find_study(CTR, name)
        plan = study.plan()
        assert {run.backbone for run in plan} == {"din", "dien", "sim", "sdim", "twin"}
        assert {run.seed for run in plan} == {0, 1, 2}
        assert all(run.arm.startswith(run.config["length"]["preset"]) for run in plan)
        resolved = complete(resolve(CTR, plan), lambda config: "f")
        assert {run.config["model"]["name"] for run in resolved} == {run.backbone for run in plan}
        assert len({run.hash for run in resolved}) == len({run.key for run in resolved})
    assert len({run.key for run in find_study(CTR, "world").plan(seeds=1)}) == 5 * 3 + 10 + 2 * 5


def test_mistakes_in_settings_show_before_anything_runs(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("name: s\nbackbones: [twn]\nseeds: [0]\narms: {base: {head.hiden: [2]}}\n")
    with pytest.raises(ConfigError) as found:
        resolve(CTR, find_study(CTR, str(path)).plan())
    assert "did you mean 'twin'" in str(found.value)
    assert "did you mean 'head.hidden'" in str(found.value)
    path.write_text("name: s\nbackbones: [twin]\nseeds: [0]\narms: {base: {model.embedding_dim: 8}}\n")
    with pytest.raises(ConfigError, match=r"model\.embedding_dim: this setting is now embedding\.dim"):
        resolve(CTR, find_study(CTR, str(path)).plan())


def test_unknown_study_and_missing_source(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repo)
    with pytest.raises(DataError, match="no study 'wrld'; did you mean 'world'"):
        find_study(CTR, "wrld")
    (tmp_path / "ratings.csv").touch()
    with pytest.raises(
        DataError, match=r"no movies\.csv; get MovieLens .*grouplens.* put ratings\.csv, movies\.csv"
    ):
        prepare_data({"format": "movielens"}, tmp_path, tmp_path / "data", quiet)
    with pytest.raises(ConfigError, match=r"data\.format: 'kuairnd' .*did you mean 'kuairand'"):
        prepare_data({"format": "kuairnd"}, None, tmp_path, quiet)
    assert not (tmp_path / "data").exists()


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT / "packages"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "lain.cli", "study", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_says_which_files_are_missing(tmp_path: Path) -> None:
    found = command(str(ROOT / "experiments/ctr/kuairand.yaml"), "--data", "nowhere", folder=tmp_path)
    assert found.returncode == 2
    assert found.stdout == ""
    lines = [line for line in found.stderr.splitlines() if not line.endswith(": starting")]
    assert len(lines) == 1
    assert lines[0].startswith("error: nowhere: no val.parquet")
    assert list(tmp_path.iterdir()) == []


def inside(*arguments: object) -> Result:
    """The command in this process; mistakes are left as exceptions."""
    return CliRunner().invoke(main, ["study", *map(str, arguments)], standalone_mode=False)


def test_a_report_needs_runs_and_trains_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    done = inside(path, "report", "--out", tmp_path / "out")
    assert isinstance(done.exception, DataError)
    assert "no run of this study is there; `lain study tiny.yaml` does them" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_prints_every_setting_and_makes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    done = inside(path, "--dry-run", "--seeds", 1, "--out", tmp_path / "out")
    assert done.exit_code == 0
    assert done.stdout.count("# twin-lain-0\n") == 1
    assert "batch_size: 512" in done.stdout  # a default that the file does not name
    assert not (tmp_path / "out").exists()


def test_a_single_runs_yaml_is_no_study(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repo)
    with pytest.raises(DataError, match=r"no study 'train'; experiments/ctr has .*world"):
        find_study(CTR, "train")


def test_a_grid_is_ranked_on_validation_rows(tmp_path: Path) -> None:
    grid = {"a": [0.70, 0.72], "b": [0.75, 0.71]}
    plan = []
    for name, values in grid.items():
        for seed, value in enumerate(values):
            spec = RunSpec(f"twin-{name}-{seed}", "twin", "base", seed, f"tune:x={name}", {})
            folder = tmp_path / spec.key
            folder.mkdir()
            (folder / "study.json").write_text(json.dumps({"hash": spec.hash}))
            record = Record.start(config={})
            record.finish({"valid/auc": value, "test/auc": 1 - value}).save(folder / "record.json")
            plan.append(spec)
    table = tuning_table(CTR, plan, tmp_path, "the command")
    assert (tmp_path / "tuning.md").read_text() == table
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[6:8]]
    assert rows == [
        ["twin", "base", "x=b", "73.000", "2.828", "2"],
        ["twin", "base", "x=a", "71.000", "1.414", "2"],
    ]


@pytest.mark.slow
def test_the_command_on_a_tiny_world(tmp_path: Path) -> None:
    """World, training, tests, table and plots for real; stopped, resumed, called again."""
    path = tmp_path / "tiny.yaml"
    size = "history: {max_length: 100}, head: {name: mlp, hidden: [16]}"
    base = f"base: {{{size}, fit: {{epochs: 1, progress: false}}, tracking: {{wandb: disabled}}}}\n"
    data = "data: {format: world, users: 120, rows: 2000, valid_rows: 400, test_per_bucket: 200, seed: 1}\n"
    path.write_text(TINY.split("base: {history", maxsplit=1)[0] + base + data)
    first = command(str(path), "--seeds", "1", folder=tmp_path)
    assert first.returncode == 0, first.stderr
    out = tmp_path / "runs" / "ctr-tiny"
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [(row["backbone"], row["arm"], row["seed"]) for row in rows] == [
        (backbone, arm, 0)
        for backbone in ("din", "twin")
        for arm in ("base", "lain", "temperature-loglength")
    ]
    assert first.stdout.startswith("# CTR study: tiny")
    for name in ("auc_by_bucket.png", "attention.png"):
        assert (out / name).is_file()
    for name in ("config.yaml", "record.json", "metrics.csv", "predictions/test.parquet", "attention.json"):
        assert (out / "din-lain-0" / name).is_file()
    assert {path.name for path in out.rglob("*.ckpt")} == {"best.ckpt"}

    again = command(str(path), "--seeds", "1", folder=tmp_path)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert [line for line in again.stderr.splitlines() if not line.endswith(": starting")] == []

    (out / "twin-lain-0" / "record.json").unlink()
    third = command(str(path), "--seeds", "1", folder=tmp_path)
    assert third.returncode == 0
    assert "1 runs to do, 5 already done" in third.stderr
