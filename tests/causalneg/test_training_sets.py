"""Training sets of other tools as they are: found by their columns, read, trained on without a corpus."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from causalneg.cli import main
from causalneg.data import FORMATS, Dataset, export_examples, read_dataset
from causalneg.data.exchange import read_training_set
from causalneg.data.exchange.detect import detect_format
from causalneg.data.schema import Document, Example, Negative, Passage, Query
from causalneg.encoders import build_encoder
from causalneg.training.data import TrainingSet, no_negatives
from common.errors import ConfigError, DataError
from tiny_retrieval import DOCUMENTS, QUERIES, TRAIN, causalneg

EXAMPLES = [
    Example(
        query=query,
        positives=[Passage(text=DOCUMENTS[row].text)],
        negatives=[
            Negative(text=DOCUMENTS[row - step].text, source="mined", backend="bm25") for step in (1, 2)
        ],
    )
    for row, query in enumerate(QUERIES)
]


def texts(examples: list[Example]) -> list[tuple[str, list[str | None], list[str | None]]]:
    return [(e.query.text, [p.text for p in e.positives], [n.text for n in e.negatives]) for e in examples]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("form", FORMATS)
def test_every_form_is_found_by_its_columns_and_read_back(form: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"set.{ending}"
    if (form, ending) == ("own", "parquet"):
        with pytest.raises(ConfigError, match="the form own is JSON lines"):
            export_examples(EXAMPLES, path, format=form)
        return
    export_examples(EXAMPLES, path, format=form)
    assert detect_format(path) == form.removesuffix("-triplet")
    found = read_training_set(path)
    assert texts(found) == texts(EXAMPLES)
    data = read_dataset(path)
    assert {document.content for document in data.documents} == {d.text for d in DOCUMENTS}
    gold = {
        data.queries[q].text: [data.document(d).text for d in ds] for q, ds in data.positives("train").items()
    }
    assert gold == {query.text: [DOCUMENTS[row].text] for row, query in enumerate(QUERIES)}


def test_rows_of_one_query_are_one_example_wherever_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    pairs = [("a", "one"), ("b", "two"), ("a", "three"), ("a", "one")]
    path.write_text("".join(json.dumps({"anchor": q, "positive": p}) + "\n" for q, p in pairs))
    assert texts(read_training_set(path)) == [("a", ["one", "three"], []), ("b", ["two"], [])]
    rows = [
        {"query": "a", "pos": ["one"], "neg": ["two"], "pos_scores": [9.0], "neg_scores": [1.5]},
        {"query": "a", "pos": ["two"], "neg": ["three"], "pos_scores": [9.0], "neg_scores": [0.5]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (example,) = read_training_set(path)
    assert texts([example]) == [("a", ["one", "two"], ["three"])]  # two is an answer, so no negative
    assert example.negatives[0].score == 0.5
    path.write_text('{"title": "x"}\n')
    assert detect_format(path) is None
    with pytest.raises(DataError, match=r"pairs.jsonl:1"):
        read_training_set(path)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    assert detect_format(tmp_path / "broken.parquet") is None


def test_a_document_that_is_the_query_itself_is_no_candidate() -> None:
    documents = [
        Document(id=id, text=text) for id, text in (("a", "one fox"), ("b", "two owls"), ("c", "One  fox"))
    ]
    queries = {"a": Query(id="a", text="one fox"), "q": Query(id="q", text="two owls")}
    data = Dataset(Path("x"), documents, queries, {"train": {"a": {"b": 1}, "q": {"b": 1}}})
    assert no_negatives(data, "train") == {"a": ["b", "a", "c"], "q": ["b"]}  # b is judged an answer
    examples = [
        Example(query=queries["a"], positives=[Passage(document_id="b")]),
        Example(query=queries["q"], positives=[Passage(document_id="a")]),
    ]
    encoder = build_encoder("static", {"dim": 4}, texts=[d.content for d in documents])
    made = TrainingSet(examples, encoder, data, known=no_negatives(data, "train"))
    batch = made[np.array([0, 1])]
    masked = {(int(row), int(text)) for row, text in zip(batch.known_row, batch.known_id, strict=True)}
    assert (0, int(batch.positive_id[1])) in masked  # the other query's positive is query a itself


def test_a_prompt_of_the_set_stands_in_front_of_its_queries(tmp_path: Path) -> None:
    encoder = build_encoder("static", {"dim": 4}, texts=[d.content for d in DOCUMENTS])
    rows = [{"query": "the fox", "pos": ["red"], "neg": ["blue"], "prompt": "owl "}]
    rows += [{"query": "the owl", "pos": ["blue"], "neg": ["red"]}]
    path = tmp_path / "prompted.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = TrainingSet(read_training_set(path), encoder, None)
    expected = encoder.tokenize(["owl the fox", "the owl"], query=True)
    assert np.array_equal(made.queries.values, expected.values)
    assert np.array_equal(made.queries.offsets, expected.offsets)


def test_a_set_of_another_tool_trains_as_its_own_form_does(tmp_path: Path) -> None:
    rows: dict[str, list[dict[str, str]]] = {}
    for form, ending in (("own", "jsonl"), ("flagembedding", "jsonl"), ("sentence-transformers", "parquet")):
        path = tmp_path / f"{form}.{ending}"
        export_examples(EXAMPLES, path, format=form)
        config = tmp_path / "train.yaml"
        config.write_text(
            json.dumps({"data": str(path), "out": str(tmp_path), "name": f"run-{form}", "tests": []})
        )
        causalneg("train", config, *TRAIN)
        metrics = (tmp_path / f"run-{form}" / "metrics.csv").read_text().splitlines()
        header = metrics[0].split(",")
        rows[form] = [dict(zip(header, line.split(","), strict=True)) for line in metrics[1:]]
        record = json.loads((tmp_path / f"run-{form}" / "record.json").read_text())
        assert (record["notes"]["train_queries"], record["notes"]["candidates"]) == (12, 2.0)
    losses = {form: [row["train/loss"] for row in found] for form, found in rows.items()}
    assert losses["own"] == losses["flagembedding"] == losses["sentence-transformers"]
    refused = CliRunner().invoke(
        main, ["train", str(tmp_path / "train.yaml"), *TRAIN, "tests=[test]", "name=no"]
    )
    assert refused.exit_code == 2
    assert "there are the splits train" in refused.stderr
