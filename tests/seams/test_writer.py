"""A writer is one file and one line: a new one writes a set with the real command."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from causalneg.cli import main
from causalneg.commands import mine_set
from causalneg.data import read_examples
from causalneg.generation.status import read_totals
from causalneg.generation.writers import WRITERS
from causalneg.mining import MiningRules
from causalneg.world import WorldConfig, make_world

WRITER = '''
"""Copies the best mined passage and leaves out its first sentences."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge

from causalneg.data.schema import Document, Negative, Passage
from causalneg.generation.jobs import Failure, Job, done
from causalneg.generation.writers.base import Pair, Writer, Written


class Tail(Writer):
    """Writes the end of a mined passage.

    Args:
        leave: Sentences that are left out.
        seed: Decides nothing.
    """

    name = "tail"

    def __init__(self, *, leave: Annotated[int, Ge(0)] = 1, seed: int = 0) -> None:
        self._leave = leave

    @property
    def identity(self) -> dict[str, str]:
        return {"writer": self.name, "leave": str(self._leave)}

    def write(self, pair: Pair) -> Job[Written]:
        if not pair.candidates:
            return done(Written(failure=Failure("nothing mined")))
        base = pair.candidates[0]
        text = ". ".join(base.text.split(". ")[self._leave :])
        negative = Negative(document_id=base.id, text=text, source="generated", backend=self.name)
        return done(Written(negatives=(negative,)))

    def rewrite(self, document: Document) -> Job[Passage | Failure]:
        return done(Failure("mute"))
'''


@pytest.fixture
def tail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "tail_writer.py").write_text(WRITER)
    monkeypatch.syspath_prepend(str(tmp_path))
    WRITERS.add("tail", "tail_writer:Tail")
    yield
    WRITERS.remove("tail")
    sys.modules.pop("tail_writer", None)


@pytest.mark.usefixtures("tail")
def test_a_writer_of_one_file_writes_a_set(tmp_path: Path) -> None:
    make_world(WorldConfig(passages=240, questions=40), tmp_path / "world")
    mine_set(tmp_path / "world", tmp_path / "mined.jsonl", split="train", rules=MiningRules(count=3))
    paths = [str(tmp_path / name) for name in ("world", "mined.jsonl", "set.jsonl")]
    args = ["generate", *paths, "--writer", "tail", "writer.leave=2", "--limit", "6", "--quiet"]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output
    sets = [read_examples(tmp_path / name) for name in ("set.jsonl", "set.rejected.jsonl")]
    assert {n.backend for examples in sets for e in examples for n in e.negatives} == {"tail"}
    totals = read_totals(tmp_path / "set.journal")
    assert (totals.done, totals.identity) == (6, {"writer": "tail", "leave": "2"})
    assert "- writer: tail" in (tmp_path / "set.card.md").read_text()
