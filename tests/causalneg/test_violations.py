"""Requirement-violating distractors: exact in the world, counted by hand, and what BM25 and an encoder do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from causalneg.cli import main
from causalneg.data import read_dataset, write_examples
from causalneg.data.schema import Example, Negative, Passage, Query
from causalneg.encoders import build_encoder
from causalneg.evaluation.violations import Graded, measure_violations, world_violations
from causalneg.world import World, WorldConfig, make_world
from tiny_retrieval import DOCUMENTS, causalneg, tiny_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(
        WorldConfig(passages=180, questions=60), tmp_path_factory.mktemp("violations") / "world"
    )


def test_every_text_violates_as_many_as_it_says(folder: Path) -> None:
    world, data = World.open(folder), read_dataset(folder, splits=["train"])
    graded = world_violations(world, data, "train", limit=25)
    assert sum(len(one.twos) for one in graded) >= 10
    for one in graded:
        assert world.answers(one.query.id, one.positive)
        assert all(len(world.violates(one.query.id, text)) == 1 for text in one.ones)
        assert all(len(world.violates(one.query.id, text)) == 2 for text in one.twos)
        assert all(world.verdict(one.query.id, text) == "related" for text in (*one.ones, *one.twos))
    assert world_violations(world, data, "train", limit=25) == graded
    first = {query.id for query in data.split_queries("train")[:5]}
    assert world_violations(world, data, "train", limit=5) == [g for g in graded if g.query.id in first]


def test_shares_by_hand() -> None:
    graded = [
        Graded(Query(id="a", text="a"), "p", ("x", "y"), ("z",)),
        Graded(Query(id="b", text="b"), "p", ("x",)),
    ]

    def score(queries: Sequence[str], texts: Sequence[Sequence[str]]) -> list[np.ndarray]:
        assert list(queries) == ["a", "b"]
        assert [len(several) for several in texts] == [4, 2]
        return [np.array([3.0, 1.0, 3.0, 2.0]), np.array([0.0, 1.0])]

    found = measure_violations(graded, score)
    assert found.shares["positive > 1"] == {"a": 0.75, "b": 0.0}  # one is level
    assert found.shares["1 > 2"] == {"a": 0.5}
    assert found.shares["positive > 2"] == {"a": 1.0}
    assert found.shares["positive > 1 > 2"] == {"a": 0.25}  # x is below z; y is level with p
    cells = found.cells("one")
    assert cells[:2] == ["one", "0.375 (0.000 to 0.750)"]


def test_the_command_on_a_world_and_on_a_written_set(folder: Path, tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    corpus = [document.content for document in read_dataset(folder, splits=[]).documents]
    build_encoder("static", {"dim": 16}, texts=corpus).save(encoder)
    shown = causalneg("violations", folder, "--encoder", encoder, "--split", "train", "--limit", 20).stdout
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.strip().splitlines()]
    assert [row[0] for row in rows[2:]] == ["BM25", "encoder"]
    assert all(0 <= float(cell.split()[0]) <= 1 for row in rows[2:] for cell in row[1:])
    data = tiny_data(tmp_path / "data")
    refused = CliRunner().invoke(main, ["violations", str(data)])
    assert refused.exit_code == 2
    assert "is no world" in refused.stderr
    written = Negative(
        text="The fox of den number 0 is green.", source="generated", backend="rules", requirement="red"
    )
    example = Example(
        query=Query(id="q", text="Which fox is red?"), positives=[Passage(document_id=DOCUMENTS[0].id)],
        negatives=[written],
    )  # fmt: skip
    write_examples(tmp_path / "set.jsonl", [example])
    shown = causalneg("violations", data, "--set", tmp_path / "set.jsonl").stdout
    assert "1.000 (1.000 to 1.000)" in shown
