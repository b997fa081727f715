"""Retrieval studies: a whole tiny one for real, its mistakes, and the second call."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from matplotlib.image import imread

from causalneg.cli import main
from causalneg.study.kind import RETRIEVAL
from causalneg.study.prepare import Prepared
from common.errors import UserError
from common.study.command import find_study
from common.study.results import complete, resolve

ROOT = Path(__file__).resolve().parent.parent

TINY = """
name: tiny
description: A study in miniature.
data: {format: world, passages: 400, questions: 150, seed: 1}
truth_split: train-truth
seeds: [0, 1]
reference: bm25
backbones: [static]
start: {loss.in_batch: true}
sets:
  bm25: {mine: bm25, count: 8, depth: 40}
  dense: {mine: dense, count: 8, depth: 40}
  rules: {write: rules, from: bm25, artifact: 1.0, voices: 2}
arms:
  bm25: {sets: [{path: bm25, count: 5}]}
  dense: {sets: [{path: dense, count: 5}, {path: bm25, count: 0}]}
  causalneg:
    sets: [{path: bm25, count: 4}, {path: rules, count: 1}]
    loss.terms: [{name: entropy, weight: 0.05}]
  both-voices: {sets: [{path: bm25, count: 4}, {path: rules, count: 1}], voices: rules}
main: [bm25, causalneg, both-voices]
extra:
  - {backbones: [static], arms: [bm25, dense], seeds: [0], overrides: {loss.in_batch: true}, tag: in-batch on}
  - {backbones: [static], arms: [dense, causalneg], seeds: [0], tag: by an encoder}
base:
  candidates: 5
  encoder: {dim: 32}
  train: {batch_size: 8}
  diagnose: {examples: [bm25, rules], holdout: 0.2, documents: 20, every: 3}
  tracking: {wandb: disabled}
  fit: {epochs: 1, patience: 0, progress: false, log_every: 1, accelerator: cpu}
