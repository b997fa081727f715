"""The real commands, on a tiny world and on what users get wrong."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result

from causalneg.cli import main
from causalneg.encoders import encode, load_encoder
from causalneg.formats import read_dataset, read_examples
from causalneg.world import World
from common.retrieval_metrics import read_trec

SMALL = [
    "encoder.options={dim: 32}",
    "train.batch_size=8",
    "fit.epochs=1",
    "fit.log_every=1",
    "fit.progress=false",
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
    return result.output.strip().splitlines()[-1]


def fails(*args: object) -> list[str]:
    """The lines of a command that must end with exit code 2 and without a traceback."""
    result = causalneg(*args)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert all(line.startswith("error: ") for line in lines), result.stderr
    return lines


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("retrieval")


@pytest.fixture(scope="module")
def world(home: Path) -> Path:
    assert works("world", home / "world", "--passages", 400, "--questions", 120) == str(home / "world")
    return home / "world"


@pytest.fixture(scope="module")
def mined(world: Path, home: Path) -> Path:
    out = home / "sets" / "bm25.jsonl"
    assert works("mine", world, out, "--count", 8, "--depth", 40, "--truth", "train-truth", "--quiet") == str(
        out
    )
    return out


@pytest.fixture(scope="module")
def written(world: Path, mined: Path, home: Path) -> Path:
    out = home / "sets" / "rules.jsonl"
    works("generate", world, mined, out, "--artifact", 1, "--both-voices", "--quiet")
    return out


@pytest.fixture(scope="module")
def config(world: Path, mined: Path, written: Path, home: Path) -> Path:
    sets = [{"path": str(mined), "count": 4}, {"path": str(written), "count": 2}]
    content = {"data": str(world), "out": str(home / "runs"), "sets": sets, "candidates": 6, "exact": False}
    path = home / "train.yaml"
    path.write_text(yaml.safe_dump({**content, "mixed": str(world / "mixed")}))
    return path


@pytest.fixture(scope="module")
def run(config: Path) -> Path:
    return Path(works("train", config, *SMALL, "loss.entropy_weight=0.05"))


def test_mining_never_takes_a_known_positive_and_counts_the_unknown_ones(world: Path, mined: Path) -> None:
    data = read_dataset(world, splits=["train", "train-truth"])
    examples = read_examples(mined)
    known, truth = data.qrels["train"], data.qrels["train-truth"]
    false = sum(n.document_id in truth[e.query.id] for e in examples for n in e.negatives)
    assert not any(n.document_id in known[e.query.id] for e in examples for n in e.negatives)
    report = json.loads(mined.with_name("bm25.report.json").read_text())
    assert report["false_negatives"] == false
    total = sum(len(e.negatives) for e in examples)
    assert report["false_negative_rate"] == pytest.approx(false / total)


def test_written_negatives_do_not_answer_by_the_worlds_truth(world: Path, written: Path) -> None:
    truth = World.open(world)
    kept = [(e.query.id, n) for e in read_examples(written) for n in e.negatives if n.source == "generated"]
    assert len(kept) > 50
    assert not any(truth.answers(query, n.text or "") for query, n in kept)
    assert all(n.verdict is not None and n.verdict.valid for _, n in kept)
    rejected = read_examples(written.with_name("rules.rejected.jsonl"))
    assert all(n.verdict is not None and not n.verdict.valid for e in rejected for n in e.negatives)
    assert "|" in written.with_name("rules.card.md").read_text()


def test_a_run_folder_holds_everything(run: Path, world: Path) -> None:
    for name in ("config.yaml", "record.json", "metrics.csv", "checkpoints/last.ckpt", "diagnosis.json"):
        assert (run / name).is_file(), name
    for folder in ("world-test", "mixed-test"):
        assert read_trec(run / "eval" / folder / "run.trec")
    metrics = json.loads((run / "record.json").read_text())["metrics"]
    expected = {
        "test/ndcg@10",
        "test/recall@100",
        "test/mrr@10",
        "test/ndcg@10/mixed",
        "diagnosis/style_shift",
    }
    expected |= {"diagnosis/source_auc", "diagnosis/mutual_information", "diagnosis/untrained/source_auc"}
    assert expected <= set(metrics)
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert any(row.get("train/entropy") for row in rows)
    assert any(row.get("train/gradient_share") for row in rows)


def test_training_lowers_its_loss(config: Path, home: Path) -> None:
    folder = Path(works("train", config, *SMALL, "fit.epochs=12", "name=long"))
    with (folder / "metrics.csv").open() as file:
        losses = [float(r["train/info_nce"]) for r in csv.DictReader(file) if r.get("train/info_nce")]
    tenth = len(losses) // 10
    assert np.mean(losses[-tenth:]) < np.mean(losses[:tenth])


def test_the_same_command_twice_trains_once(config: Path, run: Path) -> None:
    before = (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert works("train", config, *SMALL, "loss.entropy_weight=0.05") == str(run)
    assert (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def test_evaluating_again_gives_the_same(run: Path, world: Path) -> None:
    before = (run / "eval" / "world-test" / "metrics.json").read_bytes()
    trec = (run / "eval" / "world-test" / "run.trec").read_bytes()
    works("evaluate", run, "--data", world, "--split", "test", "--quiet")
    assert (
        json.loads(before)["metrics"]
        == json.loads((run / "eval" / "world-test" / "metrics.json").read_bytes())["metrics"]
    )
    assert (run / "eval" / "world-test" / "run.trec").read_bytes() == trec


def test_evaluating_an_untrained_encoder_and_bm25(run: Path, world: Path, home: Path) -> None:
    for args in (["--encoder", run / "encoder"], ["--bm25"]):
        works("evaluate", *args, "--data", world, "--split", "dev", "--out", home / "other", "--quiet")
        assert (home / "other" / "eval" / "world-dev" / "run.trec").is_file()


def test_diagnosing_again_gives_the_same(run: Path) -> None:
    before = json.loads((run / "diagnosis.json").read_text())
    works("diagnose", run)
    assert json.loads((run / "diagnosis.json").read_text()) == before


def test_mining_with_a_trained_run(run: Path, world: Path, home: Path) -> None:
    out = home / "sets" / "dense.jsonl"
    args = ["mine", world, out, "--encoder", run, "--count", 4, "--cache", home / "cache", "--quiet"]
    works(*args)
    first = out.read_bytes()
    works(*args)
    assert out.read_bytes() == first
    assert all(n.backend == "dense" for e in read_examples(out) for n in e.negatives)


def test_an_exported_encoder_gives_the_same_vectors_in_sentence_transformers(run: Path, home: Path) -> None:
    from sentence_transformers import SentenceTransformer

    works("export", run, home / "model")
    texts = ["Who founded the company?", "A short passage about nothing in particular."]
    encoder = load_encoder(run / "encoder").eval()
    ours = encode(encoder, encoder.tokenize(texts, query=False), query=False)
    theirs = SentenceTransformer(str(home / "model"), device="cpu").encode_document(texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_training_set_is_exported_for_others(written: Path, world: Path, home: Path) -> None:
    out = home / "tevatron.jsonl"
    works("export", written, out, "--format", "tevatron", "--data", world)
    first = json.loads(out.read_text().splitlines()[0])
    assert first["positive_passages"][0]["text"]


def test_dry_runs_write_nothing(world: Path, mined: Path, config: Path, home: Path) -> None:
    before = sorted(home.rglob("*"))
    for args in (
        ["world", home / "none", "--dry-run"],
        ["mine", world, home / "none.jsonl", "--dry-run"],
        ["generate", world, mined, home / "none.jsonl", "--dry-run"],
        ["train", config, *SMALL, "--dry-run"],
    ):
        assert causalneg(*args).exit_code == 0
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize(
    "command", ["world", "mine", "generate", "verify", "train", "evaluate", "diagnose", "export"]
)
def test_every_command_explains_itself(command: str) -> None:
    assert len(causalneg(command, "--help").output) > 300


def test_mistakes_are_one_line_each(
    world: Path, mined: Path, config: Path, home: Path, tmp_path: Path
) -> None:
    assert "nowhere" in fails("train", config, *SMALL, f"data={home / 'nowhere'}")[0]
    assert len(fails("train", config, "encoder.kinds=static", "loss.temperature=0")) == 2
    assert "exactly 500" in fails("train", config, *SMALL, "candidates=500", "exact=true")[0]
    assert "name one of" in fails("evaluate", "--data", world)[0]
    assert "not a run folder" in fails("diagnose", tmp_path)[0]
    broken = tmp_path / "broken"
    shutil.copytree(world, broken, ignore=shutil.ignore_patterns("mixed"))
    with (broken / "queries.jsonl").open("a") as file:
        file.write('{"_id": "x", "text": \n')
    lines = (broken / "queries.jsonl").read_text().count("\n")
    assert f"queries.jsonl:{lines}" in fails("mine", broken, tmp_path / "out.jsonl", "--quiet")[0]
    works("mine", broken, tmp_path / "out.jsonl", "--skip-bad", "--quiet")
