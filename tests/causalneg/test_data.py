"""Training data: which negatives, and batches that hold every text once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from causalneg.data import Dataset, passage_key
from causalneg.data.schema import Document, Example, Negative, Passage, Query
from causalneg.encoders import Encoder, build_encoder
from causalneg.losses import info_nce
from causalneg.training.data import Batch, Shuffled, TrainingSet, combine, held_out
from common.errors import DataError

WORDS = ("red", "green", "blue", "one", "two", "three", "sun", "moon", "sea", "hill")


def corpus(count: int) -> Dataset:
    documents = [
        Document(id=f"d{i}", text=" ".join(WORDS[(i + k * k) % 10] for k in range(2 + i % 4)))
        for i in range(count)
    ]
    queries = {f"q{i}": Query(id=f"q{i}", text=WORDS[i % 10]) for i in range(6)}
    return Dataset(path=Path("corpus"), documents=documents, queries=queries, qrels={}, fingerprint="")


def mined(document: str) -> Negative:
    return Negative(document_id=document, source="mined", backend="bm25")


def written(text: str) -> Negative:
    return Negative(text=text, source="generated", backend="rules")


def example(query: str, positives: Sequence[str], negatives: Sequence[Negative]) -> Example:
    return Example(
        query=Query(id=query, text=query),
        positives=[Passage(document_id=d) for d in positives],
        negatives=list(negatives),
    )


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return build_encoder("static", {"dim": 8}, texts=[d.content for d in corpus(30).documents])


def known_positive(batch: Batch) -> torch.Tensor:
    """Whether the positive of query j (column) is known to answer query i (row)."""
    pairs = set(zip(batch.known_row.tolist(), batch.known_id.tolist(), strict=True))
    ids = batch.positive_id.tolist()
    return torch.tensor([[(i, number) in pairs for number in ids] for i in range(len(batch))])


def texts_of(training: TrainingSet, batch: Batch, rows: torch.Tensor) -> list[str]:
    """The texts behind a batch's document rows, found again by their token ids."""
    known = {tuple(training.documents[i].tolist()): t for i, t in enumerate(training.texts)}
    bounds = batch.document_offsets.tolist()
    ids = batch.document_ids.tolist()
    return [known[tuple(ids[bounds[r] : bounds[r + 1]])] for r in rows.tolist()]


def test_combine_takes_counts_and_fills_up_in_the_same_order() -> None:
    bm25 = [example("q0", ["d0"], [mined(f"d{i}") for i in range(1, 8)])]
    rules = [example("q0", ["d0"], [written("a"), written("b"), written("c"), written("d")])]
    (made,) = combine([(bm25, 2), (rules, 3)], candidates=6)
    assert [n.document_id or n.text for n in made.negatives] == ["d1", "d2", "a", "b", "c", "d3"]
    (few,) = combine([(bm25, 2), ([example("q0", ["d0"], [written("a")])], 3)], candidates=6)
    assert [n.document_id or n.text for n in few.negatives] == ["d1", "d2", "a", "d3", "d4", "d5"]


def test_combine_gives_every_arm_the_same_number_of_negatives_or_says_who_falls_short() -> None:
    bm25 = [example("q0", ["d0"], [mined("d1")]), example("q1", ["d0"], [mined("d1"), mined("d2")])]
    with pytest.raises(DataError, match=r"1 of 2 queries do not have exactly 2 negatives \(q0"):
        combine([(bm25, 2)], candidates=2)
    assert [len(e.negatives) for e in combine([(bm25, 2)], candidates=2, exact=False)] == [1, 2]


def test_combine_counts_the_same_passage_once() -> None:
    first = [example("q0", ["d0"], [mined("d1"), mined("d1"), mined("d2")])]
    second = [example("q0", ["d5"], [mined("d2"), mined("d3")])]
    (made,) = combine([(first, 2), (second, 2)], candidates=3)
    assert [n.document_id for n in made.negatives] == ["d1", "d2", "d3"]
    assert [p.document_id for p in made.positives] == ["d0", "d5"]


