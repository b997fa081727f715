"""The real commands, on a tiny world and on what users get wrong."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from causalneg.cli import main
from causalneg.data import read_dataset, read_examples, resolve_passage
from causalneg.encoders import build_encoder, encode, load_encoder
from causalneg.world import World
from trec import read_run

SMALL = [
    "encoder={name: static, dim: 32}",
    "train.batch_size=8",
    "fit.epochs=1",
    "fit.log_every=1",
    "fit.progress=false",
    "fit.accelerator=cpu",
    "tracking.wandb=disabled",
    "diagnose.holdout=0.3",
    "diagnose.documents=20",
]


ENTROPY = "loss.terms=[{name: entropy, weight: 0.05}]"


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
    return Path(works("train", config, *SMALL, ENTROPY))


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
        assert read_run(run / "eval" / folder / "run.trec")
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


def test_a_transformer_by_config_trains_with_adapters_and_cached_gradients(config: Path, home: Path) -> None:
    """The same losses, step by step, as without the cache."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    model = {"model_type": "bert", **sizes, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    options = {
        "name": "transformer",
        "config": model,
        "vocabulary": 400,
        "max_tokens": 64,
        "lora": {"r": 4, "lora_dropout": 0.0},
    }
    losses = []
    for cached, size in (("false", "null"), ("true", "500"), ("true", "null")):
        folder = Path(
            works(
                "train", config, *SMALL[1:], f"encoder={json.dumps(options)}",
                "loss.in_batch=documents", ENTROPY, f"train.cached={cached}",
                f"train.chunk_tokens={size}", "train.learning_rate=0.001", f"name=bert-{cached}-{size}",
            )
        )  # fmt: skip
        with (folder / "metrics.csv").open() as file:
            losses.append([float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")])
    assert len(losses[0]) > 3
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] == pytest.approx(losses[2], rel=1e-4)
    works("evaluate", folder, "--data", home / "world", "--quiet")


def test_one_setting_of_fit_leaves_the_others_as_they_are(config: Path) -> None:
    whole = yaml.safe_load(causalneg("train", config, "--dry-run").output)["fit"]
    changed = yaml.safe_load(causalneg("train", config, "fit.epochs=3", "--dry-run").output)["fit"]
    assert (whole["patience"], whole["monitor"]) == (0, "valid/ndcg@10")
    assert changed == {**whole, "epochs": 3}


def test_the_same_command_twice_trains_once(config: Path, run: Path) -> None:
    before = (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert works("train", config, *SMALL, ENTROPY) == str(run)
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


@pytest.mark.parametrize("format", ["sentence-transformers-list", "tevatron", "flagembedding", "ms-swift"])
def test_a_training_set_goes_out_and_comes_in_again(
    format: str, written: Path, world: Path, home: Path, tmp_path: Path
) -> None:
    works("export", written, tmp_path / "theirs.jsonl", "--format", format, "--data", world)
    works("export", tmp_path / "theirs.jsonl", tmp_path / "ours.jsonl", "--from", format, "--format", "own")
    data = read_dataset(world, splits=[])

    def texts(path: Path) -> list[tuple[str, list[str], list[str]]]:
        return [
            (
                example.query.text,
                [resolve_passage(p, data) for p in example.positives],
                [resolve_passage(n, data) for n in example.negatives],
            )
            for example in read_examples(path)
        ]

    assert texts(tmp_path / "ours.jsonl") == texts(written)


def test_what_another_form_cannot_carry_is_said(written: Path, world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    args = ["export", written, out, "--format", "sentence-transformers", "--data", world]
    assert "negatives, but all rows have the same columns" in fails(*args)[0]
    assert not out.exists()
    result = causalneg(*args, "--negatives", 2)
    assert result.exit_code == 0
    assert "beyond the first 2 of an example left out" in result.stderr
    assert "where negatives come from" in result.stderr
    assert {"query", "positive", "negative_1", "negative_2"} == set(
        json.loads(out.read_text().splitlines()[0])
    )


@pytest.mark.parametrize("approximate", ["hnsw", "ivf"])
def test_an_approximate_index_finds_nearly_the_same(
    approximate: str, run: Path, world: Path, home: Path
) -> None:
    sets, metrics = [], []
    for kind in ("exact", approximate):
        out = home / "sets" / f"by-{kind}.jsonl"
        index = kind if kind == "exact" else f"{{name: {kind}, effort: 64}}"
        works("mine", world, out, "--encoder", run, "--index", index, "--cache", home / "cache", "--quiet")
        sets.append({(e.query.id, n.document_id) for e in read_examples(out) for n in e.negatives})
        works("evaluate", run, "--data", world, "--index", index, "--out", home / f"by-{kind}", "--quiet")
        found = home / f"by-{kind}" / "eval" / "world-test" / "metrics.json"
        metrics.append(json.loads(found.read_text())["metrics"]["ndcg@10"])
    assert len(sets[0] & sets[1]) > 0.9 * len(sets[0])
    assert metrics[0] == pytest.approx(metrics[1], abs=0.05)


@pytest.mark.parametrize(
    ("index", "line"),
    [
        ("bm52", "--index: there is no search 'bm52'; did you mean 'bm25'?"),
        ("{name: hnsw, efort: 9}", "--index.efort: search 'hnsw' has no such setting; did you mean"),
        ("{name: ivf, effort: 0}", "--index.effort: must be at least 1, got 0"),
    ],
)
def test_a_wrong_index_is_one_line(index: str, line: str, world: Path) -> None:
    (found,) = fails("evaluate", "--bm25", "--data", world, "--index", index)
    assert line in found


def test_a_missing_device_is_named(run: Path, world: Path, tmp_path: Path) -> None:
    for args in (["evaluate", run, "--data", world], ["mine", world, tmp_path / "x.jsonl", "--encoder", run]):
        (line,) = fails(*args, "--device", "cuda:9", "--quiet")
        assert "device 'cuda:9': this machine has" in line
        assert "'graphics' is not known" in fails(*args, "--device", "graphics", "--quiet")[0]


def test_texts_that_are_too_long_are_counted_and_said(world: Path, home: Path, tmp_path: Path) -> None:
    data = read_dataset(world, splits=["train"])
    texts = [d.content for d in data.documents]
    build_encoder("small", {"width": 16, "attention": 8, "inner": 8, "max_tokens": 30}, texts=texts).save(
        tmp_path / "encoder"
    )
    args = [world, tmp_path / "set.jsonl", "--encoder", tmp_path / "encoder", "--quiet"]
    counts = []
    for _ in range(2):  # once encoded, once read from the cache
        result = causalneg("mine", *args, "--cache", tmp_path / "cache")
        counts.append(json.loads((tmp_path / "set.report.json").read_text())["texts_cut"])
        assert f"{counts[-1]} texts were longer than the encoder takes" in result.stderr
    assert counts[0] == counts[1]
    assert len(texts) * 0.9 < counts[0] <= len(texts) + len(data.split_queries("train"))
    result = causalneg(
        "evaluate", "--encoder", tmp_path / "encoder", "--data", world, "--quiet", "--out", tmp_path / "out"
    )
    assert "texts were longer than the encoder takes" in result.stderr
    metrics = json.loads((tmp_path / "out" / "eval" / "world-test" / "metrics.json").read_text())
    assert metrics["notes"]["texts_cut"] >= len(texts) * 0.9


def copied(world: Path, folder: Path) -> Path:
    shutil.copytree(world, folder, ignore=shutil.ignore_patterns("mixed"))
    return folder


def add_line(path: Path, line: str) -> int:
    """Append a line; its number."""
    with path.open("a") as file:
        file.write(line + "\n")
    return path.read_text().count("\n")


@pytest.mark.parametrize(
    ("name", "line", "what"),
    [
        ("corpus.jsonl", '{"_id": "x", "text": ', "is not JSON"),
        ("corpus.jsonl", '{"_id": "x", "text": " "}', "document 'x' has an empty text"),
        ("corpus.jsonl", '{"_id": "p000000", "text": "y"}', "document id 'p000000' is already on line 1"),
        ("queries.jsonl", '{"_id": "x", "text": ""}', "query 'x' has an empty text"),
        ("queries.jsonl", '{"_id": "q00000", "text": "y"}', "query id 'q00000' is already on line 1"),
        ("qrels/train.tsv", "q00000\tnone\t1", "1 document id in 1 row unknown to corpus.jsonl: 'none'"),
        ("qrels/train.tsv", "none\tp000000\t1", "1 query id in 1 row unknown to queries.jsonl: 'none'"),
        ("qrels/train.tsv", "SPARE\tp000000\t0", "has no document with a grade above 0"),
    ],
)
def test_bad_data_is_one_line_and_nothing_is_lost(
    world: Path, mined: Path, config: Path, tmp_path: Path, name: str, line: str, what: str
) -> None:
    data, out = copied(world, tmp_path / "data"), tmp_path / "out.jsonl"
    shutil.copy(mined, out)
    asked = read_dataset(world, splits=["train"])
    spare = next(query for query in asked.queries if query not in asked.qrels["train"])
    number = add_line(data / name, line.replace("SPARE", spare))
    commands = [["mine", data, out, "--quiet"], ["train", config, *SMALL, f"data={data}", "name=never"]]
    if not name.startswith("qrels"):
        commands += [["verify", data, mined, out], ["generate", data, mined, out, "--quiet"]]
    for command in commands:
        (said,) = fails(*command)
        assert said.startswith(f"error: {data / name}:{number}: ")
        assert what in said
    assert out.read_bytes() == mined.read_bytes()
    result = causalneg("mine", data, out, "--count", 8, "--depth", 40, "--quiet", "--skip-bad")
    assert result.exit_code == 0
    done = "kept 1 line as far as possible" if "unknown to corpus" in what else "left out 1 line"
    assert f"{data / name}: {done}" in result.stderr
    assert [e.negatives for e in read_examples(out)] == [e.negatives for e in read_examples(mined)]


def test_a_bad_training_set_is_one_line_and_the_others_are_kept(
    world: Path, mined: Path, config: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "set.jsonl"
    lines = mined.read_text().splitlines()
    without = json.dumps({**json.loads(lines[1]), "positives": []})
    broken.write_text("\n".join([lines[0], without, *lines[2:]]) + "\n")
    out = tmp_path / "out.jsonl"
    sets = f"sets=[{{path: {broken}, count: 4}}]"
    train = ["train", config, *SMALL, sets, "candidates=4", f"out={tmp_path / 'runs'}"]
    commands: list[list[object]] = [
        train, ["verify", world, broken, out], ["generate", world, broken, out, "--quiet"],
        ["export", broken, tmp_path / "theirs.jsonl", "--format", "tevatron", "--data", world],
    ]  # fmt: skip
    for command in commands:
        (said,) = fails(*command)
        assert said.startswith(f"error: {broken}:2: positives: List should have at least 1 item")
        result = causalneg(*command, "--skip-bad")
        assert result.exit_code == 0, result.output
        assert f"{broken}: left out 1 line" in result.stderr
    broken.write_text("\n".join([*lines, lines[0]]) + "\n")
    assert "1 queries more than once" in fails(*train)[0]


def test_bad_embeddings_are_one_line(run: Path, world: Path, home: Path, tmp_path: Path) -> None:
    broken, out = tmp_path / "encoder", tmp_path / "out.jsonl"
    shutil.copytree(run / "encoder", broken)
    weights = load_file(broken / "model.safetensors")
    save_file({name: torch.full_like(tensor, torch.nan) if name == "vectors" else tensor
               for name, tensor in weights.items()}, broken / "model.safetensors")  # fmt: skip
    mine = ["mine", world, out, "--quiet", "--cache", tmp_path / "cache", "--encoder"]
    for command in (["evaluate", "--encoder", broken, "--data", world, "--quiet"], [*mine, broken]):
        (said,) = fails(*command)
        assert "a vector that is not finite" in said
    assert not out.exists()
    works(*mine, run)
    (kept,) = (path for path in (tmp_path / "cache").rglob("*.npy") if ".keys" not in path.name)
    whole = np.load(kept)
    np.save(kept, whole[:, :7])
    (said,) = fails(*mine, run)
    assert f"{kept}: cached embeddings have dimension 7, the encoder gives {whole.shape[1]}" in said
    whole[3] = np.inf
    np.save(kept, whole)
    (said,) = fails(*mine, run)
    assert f"{kept}: the cached embedding in row 3 is not finite" in said


def test_dry_runs_write_nothing(world: Path, mined: Path, config: Path, run: Path, home: Path) -> None:
    before = sorted(home.rglob("*"))
    for args in (
        ["world", home / "none", "--dry-run"],
        ["mine", world, home / "none.jsonl", "--dry-run"],
        ["generate", world, mined, home / "none.jsonl", "--dry-run"],
        ["verify", world, mined, home / "none.jsonl", "--dry-run"],
        ["train", config, *SMALL, "--dry-run"],
        ["evaluate", run, "--data", world, "--out", home / "none", "--dry-run"],
        ["diagnose", run, "--dry-run"],
        ["export", run, home / "none", "--dry-run"],
    ):
        result = causalneg(*args)
        assert result.exit_code == 0, result.output
        assert result.output
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize(
    "command", ["world", "mine", "generate", "verify", "train", "evaluate", "check", "diagnose", "export"]
)
def test_every_command_explains_itself(command: str) -> None:
    assert len(causalneg(command, "--help").output) > 300


def test_mistakes_are_one_line_each(
    world: Path, mined: Path, config: Path, home: Path, tmp_path: Path
) -> None:
    assert "nowhere" in fails("train", config, *SMALL, f"data={home / 'nowhere'}")[0]
    assert len(fails("train", config, "encoder.nmae=static", "loss.temperature=0")) == 2
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
