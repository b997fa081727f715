"""What `causalneg show` says of a set and of a corpus, by hand and by the real command."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from causalneg.cli import main
from causalneg.data import write_dataset, write_examples
from causalneg.data.schema import Document, Example, Negative, Passage, Query, Verdict
from causalneg.evaluation.show import corpus_page, length_panel, set_page
from causalneg.study.examples import Nearest, read_rankings, read_some
from common.errors import DataError
from common.report.page.render import Page
from common.report.page.text import page_text
from tiny_retrieval import causalneg, tiny_data

VALID = Verdict(reason="valid", judge="truth")


def negative(text: str, **more: object) -> Negative:
    fields = {"source": "generated", "backend": "rules", "verdict": VALID, **more}
    return Negative.model_validate({"text": text, **fields})


@pytest.fixture
def training_set(tmp_path: Path) -> Path:
    """Two queries with a mined negative each, three written ones, and one that was rejected."""
    first = Example(
        query=Query(id="a", text="Which red fox sleeps?"),
        positives=[Passage(text="The red fox sleeps in a den.")],
        negatives=[
            Negative(text="The red owl sleeps.", source="mined", backend="bm25", rank=2),
            negative(
                "The blue fox wakes.", strategy="attribute shift", facet="attribute", requirement="It is red."
            ),
            negative("The red cod swims.", strategy="entity shift", facet="entity"),
        ],
    )
    second = Example(
        query=Query(id="b", text="Where is the hive?"),
        positives=[Passage(text="The hive is there.")],
        negatives=[
            Negative(text="A barn.", source="mined", backend="bm25", rank=1),
            negative("The hive is there.", strategy="entity shift", facet="entity"),
        ],
    )
    refused = negative(
        "Nothing.", strategy="entity shift", verdict=Verdict(reason="too short", judge="heuristics")
    )
    write_examples(tmp_path / "set.jsonl", [first, second])
    write_examples(tmp_path / "set.rejected.jsonl", [first.model_copy(update={"negatives": [refused]})])
    return tmp_path / "set.jsonl"


def rows(page: Page, title: str) -> list[list[str]]:
    tables = [one for section in page.sections for one in section.tables]
    return [list(row) for row in next(one.table.rows for one in tables if one.title == title)]


def test_a_set_by_hand(training_set: Path) -> None:
    page = set_page(training_set)
    assert page.answer == [
        "2 queries; negatives: 2 mined, bm25, 3 generated, rules.",
        "0 queries have no negative; 1 negatives are a positive of their own query.",
    ]
    sources = {row[0]: row[1:] for row in rows(page, "Lengths and overlaps")}
    # Of "red fox sleeps" the owl has 2 of 3 content words; of "hive" the barn has none.
    assert sources["mined, bm25"] == ["2", "1.00", "3", "2", "3", "4", "0.33", "0.33"]
    assert sources["positive"][:2] == ["2", "1.00"]
    assert rows(page, "Strategies") == [
        ["entity shift", "3", "2", "66.7 %"],
        ["attribute shift", "1", "1", "100.0 %"],
    ]
    assert rows(page, "Verdicts") == [["valid", "truth", "3"], ["too short", "heuristics", "1"]]
    text = page_text(page)
    assert "The blue fox wakes. [breaks: It is red.]" in text
    assert "Nothing." in text


def test_a_text_that_is_elsewhere_needs_its_data(tmp_path: Path) -> None:
    example = Example(query=Query(id="a", text="q"), positives=[Passage(document_id="fox0")])
    write_examples(tmp_path / "set.jsonl", [example])
    with pytest.raises(DataError, match=r"the text of document 'fox0' is not in the set.*--data"):
        set_page(tmp_path / "set.jsonl")
    page = set_page(tmp_path / "set.jsonl", data=tiny_data(tmp_path / "data"))
    assert "The fox of den number 0 is red." in page_text(page)


def test_a_corpus_by_hand(tmp_path: Path) -> None:
    documents = [
        Document(id="1", text="red fox"),
        Document(id="2", text="Red  fox"),
        Document(id="3", text="owl"),
    ]
    queries = [Query(id="a", text="fox red now"), Query(id="b", text="owl"), Query(id="c", text="Owl")]
    write_dataset(
        tmp_path, documents, queries, {"train": {"a": {"1": 1}, "b": {"3": 2}}, "test": {"c": {"3": 1}}}
    )
    page = corpus_page(tmp_path)
    assert page.answer == ["3 documents, 3 queries; judged: 1 test, 2 train."]
    checks = {row[0]: row[1] for row in rows(page, "Copies and leaks")}
    assert checks["documents with the text of another"] == "1"
    assert checks["queries of test that are also in train"] == "1"
    assert checks["queries that are a document"] == "1"
    texts = {row[0]: row[1:] for row in rows(page, "Texts")}
    assert texts["documents"] == ["3", "2", "1", "2", "2", "", ""]
    assert texts["queries, train"][:2] == ["2", "2"]


def test_shares_of_lengths_are_of_each_kind() -> None:
    panel = length_panel("t", {"a": [1, 1, 2, 3], "b": [2]})
    assert [list(one.y) for one in panel.series] == [[0, 50, 25, 25], [0, 0, 100, 0]]
    assert list(panel.series[0].x) == ["0", "1", "2", "3 or more"]


def test_the_command_prints_and_writes(training_set: Path, tmp_path: Path) -> None:
    done = causalneg("show", training_set, "--page", tmp_path / "page.html")
    assert done.stdout == page_text(set_page(training_set))
    assert "<details" in (tmp_path / "page.html").read_text()
    data = tiny_data(tmp_path / "data")
    again = [causalneg("show", data, "--examples", 2, "--seed", seed).stdout for seed in (0, 0, 1)]
    assert again[0] == again[1] != again[2]
    wrong = CliRunner().invoke(main, ["show", str(tmp_path / "nothing.jsonl")])
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (2, 1)


def test_rankings_and_examples_of_some_queries(tmp_path: Path, training_set: Path) -> None:
    lines = [f"{query} Q0 d{rank} {rank} {9 - rank} causalneg" for query in "ab" for rank in (1, 2, 3)]
    (tmp_path / "run.trec").write_text("\n".join(lines) + "\n")
    assert read_rankings(tmp_path / "run.trec", {"b"}, 2) == {"b": ["d1", "d2"]}
    found = read_some(training_set, {"b"})
    assert {id: len(example.negatives) for id, example in found.items()} == {"b": 2}
    assert read_some(tmp_path / "none.jsonl", {"b"}) == {}


def test_the_nearest_query_shares_the_rare_words() -> None:
    queries = [Query(id="a", text="who taught the owl"), Query(id="b", text="who saw the elm")]
    near = Nearest(queries)
    assert [query.id for query in near(["the elm grew", "owl who"])] == ["b", "a"]
    assert near([]) == []