def test_combine_refuses_an_empty_first_set() -> None:
    with pytest.raises(DataError, match="no training examples"):
        combine([([], 2)])


def test_combine_loses_no_query_that_stands_twice() -> None:
    twice = [example("q0", ["d0"], [mined("d1")]), example("q0", ["d0"], [mined("d2")])]
    with pytest.raises(DataError, match=r"set 2 has 1 queries more than once \(q0"):
        combine([(twice[:1], 1), (twice, 1)])


def test_a_batch_holds_every_text_once_and_points_to_the_right_ones(encoder: Encoder) -> None:
    data = corpus(30)
    examples = [
        example("q0", ["d0"], [mined("d1"), written("sun sun sea"), mined("d2")]),
        example("q1", ["d1"], []),
        example("q2", ["d2"], [mined("d0"), mined("d3")]),
    ]
    training = TrainingSet(examples, encoder, data)
    batch = training[np.array([2, 0, 1])]
    content = {d.id: d.content for d in data.documents}
    assert len(batch) == 3
    assert len(batch.document_offsets) - 1 == 5  # d0, d1, d2, d3 and the written one
    assert texts_of(training, batch, batch.positive) == [content["d2"], content["d0"], content["d1"]]
    assert texts_of(training, batch, batch.negative) == [
        content["d0"],
        content["d3"],
        content["d1"],
        "sun sun sea",
        content["d2"],
    ]
    assert batch.negative_row.tolist() == [0, 0, 1, 1, 1]
    assert batch.generated.tolist() == [False, False, False, True, False]


def test_token_ids_of_the_corpus_are_used_as_if_made_anew(encoder: Encoder) -> None:
    data = corpus(30)
    examples = [
        example("q0", ["d7"], [written("sun sun sea"), mined("d1"), written("moon"), mined("d29")]),
        example("q1", ["d0"], [mined("d7")]),
    ]
    known = encoder.tokenize([d.content for d in data.documents], query=False)
    anew, taken = (TrainingSet(examples, encoder, data, corpus=tokens) for tokens in (None, known))
    assert np.array_equal(taken.documents.values, anew.documents.values)
    assert np.array_equal(taken.documents.offsets, anew.documents.offsets)


def test_known_positives_are_seen_among_the_batchs_positives(encoder: Encoder) -> None:
    examples = [example("q0", ["d0"], []), example("q1", ["d1"], []), example("q2", ["d0"], [])]
    training = TrainingSet(examples, encoder, corpus(30), known={"q1": ["d0", "d1", "d9"]})
    batch = training[np.array([0, 1, 2])]
    expected = [[True, False, True], [True, True, True], [True, False, True]]
    assert known_positive(batch).tolist() == expected


def test_known_positives_are_known_by_their_text_too(encoder: Encoder) -> None:
    """Two documents of one text: neither is a negative of a query that the other answers."""
    texts = {"a": "red sun", "copy": "Red  sun", "b": "blue sea"}
    documents = [Document(id=id, text=text) for id, text in texts.items()]
    data = Dataset(Path("twice"), documents, {})
    examples = [example("q0", ["a"], []), example("q1", ["copy"], []), example("q2", ["b"], [mined("a")])]
    training = TrainingSet(examples, encoder, data, known={"q2": ["copy"]})
    batch = training[np.array([0, 1, 2])]
    assert known_positive(batch).tolist() == [[True, True, False], [True, True, False], [True, True, True]]
    vectors = torch.eye(3)[[0, 0, 1]]
    losses = info_nce(
        vectors, vectors, vectors[:1], batch.negative_row, 0.05, "documents",
        positive_id=batch.positive_id, negative_id=batch.negative_id,
        known_row=batch.known_row, known_id=batch.known_id, reduction="none",
    )  # fmt: skip
    assert losses.tolist() == pytest.approx([0, 0, 0], abs=1e-6)  # ln 2 for the first two by their ids alone


