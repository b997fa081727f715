"""Cases of click-through prediction.

Covered elsewhere, with inputs made there: 07 (an interrupted run stays one W&B run: ``test_tracking.py``,
``test_lifecycle.py``), 09 (an interrupt saves a checkpoint: ``test_lifecycle.py``), 16 (gAUC equals
scikit-learn's loop: ``test_ctr_metrics.py``).
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lain.data.store import Store
from outcome import Case, Command, copy, fails, works

SHORT = (
    *("fit.epochs=1", "fit.max_steps=6", "fit.accelerator=cpu", "fit.progress=false"),
    *("tracking.wandb=disabled", "diagnose_rows=5"),
)


@pytest.fixture(scope="module")
def config(repo: Path) -> Path:
    return repo / "experiments" / "ctr" / "train.yaml"


@pytest.fixture(scope="module")
def trained(cases: Path, lain: Command, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the case of two encodings, prepared, and a run ``m`` on the first of them."""
    folder = copy(cases / "ctr" / "03-other-id-encoding-unnoticed", tmp_path_factory.mktemp("ctr") / "case")
    for name in ("mine", "new", "perm"):
        works(lain("prepare", "reczoo", folder / name, folder / "data" / name, "--quiet"))
    works(lain("train", config, f"data={folder / 'data' / 'mine'}", f"out={folder}", "name=m", *SHORT))
    return folder


def test_01_rows_to_score_need_neither_labels_nor_training_rows(
    case: Case, lain: Command, trained: Path, tmp_path: Path
) -> None:
    case("ctr/01-unlabelled-rows")
    scores = {}
    for name, note in (("nolabel", "has no column 'click'"), ("new", "has no train.parquet")):
        done = lain("prepare", "reczoo", name, f"data/{name}", "--quiet")
        works(done)
        assert note in done.stderr
        out = tmp_path / f"{name}.parquet"
        works(lain("predict", trained / "m", f"data/{name}", out, "--same-encoding"))
        scores[name] = pq.read_table(out)
    rows = pq.read_metadata("nolabel/test.parquet").num_rows
    assert scores["nolabel"].column_names == ["user", "item", "length", "score"]
    assert scores["nolabel"].num_rows == rows
    assert "label" in scores["new"].column_names
    assert scores["nolabel"]["score"].equals(scores["new"]["score"])


def test_01_unlabelled_rows_have_scores_and_no_metrics(
    case: Case, lain: Command, config: Path, trained: Path
) -> None:
    case("ctr/01-unlabelled-rows")
    copy(trained / "mine", Path("both"))
    shutil.copyfile("nolabel/test.parquet", "both/test.parquet")
    works(lain("prepare", "reczoo", "both", "data", "--quiet"))
    run = Path(works(lain("train", config, "data=data", *SHORT)))
    metrics = json.loads((run / "record.json").read_text())["metrics"]
    assert "valid/auc" in metrics
    assert not [name for name in metrics if name.startswith("test/")]
    assert "label" not in pq.read_schema(run / "predictions" / "test.parquet").names
    assert "split test has no labels" in fails(lain("evaluate", run))


