"""The ladder, and that a model's folder is read in one way by every command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from causalneg.cli import main
from causalneg.encoders import HFEncoder, build_encoder, find_encoder
from causalneg.encoders.models import PACKAGED
from causalneg.encoders.saved import Reading
from causalneg.evaluation.ladder import BM25, Ladder
from common.errors import ConfigError
from common.metrics.retrieval import RetrievalMetrics
from tiny_retrieval import DOCUMENTS, TRAIN, causalneg, tiny_data, train

BERT = {
    "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("check") / "data")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sentence-transformers that pools by the first token and reads 9 tokens."""
    folder = tmp_path_factory.mktemp("model") / "cls"
    encoder = HFEncoder.build(
        [d.content for d in DOCUMENTS], config=BERT, vocabulary=300, pooling="cls", max_tokens=9,
        query_prompt="ask: ",
    )  # fmt: skip
    encoder.export_sentence_transformers(folder)
    return folder


def metrics(values: list[float]) -> RetrievalMetrics:
    by_query = {f"q{place}": value for place, value in enumerate(values)}
    per_query = {"ndcg@10": by_query, "recall@100": by_query}
    return RetrievalMetrics(per_query, {name: float(np.mean(values)) for name in per_query}, 0, 0)


def test_the_ladder_says_what_is_below_bm25() -> None:
    generator = np.random.default_rng(0)
    base = generator.uniform(0.3, 0.5, 200)
    ladder = Ladder.of(
        "set test",
        {
            BM25: metrics(list(base)),
            "start": metrics(list(base + generator.normal(0.001, 0.2, 200))),
            "trained": metrics(list(base - 0.2)),
        },
    )
    lowest, start, trained = ladder.rungs
    assert lowest.value == pytest.approx(base.mean())
    assert lowest.low < lowest.value < lowest.high
    assert trained.against is not None
    assert trained.against.mean == pytest.approx(-0.2)
    assert (trained.against.low, trained.against.high) == pytest.approx(
        (-0.2, -0.2)
    )  # the same in every query
    first, second, third = ladder.words()
    assert "200 queries are too few to tell them apart" in first
    assert second.startswith("trained is below BM25: -0.2000 nDCG@10")
    assert "too few" not in second
    assert third.startswith(f"trained is {start.value - trained.value:.4f} below start")
    assert json.loads(ladder.to_json())["rungs"][2]["against_bm25"]["mean"] == pytest.approx(-0.2)
    with pytest.raises(ValueError, match="needs BM25"):
        Ladder.of("set test", {"start": metrics([1.0])})
    with pytest.raises(ValueError, match="1 queries have no value"):
        Ladder.of("set test", {BM25: metrics([1.0, 0.5]), "start": metrics([1.0])})


def test_training_ends_with_the_ladder_and_check_gives_the_same(data: Path, tmp_path: Path) -> None:
    run = train(tmp_path, data, "ladder=true")
    kept = json.loads((run / "ladder.json").read_text())
    assert [rung["name"] for rung in kept["rungs"]] == ["BM25", "start", "trained"]
    trained = json.loads((run / "eval" / "data-test" / "metrics.json").read_text())["metrics"]
    assert kept["rungs"][2]["value"] == trained["ndcg@10"]
    said = causalneg("check", data, "--run", run, "--quiet").stdout
    for rung in kept["rungs"]:
        assert f"{rung['value']:.4f}" in said
    assert all(f"BM25: {rung['against_bm25']['mean']:+.4f}" in said for rung in kept["rungs"][1:])
    again = causalneg("train", tmp_path / "train.yaml", *_settings(tmp_path)).stderr
    assert "nothing to do" in again
    assert kept["words"][0] in again
    off = causalneg("train", tmp_path / "train.yaml", *_settings(tmp_path), "ladder=false").stderr
    assert kept["words"][0] not in off  # and it is the same run


def _settings(folder: Path) -> list[str]:
    return [f"sets=[{{path: {folder / 'mined.jsonl'}, count: 2}}]", *TRAIN]


def test_a_dev_split_is_proposed(tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "data")
    (data / "qrels" / "test.tsv").rename(data / "qrels" / "dev.tsv")
    config = tmp_path / "train.yaml"
    config.write_text(json.dumps({"data": str(data), "out": str(tmp_path / "runs"), "tests": []}))
    assert "valid_split=dev would evaluate on it" in causalneg("train", config, *TRAIN).stderr
    assert "valid_split=dev would" not in causalneg("train", config, *TRAIN, "valid_split=dev").stderr
    assert (
        "data dev, "
        in causalneg("check", data, "--encoder", next((tmp_path / "runs").glob("*")), "--quiet").stdout
    )