def test_both_voices_stand_in_with_their_share(encoder: Encoder) -> None:
    examples = [example(f"q{i}", [f"d{i}"], [mined(f"d{i + 10}")]) for i in range(6)]
    voices = {
        passage_key(Passage(document_id=f"d{i}")): Passage(document_id=f"d{i}", text=f"moon {w}", voice="w")
        for i, w in enumerate(WORDS)
    }
    rows = np.arange(6)
    spoken = TrainingSet(examples, encoder, corpus(30), voices=voices, voice_share=1.0)
    batch = spoken[rows]
    assert texts_of(spoken, batch, batch.positive) == [f"moon {w}" for w in WORDS[:6]]
    assert not any(
        t.startswith("moon ") and len(t.split()) == 2 for t in texts_of(spoken, batch, batch.negative)
    )
    silent = TrainingSet(examples, encoder, corpus(30), voices=voices, voice_share=0.0)
    assert texts_of(silent, silent[rows], silent[rows].positive) == [
        d.content for d in corpus(30).documents[:6]
    ]
    half = TrainingSet(examples, encoder, corpus(30), voices=voices, voice_share=0.5)
    counts = []
    for epoch in range(200):
        half.epoch = epoch
        drawn = texts_of(half, half[rows], half[rows].positive)
        counts.append(sum(t in [f"moon {w}" for w in WORDS] for t in drawn))
    assert abs(np.mean(counts) - 3) < 4 * np.sqrt(6 / 4 / 200)  # four standard errors of a binomial mean
    assert half.epoch == 199
    again = TrainingSet(examples, encoder, corpus(30), voices=voices, voice_share=0.5)
    again.epoch = 199
    assert torch.equal(again[rows].document_ids, half[rows].document_ids)


def test_a_rewritten_positive_stays_known(encoder: Encoder) -> None:
    examples = [example("q0", ["d0"], []), example("q1", ["d0"], [])]
    voices = {passage_key(Passage(document_id="d0")): Passage(document_id="d0", text="moon sea", voice="w")}
    training = TrainingSet(examples, encoder, corpus(30), voices=voices, voice_share=1.0)
    assert known_positive(training[np.array([0, 1])]).all()


def test_every_epoch_deals_every_row_once_in_another_order() -> None:
    sampler = Shuffled(10, batch_size=3, seed=1)
    first = [row for batch in sampler for row in batch.tolist()]
    sampler.set_epoch(1)
    second = [row for batch in sampler for row in batch.tolist()]
    assert len(sampler) == 3
    assert len(set(first)) == 9
    assert first != second
    sampler.set_epoch(0)
    sampler.skip = 2
    assert [row for batch in sampler for row in batch.tolist()] == first[6:]


def test_processes_share_an_epoch() -> None:
    whole = [b.tolist() for b in Shuffled(8, batch_size=2, seed=3)]
    parts = [[b.tolist() for b in Shuffled(8, batch_size=2, seed=3, rank=r, processes=2)] for r in (0, 1)]
    assert [parts[0][0], parts[1][0], parts[0][1], parts[1][1]] == whole


def test_too_few_rows_for_a_batch_is_said() -> None:
    with pytest.raises(DataError, match="do not fill a batch of 4"):
        Shuffled(3, batch_size=4)


def test_held_out_queries_are_a_share_and_the_same_for_everyone() -> None:
    ids = [f"query-{i}" for i in range(4000)]
    chosen = [i for i in ids if held_out(i, 0.1)]
    assert abs(len(chosen) - 400) < 4 * np.sqrt(4000 * 0.1 * 0.9)
    assert set(chosen) <= {i for i in ids if held_out(i, 0.2)}
    assert not any(held_out(i, 0.0) for i in ids)