@pytest.fixture(scope="module")
def base(cases: Path, lain: Command, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the case of new values, and a run ``base``."""
    folder = copy(cases / "ctr" / "02-unseen-id-at-predict", tmp_path_factory.mktemp("unseen") / "case")
    works(lain("prepare", "reczoo", folder / "base", folder / "data", "--quiet"))
    works(lain("train", config, f"data={folder / 'data'}", f"out={folder}", "name=base", *SHORT))
    return folder


@pytest.mark.parametrize(
    ("name", "feature"), [("p_newitem", "item_id"), ("p_newcat", "category"), ("p_newhour", "hour")]
)
def test_02_what_a_run_has_never_seen_is_named(
    base: Path, lain: Command, name: str, feature: str, tmp_path: Path
) -> None:
    """These data come already encoded: nothing says what an unseen number means, so nothing can stand for it.

    Logs of raw values do have unknown ones: ``test_log_encode.py``, ``test_what_is_new_is_unknown``.
    """
    works(lain("prepare", "reczoo", base / name, tmp_path / name, "--quiet"))
    line = fails(lain("predict", base / "base", tmp_path / name, "--same-encoding"))
    assert f"feature {feature} has" in line
    assert f"{base / 'base'} knows" in line


def test_03_another_encoding_is_not_scored_unnoticed(trained: Path, lain: Command, tmp_path: Path) -> None:
    for name in ("new", "perm"):
        out = tmp_path / f"{name}.parquet"
        line = fails(lain("predict", trained / "m", trained / "data" / name, out))
        assert "nothing says what its ids stand for" in line
        assert "--same-encoding" in line
        assert not out.exists()
    works(lain("predict", trained / "m", trained / "data" / "new", out, "--same-encoding"))
    assert np.isfinite(pq.read_table(out)["score"].to_numpy()).all()


def test_04_the_epoch_of_the_lowest_logloss_is_kept(case: Case, lain: Command, config: Path) -> None:
    case("ctr/04-monitor-logloss-maximised")
    works(lain("prepare", "reczoo", "base", "data", "--quiet"))
    settings = [s for s in SHORT if "epochs" not in s and "max_steps" not in s]
    more = ("fit.epochs=3", "fit.monitor=valid/logloss", "fit.patience=0")
    run = Path(works(lain("train", config, "data=data", *settings, *more)))
    with (run / "metrics.csv").open() as file:
        found = [float(row["valid/logloss"]) for row in csv.DictReader(file) if row["valid/logloss"]]
    assert len(found) == 3
    kept = json.loads((run / "record.json").read_text())["metrics"]["valid/logloss"]
    assert kept == pytest.approx(min(found), abs=1e-6)


def test_06_behaviours_of_one_second_do_not_ascend_by_item(
    shared: Path, lain: Command, tmp_path: Path
) -> None:
    source = shared / "data" / "ctr" / "ml-latest-small"
    if not source.is_dir():
        pytest.skip(f"no such data: {source}")
    store = Store.open(Path(works(lain("prepare", "movielens", source, tmp_path / "ml", "--quiet"))))
    with (source / "ratings.csv").open() as file:
        ratings = [(int(r["userId"]), int(r["timestamp"])) for r in csv.DictReader(file)]
    user, time = np.array(sorted(ratings)).T
    items = np.asarray(store.histories.values)
    assert len(items) == len(user)
    tie = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
    other = (user[1:] == user[:-1]) & ~tie
    up = items[1:] > items[:-1]
    assert tie.sum() > 10_000
    assert abs(up[tie].mean() - 0.5) < 0.03
    assert abs(up[other].mean() - 0.5) < 0.1


def test_08_the_result_alone_is_on_standard_output(case: Case, lain: Command, config: Path) -> None:
    case("ctr/08-progress-bar-on-stdout")
    works(lain("prepare", "reczoo", "base", "data", "--quiet"))
    settings = [s for s in SHORT if "progress" not in s]
    done = lain("train", config, "data=data", "name=b", *settings)
    assert done.exit_code == 0, done.output
    assert done.stdout == "runs/b\n"


def test_10_hashed_values_are_named_with_what_to_do(case: Case, lain: Command, config: Path) -> None:
    case("ctr/10-hashed-category")
    done = lain("prepare", "reczoo", "t_hash32", "data", "--quiet")
    works(done)
    assert "number the values from 1 on" in done.stderr
    line = fails(lain("train", config, "data=data", *SHORT))
    named = done.stderr.split("feature '")[1].split("'")[0]
    assert named in line
    assert "model.hidden" not in line
    assert not list(Path("runs").glob("*"))


def test_11_a_validation_of_one_class_is_said_and_shows_no_nan(
    case: Case, lain: Command, config: Path
) -> None:
    case("ctr/11-one-class-valid")
    works(lain("prepare", "reczoo", "o_valid0", "data", "--quiet"))
    settings = [s for s in SHORT if "progress" not in s and "epochs" not in s]
    done = lain("train", config, "data=data", "fit.epochs=2", *settings)
    run = Path(works(done))
    assert "nan" not in done.stderr.lower()
    (said,) = [line for line in done.stderr.splitlines() if "valid/auc" in line and "no value" in line]
    assert said
    record = json.loads((run / "record.json").read_text())
    assert record["metrics"]["valid/auc"] is None
    assert record["reasons"]["valid/auc"]


BACKBONES = ("din", "dien", "sim", "sdim", "twin")


@pytest.mark.parametrize(
    ("data", "backbone", "preset"),
    [
        pytest.param(data, name, preset, marks=[] if (data, name, preset) in quick else [pytest.mark.slow])
        for quick in [(("e_none", "twin", "lain"), ("e_half", "dien", "base"))]
        for data in ("e_half", "e_none")
        for name in BACKBONES
        for preset in ("base", "lain")
    ],
)
def test_13_users_without_a_history_have_finite_scores(
    case: Case, lain: Command, config: Path, data: str, backbone: str, preset: str
) -> None:
    case("ctr/13-empty-history")
    works(lain("prepare", "reczoo", data, "data", "--quiet"))
    chosen = (f"model.name={backbone}", f"length.preset={preset}")
    run = Path(works(lain("train", config, "data=data", *chosen, *SHORT)))
    assert np.isfinite(pq.read_table(run / "predictions" / "test.parquet")["score"].to_numpy()).all()


def test_14_types_of_parquet(case: Case, lain: Command) -> None:
    case("ctr/14-parquet-types")
    for name in ("t_types", "t_fixedlist", "t_large", "t_dict_int"):
        works(lain("prepare", "reczoo", name, f"data/{name}", "--quiet"))
    for name, where in (
        ("t_dict_str", "column 'category' must hold whole numbers"),
        ("t_null_cat", "no value"),
        ("t_null_hist", "no list"),
        ("t_null_in_hist", "a list with a missing entry"),
    ):
        assert where in fails(lain("prepare", "reczoo", name, f"data/{name}", "--quiet"))
        assert not Path(f"data/{name}").exists()


def test_15_scoring_needs_neither_the_training_data_nor_their_place(
    trained: Path, lain: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = tmp_path / "elsewhere" / "m", tmp_path / "new"
    copy(trained / "m", run)
    copy(trained / "data" / "new", data)
    settings = (run / "config.yaml").read_text().replace(str(trained / "data" / "mine"), "gone/mine")
    (run / "config.yaml").write_text(settings)
    monkeypatch.chdir(tmp_path)
    out = works(lain("predict", run, data, "--same-encoding"))
    expected = tmp_path / "expected.parquet"
    works(lain("predict", trained / "m", trained / "data" / "new", expected, "--same-encoding"))
    assert pq.read_table(out).equals(pq.read_table(expected))
