"""What makes a retrieval run another run, and what is known before it begins, through the real command."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from causalneg.cli import main
from causalneg.data import read_examples, write_examples
from causalneg.training.run import Library
from common.training.checkpoint import load_checkpoint

SMALL = [
    "train.batch_size=8",
    "fit.epochs=1",
    "fit.accelerator=cpu",
    "tracking.wandb=disabled",
    "diagnose.holdout=0.3",
    "diagnose.documents=20",
]


def causalneg(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def works(*args: object) -> str:
    result = causalneg(*args)
    assert result.exit_code == 0, result.output
    return result.stdout.strip().splitlines()[-1]


def fails(*args: object) -> list[str]:
    result = causalneg(*args)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert all(line.startswith("error: ") for line in lines), result.stderr
    return lines


def content(run: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in sorted(run.rglob("*")) if path.is_file())
    return {str(path.relative_to(run)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world, a mined set and a config that names them."""
    home = tmp_path_factory.mktemp("lifecycle")
    works("world", home / "world", "--passages", 300, "--questions", 100)
    works("mine", home / "world", home / "set.jsonl", "--count", 6, "--depth", 30, "--quiet")
    settings = {
        "data": str(home / "world"),
        "out": str(home / "runs"),
        "sets": [{"path": str(home / "set.jsonl"), "count": 2}],
        "exact": False,
    }
    (home / "train.yaml").write_text(yaml.safe_dump(settings))
    return home


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    result = causalneg("train", home / "train.yaml", *SMALL, "name=one")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{home / 'runs' / 'one'}\n"
    assert "train/loss" in result.stderr
    return home / "runs" / "one"


def test_with_fewer_batches_than_log_every_the_first_and_last_step_are_logged(run: Path) -> None:
    with (run / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row.get("train/loss")]
    assert steps == [0, load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] - 1]


def test_the_same_command_again_writes_nothing(home: Path, run: Path) -> None:
    before = content(run)
    result = causalneg("train", home / "train.yaml", *SMALL, "name=one")
    assert (result.exit_code, result.stdout) == (0, f"{run}\n")
    assert content(run) == before


def test_a_run_of_other_settings_or_other_content_is_refused(home: Path, run: Path, tmp_path: Path) -> None:
    """Same name, same paths: what the files hold is part of what the run is."""
    before = content(run)
    again = ["train", home / "train.yaml", *SMALL, "name=one"]
    (line,) = fails(*again, "train.weight_decay=0.1", "seed=3")
    assert (
        f"{run}: holds a run with other settings (seed was 0, is 3, train.weight_decay was 0.0, is 0.1)"
        in line
    )
    other = tmp_path / "world"
    shutil.copytree(home / "world", other)
    with (other / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "new", "title": "", "text": "One more document."}\n')
    (line,) = fails(*again, f"data={other}")
    assert f"its data were others: {other}" in line
    kept = (home / "set.jsonl").read_bytes()
    try:
        works("mine", home / "world", home / "set.jsonl", "--count", 5, "--depth", 30, "--quiet")
        (line,) = fails(*again)
        assert f"what sets[0].path names was another: {home / 'set.jsonl'}" in line
        own = Path(works("train", home / "train.yaml", *SMALL))
    finally:
        (home / "set.jsonl").write_bytes(kept)
    assert content(run) == before
    # Without a name each has its folder, and the same content elsewhere is the same run.
    assert Path(works("train", home / "train.yaml", *SMALL)) not in (own, run)
    shutil.copy(home / "set.jsonl", tmp_path / "elsewhere.jsonl")
    moved = f"sets=[{{path: {tmp_path / 'elsewhere.jsonl'}, count: 2}}]"
    assert works(*again, moved) == str(run)
    assert content(run) == before


