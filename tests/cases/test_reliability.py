"""Cases of reliability.

Covered elsewhere, with inputs made there: 05 (all pairs fail, a judge that never answers:
``test_llm_command.py``), 06 (damaged journals: ``test_llm_journal.py``), 08 (full disks: ``test_files.py``,
``test_encoders.py``, ``test_llm_journal.py``), 09 (``extra_body`` is part of a journal's identity:
``test_llm_command.py``), 10 (categories of pandas: ``test_formats.py``), 13 (two processes in one run folder:
``test_lifecycle.py``), 14 (broken checkpoints: ``test_fit.py``), 15 (no row of ``metrics.csv`` is lost:
``test_fit.py``), 17 (a positive with words or joints more: ``test_verify.py``), 18 (the judge's last verdict
counts: ``test_llm_chat.py``), 22 (a training that diverges, a damaged record: ``test_lifecycle.py``).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from lain.data import store as stores
from outcome import Case, Command, copy, fails, works

QUICK = ("fit.epochs=1", "fit.max_steps=4", "fit.accelerator=cpu", "fit.progress=false")
QUIET = "tracking.wandb=disabled"


@pytest.fixture(scope="module")
def config(repo: Path) -> Path:
    return repo / "experiments" / "ctr" / "train.yaml"


@pytest.fixture
def corpus(cases: Path, tmp_path: Path) -> Path:
    """A small corpus with queries."""
    return copy(cases / "retrieval" / "01-stale-resume-other-data" / "small", tmp_path / "corpus")


def test_02_code_in_an_encoders_folder_does_not_run(case: Case, causalneg: Command, corpus: Path) -> None:
    folder = case("reliability/02-encoder-folder-runs-code")
    for command in (
        ("evaluate", "--encoder", "evil", "--data", corpus, "--quiet", "--out", "ev"),
        ("mine", corpus, "m.jsonl", "--encoder", "evil", "--quiet"),
    ):
        assert "--trust-remote-code" in fails(causalneg(*command))
    assert not list(folder.rglob("PWNED*"))


def test_03_other_ids_are_not_scored_evaluated_or_diagnosed(case: Case, lain: Command, config: Path) -> None:
    case("reliability/03-lain-predict-other-vocabulary")
    for version in ("1", "2"):
        works(lain("prepare", "movielens", f"v{version}", f"p{version}", "--quiet"))
    run = works(lain("train", config, "data=p1", "name=ml", QUIET, *QUICK))
    works(lain("predict", run, "p1", "--out", "v1.parquet"))
    line = fails(lain("predict", run, "p2", "--out", "v2.parquet"))
    assert "is not the data set that runs/ml was trained on" in line
    assert not Path("v2.parquet").exists()
    works(lain("prepare", "movielens", "v2", "p1", "--quiet"))
    for command in ("evaluate", "diagnose"):
        line = fails(lain(command, run))
        assert "p1: has another content than when" in line
    assert "is not the data set that runs/ml was trained on" in fails(lain("predict", run, "p1"))


def test_04_an_output_never_replaces_a_device_an_input_or_what_others_made(
    causalneg: Command, corpus: Path, tmp_path: Path
) -> None:
    pipe, circle, notes = tmp_path / "pipe", tmp_path / "circle", tmp_path / "notes.txt"
    os.mkfifo(pipe)
    circle.symlink_to(circle)
    notes.write_text("mine\n")
    link = tmp_path / "link"
    link.symlink_to(corpus / "queries.jsonl")
    before = (corpus / "queries.jsonl").read_bytes()
    for out, line in (
        (pipe, "is a device or a pipe"),
        ("/dev/full", "is a device or a pipe"),
        (corpus, ""),
        (circle, "is a link in a circle"),
        (notes, "was not made by this command"),
        (corpus / "queries.jsonl", "is read by this very command"),
        (link, "is read by this very command"),
    ):
        assert line in fails(causalneg("mine", corpus, out, "--count", 2, "--quiet"))
    for out in (pipe, link, corpus / "qrels" / "train.tsv"):
        fails(causalneg("mine", corpus, out, "--count", 2, "--quiet", "--force"))
    assert pipe.is_fifo()
    assert Path("/dev/full").is_char_device()
    assert (corpus / "queries.jsonl").read_bytes() == before
    works(causalneg("mine", corpus, notes, "--count", 2, "--quiet", "--force"))
    works(causalneg("mine", corpus, notes, "--count", 2, "--quiet"))
    own = tmp_path / "own"
    own.symlink_to(notes)
    works(causalneg("mine", corpus, own, "--count", 3, "--quiet"))
    assert own.is_symlink()
    assert len(json.loads(notes.read_text().splitlines()[0])["negatives"]) == 3
    set_before = notes.read_bytes()
    export = ("export", notes, notes, "--format", "tevatron", "--data", corpus)
    assert "is read by this very command" in fails(causalneg(*export))
    assert "is read by this very command" in fails(causalneg(*export, "--force"))
    assert "is read by this very command" in fails(causalneg("verify", corpus, notes, notes))
    assert "is read by this very command" in fails(causalneg("generate", corpus, notes, notes))
    assert notes.read_bytes() == set_before


def test_07_an_id_with_a_blank_is_refused_before_the_training(case: Case, causalneg: Command) -> None:
    case("reliability/07-late-mistake-after-training")
    Path("base.yaml").write_text("data: data\n")
    more = ("encoder={name: static, dim: 16}", "train.batch_size=4", QUIET, *QUICK)
    for command in (("mine", "data", "x.jsonl", "--quiet"), ("train", "base.yaml", *more)):
        line = fails(causalneg(*command))
        assert "has a blank, a tab or a line break" in line
    assert not Path("x.jsonl").exists()
    assert not list(Path("runs").glob("*"))


def flipped(content: bytes, place: int) -> bytes:
    """The same but for one bit."""
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("small", [stores._SMALL_BYTES, 0])
def test_11_a_flipped_bit_in_a_prepared_set_is_not_trained_on(
    cases: Path, lain: Command, config: Path, tmp_path: Path, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every file, whether small enough to be looked at when a set is opened or not."""
    monkeypatch.setattr(stores, "_SMALL_BYTES", small)
    data = tmp_path / "data"
    works(lain("prepare", "reczoo", cases / "ctr" / "02-unseen-id-at-predict" / "base", data, "--quiet"))
    whole = works(lain("verify", data))
    files = sorted(path for path in data.rglob("*") if path.is_file() and path.name != ".lock")
    assert len(files) > 15
    for file in files:
        content = file.read_bytes()
        for changed in (flipped(content, len(content) - 1), flipped(content, len(content) // 2), b""):
            file.write_bytes(changed)
            done = lain("train", config, f"data={data}", f"out={tmp_path / 'runs'}", QUIET, *QUICK)
            assert done.exit_code == 2, (file, changed, done.output)
            assert isinstance(done.exception, SystemExit), done.exception
            assert str(data) in done.stderr
            assert lain("verify", data).exit_code == 2
        file.write_bytes(content)
    assert works(lain("verify", data)) == whole
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("seed=99999999999999999999", "seed"),
        ("voice_share=-1e309", "voice_share"),
        ("loss.temperature=.inf", "loss.temperature"),
        ("encoder={name: static, dim: 1000000000}", "not enough memory"),
        ("name=.", "name"),
        ("name=../x", "name"),
        ("name=/x", "name"),
        ("mixed=/nope", "/nope: there is no such folder"),
    ],
)
def test_19_a_setting_that_cannot_be_is_one_line_before_the_training(
    causalneg: Command, corpus: Path, tmp_path: Path, setting: str, line: str
) -> None:
    (tmp_path / "base.yaml").write_text(f"data: {corpus}\nout: {tmp_path / 'runs'}\n")
    more = (QUIET, *QUICK, "diagnose.holdout=0", "train.batch_size=4", setting)
    assert line in fails(causalneg("train", tmp_path / "base.yaml", *more))
    assert not list((tmp_path / "runs").glob("*"))