"""


def reproduce(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "causalneg.cli", "study", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "packages")},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "tiny.yaml"
    path.write_text(TINY)
    return path


def inside(*arguments: object) -> Result:
    """The command in this process; mistakes are left as exceptions."""
    return CliRunner().invoke(main, ["study", *map(str, arguments)], standalone_mode=False)


@pytest.mark.slow
def test_a_whole_study_and_a_second_call_that_only_prints(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = reproduce(study, "--out", out)
    assert first.returncode == 0, first.stderr
    results = json.loads((out / "results.json").read_text())
    assert results["study"] == "tiny"
    main = [row for row in results["rows"] if "tag" not in row]
    assert {(row["arm"], row["seed"], row["split"]) for row in main} == {
        (arm, seed, "test") for arm in ("bm25", "causalneg", "both-voices") for seed in (0, 1)
    }
    assert {row["arm"] for row in results["rows"] if row.get("tag")} == {"bm25", "dense", "causalneg"}
    wanted = {"ndcg@10", "recall@100", "mrr@10", "ndcg@10/mixed", "style_shift", "source_auc"}
    wanted |= {"mutual_information", "untrained/source_auc", "ndcg@10/mixed-styled"}
    assert all(wanted <= set(row["metrics"]) for row in results["rows"])
    table = (out / "table.md").read_text()
    assert first.stdout.strip() == table.strip()
    assert "BM25" in table
    # A tag without the study's reference is told against its own first arm.
    assert "- dense [95 %]" in table.split("## test, by an encoder")[1].split("##")[0]
    assert "% false negatives" in table
    # Signals are those of the held-out queries for every arm, so that all begin at the untrained encoder's.
    signals = table.split("## Signals while training")[1].split("##")[0]
    assert len(set(re.findall(r"\| +(\S+) -> \S+ \| +(\S+) -> ", signals))) == 1
    for plot in ("ndcg.png", "similarity.png", "source_auc.png"):
        assert imread(out / plot).ndim == 3
    assert not list(out.rglob("*.ckpt"))  # the weights lie in encoder/
    times = {path: path.stat().st_mtime_ns for path in out.rglob("record.json")}
    second = reproduce(study, "--out", out)
    assert second.returncode == 0
    assert second.stdout == first.stdout
    assert {path: path.stat().st_mtime_ns for path in out.rglob("record.json")} == times


@pytest.mark.slow
def test_a_model_that_the_study_teaches_writes_a_set(tmp_path: Path) -> None:
    study, out = tmp_path / "taught.yaml", tmp_path / "out"
    sets = "  some: {take: 12, from: bm25}\n  model: {write: world-lm, from: some, batch: 12}\n"
    arms = (
        "  some: {sets: [{path: some, count: 5}]}\n  model: {sets: [{path: some, count: 4}, {path: model}]}\n"
    )
    before, rest = TINY.split("arms:\n")
    base = rest[rest.index("base:") :]
    text = before.replace("seeds: [0, 1]", "seeds: [0]").replace("reference: bm25", "reference: some")
    text += f"{sets}teach: {{from: bm25, minutes: 0.1, device: cpu}}\narms:\n{arms}{base}"
    study.write_text(text)
    done = reproduce(study, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "written kept" in done.stdout  # the set has its line in the table, with its shares by truth
    assert len((out / "sets" / "some.jsonl").read_text().splitlines()) == 12
    lesson = json.loads((out / "world-lm" / "world-lm.json").read_text())
    assert lesson["lesson"]["minutes"] == 0.1
    assert not list(out.glob(".world-lm.*.state"))
    journal = (out / "sets" / "model.journal").read_bytes()
    again = reproduce(study, "--out", out)
    assert again.stdout == done.stdout
    assert (out / "sets" / "model.journal").read_bytes() == journal
    study.write_text(text.replace("batch: 12}", "batch: 12, engine: nowhere}"))
    wrong = reproduce(study, "--out", out)
    assert wrong.returncode == 2
    assert "sets.model.engine: there is no" in wrong.stderr


def test_the_plan_is_shown_without_doing_it(study: Path, tmp_path: Path) -> None:
    shown = inside(study, "--out", tmp_path / "out", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert shown.output.count("# static-") == 3 * 2 + 2 + 1  # one run serves two tags
    assert not (tmp_path / "out").exists()


def test_a_run_is_done_again_when_what_it_reads_changes(study: Path, tmp_path: Path) -> None:
    loaded = find_study(RETRIEVAL, str(study))
    plan = loaded.plan()

    def hashes(**prints: str) -> dict[tuple[str, str], str]:
        made = {"": "data", "bm25": "a", "dense": "b", "rules": "c"} | prints
        prepared = Prepared(tmp_path, None, {}, None, made)
        return {(s.arm, s.key): s.hash for s in complete(resolve(RETRIEVAL, plan), prepared.fingerprint)}

    def changed(**prints: str) -> set[str]:
        new = hashes(**prints)
        return {arm for (arm, key), value in hashes().items() if new[arm, key] != value}

    assert changed(other="d") == set()
    assert changed(dense="new") == {"dense"}
    # The source of every run is diagnosed on the written set.
    assert changed(rules="new") == changed(**{"": "new"}) == {"bm25", "dense", "causalneg", "both-voices"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("path: rules, count: 1}], voices", "path: rule, count: 1}], voices", "no set 'rule'; did you mean"),
        ("from: bm25,", "from: dense2,", "is not a set before it"),
        ("reference: bm25", "reference: bm26", "no arm 'bm26'"),
        ("{mine: bm25, count: 8", "{count: 8", "needs one of mine, take and write"),
        ("holdout: 0.2", "holdout: 2.0", "holdout"),
        ("write: rules", "write: world-lm", "writes with a model that is taught; give the study teach"),
        ("start: {", "teach: {from: rules, minutes: 1}\nstart: {", "teach.from: 'rules' is not a mined set"),
        (
            "sets:\n  bm25: {mine: bm25, count: 8, depth: 40}\n",
            "teach: {from: dense}\nsets:\n  bm25: {mine: bm25}\n  lm: {write: world-lm, from: bm25}\n",
            "sets.lm: must come after 'dense', which is learnt from",
        ),
        ("start: {", "teach: {from: bm25, minuts: 1}\nstart: {", "minuts"),
        ("start: {", "teach: {from: bm25, minutes: 0}\nstart: {", "minutes: must be above 0"),
    ],
)
def test_mistakes_show_before_anything_is_made(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TINY
    path = tmp_path / "wrong.yaml"
    path.write_text(TINY.replace(old, new))
    done = inside(path, "--out", tmp_path / "out")
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_real_data_that_is_missing_is_said_with_what_to_put_where(tmp_path: Path) -> None:
    done = inside(
        ROOT / "experiments/retrieval/wiki-mix.yaml", "--data", tmp_path / "none", "--out", tmp_path / "out"
    )
    assert "corpus.jsonl, queries.jsonl, qrels/train.tsv" in str(done.exception)
    assert "--data" in str(done.exception)


def test_a_mistake_is_one_line_and_exit_code_2() -> None:
    done = reproduce("wrld")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.endswith(": starting")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert "did you mean 'world'" in done.stderr