def test_check_without_an_encoder_says_so(
    data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:

    missing = dataclasses.replace(PACKAGED["minilm"], module="no_package_has_this_name")
    monkeypatch.setitem(PACKAGED, "minilm", missing)
    result = causalneg("check", data, "--quiet")
    assert "no encoder to check" in result.stderr
    assert "BM25" in result.stdout
    (data / "empty").mkdir()
    for name in ("corpus.jsonl", "queries.jsonl"):
        (data / "empty" / name).write_text((data / name).read_text())
    refused = CliRunner().invoke(main, ["check", str(data / "empty")])
    assert refused.exit_code == 2
    assert "has no split test or dev" in refused.stderr


def test_a_folder_is_read_as_it_says_and_departures_are_said_and_recorded(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(model.rglob("*"))
    plain = causalneg("evaluate", "--encoder", model, "--data", data, "--quiet")
    assert "read otherwise" not in plain.stderr
    other = causalneg(
        "evaluate", "--encoder", model, "--data", data, "--quiet", "--pooling", "mean", "--max-tokens", 5,
        "--query-prompt", "", "--dtype", "bfloat16", "--batch-tokens", 64,
    )  # fmt: skip
    said = "max_tokens 5 instead of 9"
    assert "pooling 'mean' instead of 'cls'" in other.stderr
    assert said in other.stderr
    folders = [Path(result.stdout.strip().splitlines()[-1]) for result in (plain, other)]
    assert folders[0] != folders[1]
    read = [json.loads((folder / "metrics.json").read_text())["retriever"] for folder in folders]
    assert [(r["pooling"], r["max_tokens"], r["query_prompt"]) for r in read] == [
        ("cls", 9, "ask: "), ("mean", 5, ""),
    ]  # fmt: skip
    assert sorted(model.rglob("*")) == before
    config = tmp_path / "train.yaml"
    config.write_text(json.dumps({"data": str(data), "out": str(tmp_path / "runs")}))
    for name, encoder in (("transformer", f"model: {model}"), ("saved", f"folder: {model}")):
        chosen = f"encoder={{name: {name}, {encoder}, pooling: mean}}"
        trained = causalneg("train", config, *TRAIN[:-1], "ladder=false", f"name={name}", chosen)
        assert "pooling 'mean' instead of 'cls'" in trained.stderr
    as_it_is = causalneg(
        "train", config, *TRAIN[:-1], "ladder=false", f"encoder={{name: saved, folder: {model}}}"
    )
    assert "read otherwise" not in as_it_is.stderr
    kept = json.loads(
        (Path(as_it_is.stdout.strip().splitlines()[-1]) / "encoder" / "config.json").read_text()
    )
    assert (kept["pooling"], kept["max_tokens"], kept["query_prompt"]) == ("cls", 9, "ask: ")


def test_a_saved_encoder_is_read_otherwise_too(tmp_path: Path) -> None:
    texts = [d.content for d in DOCUMENTS]
    build_encoder("static", {"dim": 8}, texts=texts).save(tmp_path / "static")
    small = build_encoder("small", {"width": 8, "attention": 8, "inner": 8, "max_tokens": 9}, texts=texts)
    small.save(tmp_path / "small")
    again = find_encoder(tmp_path / "small", reading=Reading(max_tokens=3))
    assert again.max_tokens == 3
    assert again.departures == ("max_tokens 3 instead of 9",)
    with pytest.raises(ConfigError, match="pooling: an encoder of the kind 'static' has none"):
        find_encoder(tmp_path / "static", reading=Reading(pooling="cls"))
    bert = HFEncoder.build(texts, config=BERT, vocabulary=300)
    bert.save(tmp_path / "bert")
    half = find_encoder(tmp_path / "bert", reading=Reading(dtype="bfloat16"))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_a_killed_evaluation_goes_on(data: Path, model: Path, tmp_path: Path) -> None:
    """What is in the cache is not encoded again: with the kept vectors gone wrong the ranking changes."""
    cache, command = tmp_path / "cache", ["evaluate", "--encoder", model, "--data", data, "--quiet"]
    first = causalneg(*command, "--cache", cache, "--out", tmp_path / "one").stdout.splitlines()[:-1]
    again = causalneg(*command, "--cache", cache, "--out", tmp_path / "two").stdout.splitlines()[:-1]
    assert first == again
    (kept,) = (path for path in cache.rglob("*.npy") if ".keys" not in path.name)
    vectors = np.load(kept)
    np.save(kept, np.roll(vectors, 1, axis=0))
    other = causalneg(*command, "--cache", cache, "--out", tmp_path / "three").stdout.splitlines()[:-1]
    assert other != first
