"""The real commands, on a tiny world and on what users get wrong."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from common.ragged import Ragged
from lain.backbones import BACKBONES
from lain.cli import main
from lain.data.schema import Feature
from lain.data.writer import StoreWriter

FIRST_LOSSES = Path(__file__).with_name("first_losses.json")
"""Losses of the first steps per backbone and arm; `python tests/lain/test_cli.py` measures them again."""

SMALL = [
    "embedding.dim=4",
    "head.hidden=[8]",
    "history.max_length=100",
    "train.batch_size=64",
    "fit.epochs=1",
    "fit.log_every=1",
    "fit.progress=false",
    "fit.accelerator=cpu",
    "tracking.wandb=disabled",
    "diagnose_rows=50",
]


def lain(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def fails(*args: object) -> list[str]:
    """The lines of a command that must end with exit code 2 and without a traceback."""
    result = lain(*args)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert all(line.startswith("error: ") for line in lines), result.stderr
    return lines


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "world"
    result = lain("world", out, "--users", 60, "--seed", 3)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def config(world: Path) -> Path:
    path = world.parent / "train.yaml"
    path.write_text(yaml.safe_dump({"data": str(world), "out": str(world.parent / "runs")}))
    return path


@pytest.fixture(scope="module")
def run(config: Path) -> Path:
    result = lain("train", config, *SMALL, "length.preset=lain")
    assert result.exit_code == 0, result.output
    return Path(result.output.strip().splitlines()[-1])


def first_losses(config: Path, out: Path) -> dict[str, list[float]]:
    losses = {}
    for backbone in BACKBONES:
        for arm in ("base", "lain"):
            result = lain(
                "train", config, *SMALL, f"model.name={backbone}", f"length.preset={arm}",
                "fit.max_steps=3", f"out={out}", f"name={backbone}-{arm}", "diagnose_rows=0",
            )  # fmt: skip
            assert result.exit_code == 0, result.output
            with (out / f"{backbone}-{arm}" / "metrics.csv").open() as file:
                found = [row["train/loss"] for row in csv.DictReader(file) if row.get("train/loss")]
            losses[f"{backbone}-{arm}"] = [float(x) for x in found[:3]]
    return losses


def test_first_losses_are_as_recorded(config: Path, tmp_path: Path) -> None:
    recorded = json.loads(FIRST_LOSSES.read_text())
    found = first_losses(config, tmp_path)
    assert set(found) == set(recorded)
    for name, losses in found.items():
        assert losses == pytest.approx(recorded[name], abs=1e-4), name


def test_a_run_folder_holds_what_it_promises(run: Path, world: Path) -> None:
    for name in ("config.yaml", "record.json", "metrics.csv", "attention.json", "checkpoints/best.ckpt"):
        assert (run / name).is_file(), name
    table = pq.read_table(run / "predictions" / "test.parquet")
    assert table.column_names == ["user", "item", "length", "label", "score"]
    assert table["label"].to_numpy().tolist() == np.load(world / "test" / "label.npy").tolist()
    assert table["length"].to_numpy().tolist() == np.load(world / "test" / "length.npy").tolist()
    score = table["score"].to_numpy()
    assert ((score > 0) & (score < 1)).all()
    truth = pq.read_table(run / "predictions" / "test-truth.parquet")
    assert truth["probability"].to_numpy().tolist() == np.load(world / "test" / "probability.npy").tolist()
    record = json.loads((run / "record.json").read_text())
    assert record["finished"] is not None
    assert {"test/auc", "test/gauc", "test/logloss", "test/calibration", "test/auc/0-100"} <= set(
        record["metrics"]
    )


def test_evaluate_finds_the_metrics_that_training_recorded(run: Path) -> None:
    result = lain("evaluate", run)
    assert result.exit_code == 0, result.output
    found = json.loads((run / "metrics-test.json").read_text())["metrics"]
    recorded = json.loads((run / "record.json").read_text())["metrics"]
    assert found == {k: pytest.approx(recorded[f"test/{k}"], abs=1e-12) for k in found}


def test_predict_scores_another_world_and_refuses_another_kind(
    run: Path, world: Path, tmp_path: Path
) -> None:
    from small_store import seal  # not on the path when this file measures losses

    other = tmp_path / "other"
    assert lain("world", other, "--users", 60, "--seed", 4).exit_code == 0
    (line,) = fails("predict", run, other, "--split", "valid")
    assert f"{other}: is not the data set that {run} was trained on, and nothing says what its ids" in line
    result = lain("predict", run, other, "--split", "valid", "--same-encoding")
    assert result.exit_code == 0, result.output
    scores = pq.read_table(Path(result.output.strip().splitlines()[-1]))
    assert len(scores) == len(np.load(other / "valid" / "label.npy"))
    about = json.loads((other / "dataset.json").read_text())
    about["features"][0]["name"] = "colour"
    source = about["features"][0]["source"]
    (other / "dataset.json").write_text(json.dumps(about))
    names = json.loads((world / "dataset.json").read_text())["features"]
    folder = {"item": "items", "user": "users", "context": "test/context"}[source]
    old = other / folder / f"{names[0]['name']}.npy"
    if old.exists():
        shutil.copy(old, old.with_name("colour.npy"))
    else:
        np.save(other / folder / "colour.npy", np.zeros(about["num_items"], dtype=np.int32))
    seal(other)
    assert len(fails("predict", run, other)) == 2  # one too many, one missing


def test_diagnose_reports_every_branch(run: Path) -> None:
    result = lain("diagnose", run, "--rows", 50)
    assert result.exit_code == 0, result.output
    found = json.loads((run / "diagnosis.json").read_text())
    assert set(found["attention"]) == {"short", "long"}
    assert -1 <= found["gradient_cosine"]["all"] <= 1


def test_dry_run_prints_a_config_that_trains_the_same(config: Path, run: Path, tmp_path: Path) -> None:
    printed = lain("train", config, *SMALL, "length.preset=lain", "--dry-run")
    assert printed.exit_code == 0
    path = tmp_path / "again.yaml"
    path.write_text(printed.output)
    assert lain("train", path, "--dry-run").output == printed.output
    before = (run / "record.json").read_text()
    assert (run / "config.yaml").read_text() == printed.output
    assert (run / "record.json").read_text() == before


def test_help_of_every_command_tells_its_arguments() -> None:
    for command in ("world", "prepare", "train", "evaluate", "predict", "diagnose"):
        result = lain(command, "--help")
        assert result.exit_code == 0
        assert len(result.output.splitlines()) > 6


def test_a_killed_run_ends_as_one_that_was_not(config: Path, tmp_path: Path) -> None:
    settings = [
        *SMALL, "fit.epochs=3", "fit.checkpoint_steps=2", "head.dropout=0.2", "fit.patience=0",
        "fit.accumulate=2", "length.preset=lain", f"out={tmp_path}",
    ]  # fmt: skip
    whole = lain("train", config, *settings, "name=whole")
    assert whole.exit_code == 0, whole.output
    command = [sys.executable, "-m", "lain.cli", "train", str(config), *settings, "name=killed"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    checkpoint = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    victim = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not checkpoint.exists() and victim.poll() is None:
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert checkpoint.exists()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip().splitlines()[-1] == str(tmp_path / "killed")
    scores = [
        pq.read_table(tmp_path / name / "predictions" / "test.parquet")["score"].to_numpy()
        for name in ("whole", "killed")
    ]
    np.testing.assert_array_equal(*scores)


def test_every_mistake_in_a_config_is_named_at_once(config: Path) -> None:
    lines = fails("train", config, "head.name=mpl", "train.learning_rat=1", "model.top_k=0")
    text = "\n".join(lines)
    assert "there is no head 'mpl'; did you mean 'mlp'?" in text
    assert "learning_rate" in text
    assert "top_k" in text
    assert len(lines) == 3


def test_a_mistake_that_would_stop_a_run_later_is_found_before_it_begins(
    config: Path, tmp_path: Path
) -> None:
    lines = fails(
        "train", config, *SMALL, f"out={tmp_path}", "buckets=[[0,50],[100,50]]", "seed=-1", "name=..",
        "diagnose_rows=-1", "embedding.id_std=-1", "train.learning_rate=.inf", "fit.clip=.inf",
        "length.beta=.inf",
    )  # fmt: skip
    wanted = [
        "embedding.id_std: must be at least 0, got -1",
        "length.beta: must be finite, got inf",
        "train.learning_rate: must be below inf, got inf",
        "fit.clip: must be finite, got inf; 0 turns clipping off",
        "diagnose_rows: must be at least 0, got -1",
        "buckets[1]: needs 0 <= low < high, got 100 and 50",
        "seed: must be from 0 to 4294967295, got -1",
        "name: must be the name of a new folder, got '..'",
    ]
    assert [line.removeprefix("error: command line: ") for line in lines] == wanted
    (line,) = fails("train", config, *SMALL, f"out={tmp_path}", "fit.monitor=valid/acu")
    assert "did you mean 'valid/auc'?" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["embedding.dim=100000000000"], r"model: too large for any machine; lower its sizes: "
         r"embedding.dim=100000000000, "),
        (["embedding.dim=1" + 30 * "0"], r"model: too large for any machine; lower its sizes: "),
        (["head.hidden=[100000000000,8]"], r"model: needs [\d,.]+ GB with Adam's moments, this machine has "
         r"[\d,.]+ GB \(its largest part is head.first.weight, 100000000000 x \d+\); lower its sizes: "
         r"head.hidden=\[100000000000, 8\], "),
        (["model.name=sdim", "model.hashes=100000000000"], r"its largest part is backbone.projection, "),
        (["model.attention_dim=100000000000"], r"lower its sizes: model.attention_dim=100000000000, "),
        (["length.preset=lain", "length.prompts=100000000000"], r"lower its sizes: length.prompts=1000"),
        (["model.name=din", "model.attention_hidden=[100000000000]"], r"sizes: model.attention_hidden="),
        (["model.name=sdim", "model.hash_bits=64"], r"model.hash_bits: must be at most 63, got 64"),
        (["head.hidden=[-8]"], r"head.hidden\[0\]: must be at least 1, got -8"),
        (["embedding.dim=0"], r"embedding.dim: must be at least 1, got 0"),
        (["model.attention_dim=-2"], r"model.attention_dim: must be at least 0, got -2"),
        (["history.max_length=2147483648"], r"max_length: must be at most 2147483647, got 2147483648"),
    ],
)  # fmt: skip
def test_a_size_that_no_memory_holds_is_one_line(
    config: Path, tmp_path: Path, settings: list[str], line: str
) -> None:
    (found,) = fails("train", config, *SMALL, *settings, f"out={tmp_path}")
    assert re.search(line, found), found
    assert not list(tmp_path.iterdir())


def test_a_setting_that_had_another_name_says_its_new_one(config: Path) -> None:
    old = ["model.backbone=din", "model.hidden=[8]", "model.max_length=10", "model.embedding_dim=4",
           "model.din_hidden=[4]", "model.dropout=0.1", "model.sparse=true"]  # fmt: skip
    found = [line.removeprefix("error: command line: ") for line in fails("train", config, *old)]
    now = ["model.name", "head.hidden", "history.max_length", "embedding.dim", "model.attention_hidden",
           "head.dropout", "embedding.sparse"]  # fmt: skip
    assert found == [
        f"{key.split('=')[0]}: this setting is now {new}" for key, new in zip(old, now, strict=True)
    ]


@pytest.mark.parametrize("head", ["dcnv2", "finalmlp"])
def test_every_head_trains(config: Path, tmp_path: Path, head: str) -> None:
    short = [*SMALL, f"out={tmp_path}", "fit.max_steps=2", "diagnose_rows=0"]
    result = lain("train", config, *short, f"head.name={head}", "length.preset=lain-plus")
    assert result.exit_code == 0, result.output


def strange_store(path: Path, categories: int = 0) -> Path:
    """A data set whose names are what programs use themselves, with columns of the behaviours."""
    features = [
        Feature("item_id", "item", "categorical", 0),
        Feature("type", "item", "categorical", categories),
        Feature("video.type", "item", "list", 5, 2),
        Feature("keys", "user", "categorical", 3),
        Feature("标签", "context", "categorical", 4),
        Feature("at", "context", "time", 0),
        Feature("type", "behaviour", "categorical", 0),
        Feature("items", "behaviour", "vector", 0, 1),
        Feature("at", "behaviour", "time", 0),
    ]
    rng = np.random.default_rng(0)
    histories = Ragged.from_lists([rng.integers(1, 9, n).tolist() for n in (0, 1, 5, 12)])
    many = len(histories.values)
    with StoreWriter(path, name="s", features=features, num_items=9, num_users=4) as store:
        store.items("type", np.arange(9) % 4)
        store.items("video.type", rng.integers(0, 5, (9, 2)))
        store.users("keys", np.array([0, 1, 2, 1]))
        columns = {"type": rng.integers(0, 3, many), "items": rng.random((many, 1)), "at": np.arange(many)}
        store.histories(histories, columns)
        for name in ("train", "valid", "test"):
            user = rng.integers(0, 4, 64)
            end = rng.integers(0, histories.lengths[user] + 1)
            store.split(name, 64).append(
                user=user, item=rng.integers(1, 9, 64), end=end, length=end, label=rng.integers(0, 2, 64),
                context={"标签": rng.integers(0, 4, 64), "at": rng.integers(0, 2**40, 64)},
            )  # fmt: skip
    return path


def test_any_feature_name_and_columns_of_behaviours(config: Path, tmp_path: Path) -> None:
    data = strange_store(tmp_path / "data")
    here = [f"data={data}", f"out={tmp_path}", "length.preset=lain"]
    result = lain("train", config, *SMALL, *here, "history.columns=[type, items]", "name=run")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "predictions" / "test.parquet").is_file()
    result = lain("evaluate", tmp_path / "run")
    assert result.exit_code == 0, result.output
    (line,) = fails("train", config, *SMALL, *here, "history.columns=[typ]")
    assert "no column 'typ' of the behaviours, only type, items, at; did you mean 'type'?" in line
    (line,) = fails("train", config, *SMALL, *here, "history.columns=[at]")
    assert "'at' is a point in time" in line


def test_a_vocabulary_that_no_memory_holds_is_named(config: Path, tmp_path: Path) -> None:
    """Not the sizes of the model, which could not be made small enough."""
    data = strange_store(tmp_path / "data", categories=2_000_000_000)
    (line,) = fails("train", config, *SMALL, f"data={data}", f"out={tmp_path}", "embedding.dim=64")
    assert "its largest part is items.layers.type~.weight, 2000000000 x 64" in line
    assert "item feature 'type' has too large a vocabulary, 2,000,000,000 values; prepare the data" in line
    assert "lower" not in line


def test_an_allocation_that_fails_in_a_step_is_one_line(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(*_: object) -> torch.Tensor:
        return torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr("lain.training.module.CTRModule.training_step", greedy)
    (line,) = fails("train", config, *SMALL, f"out={tmp_path}")
    assert line.startswith(
        "error: not enough memory; lower train.batch_size=64, train.eval_batch_size=2048, "
    )
    assert "history.max_length=100 or the model's sizes: head.hidden=[8], embedding.dim=4" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is such a device")
def test_a_run_that_stops_at_a_mistake_leaves_no_folder(config: Path, tmp_path: Path) -> None:
    wandb = ["tracking.wandb=offline", "fit.precision=bf16-mixed", "fit.accelerator=mps"]
    (line,) = fails("train", config, *SMALL, *wandb, f"out={tmp_path}")
    assert "refuses this config" in line
    assert not list(tmp_path.iterdir())


def test_a_run_is_not_resumed_with_other_settings_or_other_data(
    config: Path, world: Path, tmp_path: Path
) -> None:
    settings = [*SMALL, f"out={tmp_path}", "diagnose_rows=0", "fit.patience=0"]
    assert lain("train", config, *settings, "name=one").exit_code == 0
    before = (tmp_path / "one" / "record.json").read_text()
    (line,) = fails("train", config, *settings, "name=one", "train.learning_rate=0.1", "head.dropout=0.1")
    assert "head.dropout was 0.0, is 0.1, train.learning_rate was 0.001, is 0.1" in line
    other = tmp_path / "world"
    assert lain("world", other, "--users", 60, "--seed", 4).exit_code == 0
    (line,) = fails("train", config, *settings, "name=one", f"data={other}")
    assert "its data were others" in line
    assert (tmp_path / "one" / "record.json").read_text() == before
    # Without a name every one has a folder of its own; the same data elsewhere are the same data.
    moved = tmp_path / "moved"
    shutil.copytree(world, moved)
    folders = [lain("train", config, *settings, f"data={data}").stdout for data in (world, other, moved)]
    assert folders[0] == folders[2] != folders[1]
    # More epochs are no other run.
    result = lain("train", config, *settings, "name=one", "fit.epochs=2")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "one" / "record.json").read_text())["notes"]["epochs"] == 2


def test_predictions_that_cannot_be_written_leave_nothing(run: Path, world: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    (line,) = fails("predict", run, world, "--out", blocked / "scores.parquet")
    assert "file" in line
    (line,) = fails("predict", run, world, "--out", tmp_path)
    assert str(tmp_path) in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_branch_that_the_backbone_lacks_is_named(config: Path) -> None:
    (line,) = fails(
        "train", config, *SMALL, "model.name=din", "length.preset=lain", "length.branches=[short]"
    )
    assert "short" in line


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["train", "nowhere.yaml"], "nowhere.yaml"),
        (["evaluate", "nowhere"], "nowhere"),
        (["diagnose", "nowhere"], "nowhere"),
        (["prepare", "kuairand", "nowhere", "out"], "nowhere"),
        (["prepare", "csv", "nowhere", "out"], "csv"),
        (
            ["prepare", "reczo", "nowhere", "out"],
            "format: there is no format 'reczo'; did you mean 'reczoo'?",
        ),
        (["world", "out", "--users", "100000000000000"], "not enough memory; lower --users=100000000000000"),
        (["world", "out", "--users", "0"], "users"),
        (["diagnose", "nowhere", "--rows", "0"], "--rows"),
        (["predict", "nowhere", "nowhere"], "nowhere"),
    ],
)
def test_what_is_not_there_is_named_in_one_line(
    args: list[str], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (line,) = fails(*args)
    assert word in line
    assert not list(tmp_path.iterdir())


def test_data_that_is_no_store(config: Path, tmp_path: Path) -> None:
    (line,) = fails("train", config, f"data={tmp_path}")
    assert "dataset.json" in line


def test_an_unknown_split_names_those_there_are(run: Path) -> None:
    (line,) = fails("evaluate", run, "--split", "tests")
    assert "test" in line
    assert "valid" in line


def test_an_output_that_cannot_be_written(config: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    (line,) = fails("train", config, *SMALL, f"out={blocked}")
    assert str(blocked) in line


def test_a_split_with_one_class_has_null_metrics_with_a_reason_and_the_run_goes_on(
    world: Path, config: Path, tmp_path: Path
) -> None:
    from small_store import seal

    copy = tmp_path / "world"
    shutil.copytree(world, copy)
    label = np.load(copy / "test" / "label.npy")
    np.save(copy / "test" / "label.npy", np.ones_like(label))
    seal(copy)
    result = lain("train", config, *SMALL, f"data={copy}", f"out={tmp_path}", "name=one")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "one" / "record.json").read_text())
    assert record["metrics"]["test/auc"] is None
    assert "label 1" in record["reasons"]["test/auc"]
    assert record["metrics"]["test/logloss"] > 0


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "world"
        lain("world", data, "--users", 60, "--seed", 3)
        settings = Path(folder) / "train.yaml"
        settings.write_text(yaml.safe_dump({"data": str(data), "out": folder}))
        FIRST_LOSSES.write_text(json.dumps(first_losses(settings, Path(folder)), indent=1) + "\n")