def test_20_no_secret_of_the_environment_or_the_command_line_gets_out(
    lain: Command, cases: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_X", "sekrit-777")
    monkeypatch.chdir(tmp_path)
    Path("e.yaml").write_text("data: data\nseed: ${oc.env:SECRET_X}\n")
    done = lain("train", "e.yaml", "--dry-run")
    assert done.exit_code == 2
    assert "oc.env" in done.stderr
    assert "sekrit-777" not in done.output
    source = cases / "ctr" / "02-unseen-id-at-predict" / "base"
    works(lain("prepare", "reczoo", source, "data", "--quiet"))
    words = ["train", str(config), "data=data", "name=r", "tracking.group=sk-0123456789abcdefghijkl", *QUICK]
    monkeypatch.setattr("sys.argv", ["lain", *words, "--api-key", "sekrit-888", "token=sekrit-999"])
    done = lain(*words)
    works(done)
    assert "kept from W&B" in done.stderr
    kept = [path for path in Path("runs/r/wandb").rglob("*") if path.is_file()]
    assert kept
    for path in [*kept, Path("runs/r/record.json")]:
        content = path.read_bytes()
        assert b"sekrit" not in content, path
    for path in kept:
        assert b"sk-0123456789" not in path.read_bytes(), path
    assert "(redacted)" in json.loads(Path("runs/r/record.json").read_text())["command"]
    shutil.rmtree("runs")
