"""The language model that learns the world: what it is taught, and a short lesson with the real command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from causalneg.commands import mine_set
from causalneg.data import read_dataset, read_examples
from causalneg.data.schema import Analysis
from causalneg.generation.driver import generate, pairs_from
from causalneg.generation.writers import taught
from causalneg.generation.writers.base import Pair
from causalneg.generation.writers.language_model import LLMWriter
from causalneg.generation.writers.prompts import Drafts, Limits, Prompts, Rewritten
from causalneg.generation.writers.rules import RulesWriter
from causalneg.llm.answers import read_answer
from causalneg.llm.chat import ChatRequest, Message
from causalneg.llm.tiny_model import train_tokenizer
from causalneg.llm.transformers_local import TransformersBackend
from causalneg.mining import MiningRules
from causalneg.text.corpus import Corpus
from causalneg.world import World, WorldConfig, make_world


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    make_world(WorldConfig(passages=300, questions=120), path / "world")
    mine_set(path / "world", path / "mined.jsonl", split="train", rules=MiningRules(count=2))
    return path


@pytest.fixture(scope="module")
def pairs(data: Path) -> list[Pair]:
    dataset = read_dataset(data / "world", splits=[])
    return pairs_from(read_examples(data / "mined.jsonl")[:16], dataset, candidates=2)


def test_it_learns_the_conversations_that_it_will_hold(data: Path, pairs: list[Pair]) -> None:
    dataset = read_dataset(data / "world", splits=[])
    prompts = Prompts(limits=Limits(candidates=2))
    rules = RulesWriter(corpus=Corpus.of(dataset), world=World.open(data / "world"))
    found = list(taught.conversations(prompts, rules, pairs))
    both = [c for c in found if len(c) == 5]
    spoken = [c for c in found if len(c) == 3]
    assert len(both) > len(pairs) / 2
    assert len(spoken) > len(pairs) / 2
    by_query = {pair.query.text: pair for pair in pairs}
    for messages in both:
        query = messages[1].content.splitlines()[0].removeprefix("Query: ")
        assert tuple(messages[:2]) == prompts.analysis(by_query[query].query, by_query[query].positive)
        analysis, repaired = read_answer(messages[2].content, Analysis)
        assert not repaired
        drafts, repaired = read_answer(messages[4].content, Drafts)
        assert not repaired
        assert isinstance(drafts, Drafts)
        assert isinstance(analysis, Analysis)
        orders = [line for line in messages[3].content.splitlines() if line.startswith("negative_")]
        assert len(orders) == sum(d is not None for d in drafts.in_order())
    for messages in spoken:
        assert isinstance(read_answer(messages[2].content, Rewritten)[0], Rewritten)


def test_a_sample_is_what_the_chat_template_writes(pairs: list[Pair]) -> None:
    prompts = Prompts()
    messages = list(prompts.analysis(pairs[0].query, pairs[0].positive))
    tokenizer = train_tokenizer([m.content for m in messages], vocabulary=400)
    tokenizer.chat_template = taught.TEMPLATE
    answer = Message("assistant", '{"a": "b"}')
    sample = taught.tokenize(tokenizer, [*messages, answer])
    turns = [{"role": m.role, "content": m.content} for m in (*messages, answer)]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    assert "THE CORPUS" not in whole
    assert sample.ids == tokenizer.encode(whole, add_special_tokens=False)
    own = [token for token, mine in zip(sample.ids, sample.answer, strict=True) if mine]
    assert tokenizer.decode(own) == '{"a": "b"}<|im_end|>'
    # What stands before the answer is the prompt that the model will get.
    prompt = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
    assert sample.ids[: sample.answer.index(True)] == tokenizer.encode(prompt, add_special_tokens=False)


@pytest.mark.slow
def test_a_short_lesson_gives_a_model_that_every_backend_can_load(
    repo: Path, data: Path, pairs: list[Pair]
) -> None:
    out = data / "model"
    args = ["teach", str(data / "world"), str(data / "mined.jsonl"), str(out)]
    command = [sys.executable, "-m", "causalneg.cli", *args, "--minutes", "0.3", "--tokens", "2048"]
    environment = {**os.environ, "PYTHONPATH": str(repo / "packages")}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    facts = json.loads((out / "world-lm.json").read_text())
    assert 8e6 < facts["parameters"] < 12e6
    assert facts["loss"] < 8.3  # the loss of knowing nothing, log 4096
    backend = TransformersBackend(model=str(out), batch=2, attempts=1, device="cpu")
    writer = LLMWriter(backend=backend, limits=Limits(candidates=2, analysis_tokens=32, negatives_tokens=32))
    made = generate(pairs[:2], writer, report=lambda line: None)
    assert len(made.examples) == 2
    request = ChatRequest("k", Prompts().rewrite("Ann won."), Rewritten, {}, 8)
    assert len(backend._prompt(request)) < 60
