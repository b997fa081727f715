"""Cases of retrieval.

Covered elsewhere: 02 (another set under the same name: ``test_lifecycle.py``, on the case's own files),
04 (Chinese: ``test_language.py``, likewise), 06 (a draft before ``</think>`` is no answer:
``test_llm_chat.py``), 09 (``metrics.csv`` of a short run: ``test_lifecycle.py``).
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from outcome import Case, Command, fails, works

SHORT = (
    *("fit.epochs=1", "fit.accelerator=cpu", "fit.progress=false", "tracking.wandb=disabled", "ladder=false"),
    *("exact=false", "diagnose.holdout=0", "encoder={name: static, dim: 32}"),
)


def settings(data: str) -> Path:
    path = Path("base.yaml")
    path.write_text(f"data: {data}\n")
    return path


def test_01_another_data_set_is_another_run(case: Case, causalneg: Command) -> None:
    case("retrieval/01-stale-resume-other-data")
    base = settings("small")
    works(causalneg("mine", "small", "w.jsonl", "--count", 2, "--quiet"))
    more = (*SHORT, "train.batch_size=16", "sets=[{path: w.jsonl, count: 2}]")
    first = works(causalneg("train", base, *more, "name=n"))
    record = (Path(first) / "record.json").read_bytes()
    works(causalneg("mine", "c20", "w.jsonl", "--count", 2, "--quiet"))
    line = fails(causalneg("train", base, *more, "name=n", "data=c20"))
    assert "its data were others: c20" in line
    assert "sets[0].path names was another" in line
    assert (Path(first) / "record.json").read_bytes() == record
    folders = []
    for data in ("small", "c20"):
        works(causalneg("mine", data, "w.jsonl", "--count", 2, "--quiet"))
        folders.append(works(causalneg("train", base, *more, f"data={data}")))
    assert folders[0] != folders[1]
    found = [json.loads((Path(f) / "record.json").read_text())["notes"]["train_queries"] for f in folders]
    assert found == [200, 120]


def test_03_a_query_is_no_hit_and_no_negative_of_itself(case: Case, causalneg: Command) -> None:
    case("retrieval/03-self-retrieval-arguana")

    def ndcg(*more: str) -> float:
        works(causalneg("evaluate", "--bm25", "--data", "c02", "--out", "o", "--quiet", *more))
        found = json.loads(Path("o/eval/c02-test/metrics.json").read_text())["metrics"]["ndcg@10"]
        assert isinstance(found, float)
        return found

    assert ndcg() == 1.0
    assert ndcg("--ignore-identical") == 1.0
    assert round(ndcg("--keep-identical"), 4) == 0.6309
    more = ("train.batch_size=3", "loss.in_batch=true", "tests=[]")
    run = works(causalneg("train", settings("c02"), *SHORT, *more))
    works(causalneg("mine", "c02", "x.jsonl", "--count", 2, "--encoder", run, "--quiet"))
    examples = [json.loads(line) for line in Path("x.jsonl").read_text().splitlines()]
    negatives = {e["query"]["id"]: [n["document_id"] for n in e.get("negatives", [])] for e in examples}
    assert [len(found) for found in negatives.values()] == [2, 2, 2]
    assert all(query not in found for query, found in negatives.items())


def test_05_ids_with_blanks_are_refused_before_anything_is_done(case: Case, causalneg: Command) -> None:
    case("retrieval/05-ids-with-spaces")
    base = settings("c08t")
    more = (*SHORT, "sets=[{path: c08t-mined.jsonl, count: 2}]", "train.batch_size=4")
    for command in (
        ("evaluate", "--bm25", "--data", "c08", "--out", "o"),
        ("mine", "c08t", "x.jsonl", "--quiet"),
        ("train", base, *more),
    ):
        done = causalneg(*command)
        assert done.exit_code == 2, done.output
        assert "has a blank, a tab or a line break" in done.stderr
        assert "corpus.jsonl:" in done.stderr
        assert done.stdout == ""
    assert not any(Path(made).exists() for made in ("o", "x.jsonl"))
    assert not list(Path("runs").glob("*"))


def test_07_the_same_text_under_two_ids_is_no_negative(case: Case, causalneg: Command) -> None:
    """Each of the two queries has as its positive the text of the other's, under another id."""
    case("retrieval/07-duplicate-text-in-batch")
    more = ("loss.in_batch=true", "loss.temperature=0.01", "train.batch_size=2", "tests=[]")
    run = Path(works(causalneg("train", settings("c11"), *SHORT, *more)))
    with (run / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert losses
    assert losses == pytest.approx([0.0] * len(losses), abs=1e-6)
