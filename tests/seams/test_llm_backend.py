"""A backend of language models is one file and one line: a new one writes a set with the real command."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from causalneg.cli import main
from causalneg.commands import mine_set
from causalneg.data import read_examples
from causalneg.generation.status import read_totals
from causalneg.llm import BACKENDS
from causalneg.mining import MiningRules
from causalneg.world import WorldConfig, make_world

BACKEND = '''
"""A model that knows the answer to everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated

from annotated_types import Ge

from causalneg.llm.chat import ChatBackend, ChatRequest, ChatResult, Outcome
from fault_server import right_answer


class Oracle(ChatBackend):
    """Answers rightly, at once.

    Args:
        model: Name of the model.
        price: Tokens that each answer takes.
    """

    name = "oracle"

    def __init__(self, *, model: str = "delphi", price: Annotated[int, Ge(1)] = 20) -> None:
        self.model, self._price = model, price

    def stream(self, take: Callable[[], ChatRequest | None]) -> Iterator[Outcome]:
        while (request := take()) is not None:
            text = right_answer([{"role": m.role, "content": m.content} for m in request.messages])
            yield ChatResult(request.key, request.shape.model_validate_json(text), 100, self._price)
'''


@pytest.fixture
def oracle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "oracle_backend.py").write_text(BACKEND)
    monkeypatch.syspath_prepend(str(tmp_path))
    BACKENDS.add("oracle", "oracle_backend:Oracle")
    yield
    BACKENDS.remove("oracle")
    sys.modules.pop("oracle_backend", None)


def generate(folder: Path, *more: str) -> Result:
    paths = [str(folder / name) for name in ("world", "mined.jsonl", "set.jsonl")]
    return CliRunner().invoke(main, ["generate", *paths, "--quiet", "--limit", "6", *more])


@pytest.mark.usefixtures("oracle")
def test_a_backend_of_one_file_writes_and_judges_a_set(tmp_path: Path) -> None:
    make_world(WorldConfig(passages=240, questions=40), tmp_path / "world")
    mine_set(tmp_path / "world", tmp_path / "mined.jsonl", split="train", rules=MiningRules(count=3))
    result = generate(tmp_path, "--backend", "oracle", "--judge", "llm", "backend.price=7")
    assert result.exit_code == 0, result.output
    sets = [read_examples(tmp_path / name) for name in ("set.jsonl", "set.rejected.jsonl")]
    negatives = [n for examples in sets for e in examples for n in e.negatives]
    assert negatives
    assert {(n.backend, n.model) for n in negatives} == {("oracle", "delphi")}
    totals = read_totals(tmp_path / "set.journal")
    assert totals.completion_tokens == 7 * 12
    assert (totals.identity["backend"], totals.identity["model"]) == ("oracle", "delphi")
    # Its settings are checked like any other's.
    wrong = generate(tmp_path, "--backend", "oracle", "backend.price=0", "backend.prise=3")
    assert wrong.exit_code == 2
    assert "backend.price: must be at least 1, got 0" in wrong.stderr
    assert "did you mean 'backend.price'?" in wrong.stderr