def test_a_cut_of_the_learning_rate_and_the_schedule_multiply(home: Path) -> None:
    """The metric of an encoder that hardly moves does not improve, so every later epoch cuts the rate."""
    factor = ["fit.epochs=3", "valid_split=dev", "train.learning_rate=1e-12", "train.decay=false"]
    rates = []
    for lr_factor in (1.0, 0.5):
        folder = works(
            "train",
            home / "train.yaml",
            *SMALL,
            *factor,
            f"fit.lr_factor={lr_factor}",
            f"name=lr-{lr_factor}",
        )
        (optimizer,) = load_checkpoint(Path(folder) / "checkpoints" / "last.ckpt")["optimizer_states"]
        rates.append([group["lr"] for group in optimizer["param_groups"]])
    assert rates[1] == pytest.approx([rate / 4 for rate in rates[0]], rel=1e-12)


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("seed=99999999999999999999", "seed: must be from 0 to 4294967295, got 99999999999999999999"),
        ("name=.", "name: must be the name of a new folder, got '.'"),
        ("name=../x", "name: must be the name of a new folder, got '../x'"),
        ("mixed=/nope", "/nope: there is no such folder"),
        ("loss.temperature=.inf", "loss.temperature"),
        ("sets=[{path: /nope.jsonl, count: 2}]", "/nope.jsonl: there is no such file"),
        ("fit.monitor=valid/ndgc@10", "did you mean 'valid/ndcg@10'?"),
        ("fit.mode=max", "fit.mode: this setting is now gone"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_made(home: Path, setting: str, line: str) -> None:
    before = sorted((home / "runs").glob("*"))
    (found,) = fails("train", home / "train.yaml", *SMALL, setting)
    assert line in found
    assert sorted((home / "runs").glob("*")) == before


def test_a_diagnosis_refuses_data_that_changed(home: Path, run: Path, tmp_path: Path) -> None:
    folder, other = tmp_path / "run", tmp_path / "world"
    shutil.copytree(run, folder)
    shutil.copytree(home / "world", other)
    with (other / "queries.jsonl").open("a") as file:
        file.write('{"_id": "new", "text": "One more?"}\n')
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**settings, "data": str(other)}))
    (line,) = fails("diagnose", folder)
    assert f"{other}: has another content than when {folder} was trained on it" in line


def test_what_runs_share_is_known_by_its_content_not_by_its_date(home: Path, tmp_path: Path) -> None:
    library, path = Library(), tmp_path / "set.jsonl"
    shutil.copy(home / "set.jsonl", path)
    first = library.examples(path, skip_bad=False, report=None)
    assert library.examples(path, skip_bad=False, report=None) is first
    date = path.stat()
    write_examples(path, read_examples(path)[1:])
    os.utime(path, ns=(date.st_atime_ns, date.st_mtime_ns))
    assert len(library.examples(path, skip_bad=False, report=None)) == len(first) - 1
    data = tmp_path / "world"
    shutil.copytree(home / "world", data, ignore=shutil.ignore_patterns("mixed"))
    one = library.dataset(data, ["test"], skip_bad=False, report=None)
    assert library.dataset(data, ["test"], skip_bad=False, report=None) is one
    judged = data / "qrels" / "test.tsv"
    date = judged.stat()
    judged.write_text("\n".join(judged.read_text().splitlines()[:-1]) + "\n")
    os.utime(judged, ns=(date.st_atime_ns, date.st_mtime_ns))
    assert library.dataset(data, ["test"], skip_bad=False, report=None) is not one


def test_published_cases_of_a_stale_run(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = shared / "cases" / "retrieval" / "02-stale-resume-remined-set"
    if not case.is_dir():
        pytest.skip(f"no such case: {case}")
    shutil.copytree(case, tmp_path / "case")
    monkeypatch.chdir(tmp_path / "case")
    Path("base.yaml").write_text("data: small\n")
    settings = ["exact=false", "diagnose.holdout=0", "encoder.dim=32"]
    settings += ["sets=[{path: v.jsonl, count: 3}]", *SMALL[1:4]]
    folders, queries = [], []
    for name in ("full", "second"):
        shutil.copy(f"{name}.jsonl", "v.jsonl")
        folders.append(works("train", "base.yaml", *settings))
        queries.append(json.loads((Path(folders[-1]) / "record.json").read_text())["notes"]["train_queries"])
    assert folders[0] != folders[1]
    assert queries == [200, 100]
