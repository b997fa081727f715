"""The simulated writer's fingerprint: put in with a known strength, taken out to the letter."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causalneg.data.schema import Document
from causalneg.text.style import (
    CLOSERS,
    OPENERS,
    REMARKS,
    has_style,
    mixed_corpus,
    sentences,
    strip_style,
    style_share,
    stylise,
)
from common.errors import ConfigError

TEXT = "The firm moved to Port Ressel in 1947. Mira Tolvane ran it. It grew."


def test_every_turn_of_phrase_comes_out_again() -> None:
    for opener in OPENERS:
        assert (
            strip_style(f"{opener} the firm moved. {opener} Mira ran it.") == "The firm moved. Mira ran it."
        )
    for closer in CLOSERS:
        assert strip_style(f"The firm moved{closer}.") == "The firm moved."
    for remark in REMARKS:
        assert strip_style(f"The firm moved. {remark} It grew.") == "The firm moved. It grew."


def test_strength_is_the_share_of_sentences() -> None:
    text = " ".join(f"The firm number {i} moved." for i in range(4000))
    assert stylise(text, 0.0, random.Random(0)) == text
    assert style_share(text) == 0.0
    assert not has_style(text)
    assert style_share(stylise(text, 1.0, random.Random(0))) == 1.0
    # Four standard errors of a share of one half of 4,000.
    assert style_share(stylise(text, 0.5, random.Random(0))) == pytest.approx(0.5, abs=4 * 0.5 / 4000**0.5)


def test_styles_are_not_heaped() -> None:
    once = stylise(TEXT, 1.0, random.Random(1))
    again = stylise(once, 1.0, random.Random(1))
    assert has_style(once)
    assert again == once


def test_the_same_draws_give_the_same_text() -> None:
    assert stylise(TEXT, 1.0, random.Random(5)) == stylise(TEXT, 1.0, random.Random(5))
    assert len({stylise(TEXT, 1.0, random.Random(seed)) for seed in range(20)}) > 10


@settings(deadline=None)
@given(st.text(), st.floats(0, 1), st.integers(0, 1000))
def test_strip_undoes_stylise_on_any_text(text: str, strength: float, seed: int) -> None:
    assert strip_style(text) == text
    assert strip_style(stylise(text, strength, random.Random(seed))) == text


WORDS = st.sampled_from('The the Mira in In U.S. Mr. e.g. end. so? no! (it it.) 5. a. I. "So "'.split())


@settings(deadline=None)
@given(st.lists(WORDS, max_size=12), st.integers(0, 1000))
def test_strip_undoes_stylise_on_awkward_sentences(words: list[str], seed: int) -> None:
    text = " ".join(words)
    assert strip_style(stylise(text, 1.0, random.Random(seed))) == text
    assert "".join(sentence + space for sentence, space in sentences(text)) == text


def test_sentences() -> None:
    text = (
        'Dr. J. Smith of the U.S. Navy paid 3.5 crowns. He left (at last.) "So?" she said, e.g. Ida.\nWhy? 5.'
    )
    assert [sentence for sentence, _ in sentences(text)] == [
        "Dr. J. Smith of the U.S. Navy paid 3.5 crowns.",
        "He left (at last.)",
        '"So?" she said, e.g. Ida.',
        "Why?",
        "5.",
    ]
    assert sentences("") == []


def test_mixed_corpus_restyles_half_and_nothing_else() -> None:
    documents = [
        Document(id=f"d{i}", title="Title", text=TEXT, metadata={"topic": i, "style": True})
        for i in range(600)
    ]
    mixed = mixed_corpus(documents, seed=3)
    assert [d.id for d in mixed] == [d.id for d in documents]
    for before, after in zip(documents, mixed, strict=True):
        assert (after.title, after.metadata["topic"]) == ("Title", before.metadata["topic"])
        assert after.metadata["style"] == has_style(after.text)
        assert strip_style(after.text) == before.text
    restyled = sum(d.metadata["style"] for d in mixed)
    assert restyled / 600 == pytest.approx(0.5, abs=4 * 0.5 / 600**0.5)
    # The style of a document does not hang on its neighbours.
    assert mixed_corpus(documents[300:310], seed=3) == mixed[300:310]
    assert mixed_corpus(documents, seed=4) != mixed
    assert mixed_corpus(documents, share=0.0)[0].text == TEXT
    assert all(d.metadata["style"] for d in mixed_corpus(documents, share=1.0))


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"strength: must be between 0 and 1, got 1.5"):
        stylise(TEXT, 1.5, random.Random(0))
    with pytest.raises(ConfigError, match=r"share: must be between 0 and 1, got -1"):
        mixed_corpus([], share=-1.0)


def test_real_text_comes_back_to_the_letter(shared: Path) -> None:
    path = shared / "data/retrieval/wiki-mix/corpus.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path}")
    rng = random.Random(0)
    shares = []
    with path.open(encoding="utf-8") as lines:
        for line, _ in zip(lines, range(500), strict=False):
            text = json.loads(line)["text"]
            assert not has_style(text)
            styled = stylise(text, 1.0, rng)
            assert strip_style(styled) == text
            shares.append(style_share(styled))
    assert len(shares) == 500
    assert sum(shares) / 500 > 0.95
