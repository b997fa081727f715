"""Teacher's scores and shortened vectors in the loss: by hand, by a plain loop, through a batch and a run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from causalneg.data import export_examples, write_examples
from causalneg.data.exchange import read_training_set
from causalneg.data.schema import Example, Negative, Passage
from causalneg.losses import TERMS, EmbeddedBatch, info_nce, margin_mse, teacher_kl
from tiny_retrieval import DOCUMENTS, QUERIES, TRAIN, causalneg, tiny_data

NAN = math.nan


def unit(*shape: int, seed: int = 0) -> Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(made, dim=-1)


def test_kl_by_hand() -> None:
    """One query, similarities 1 and 0, at temperature 1 the encoder says e / (e + 1); the teacher a half."""
    query = torch.tensor([[1.0, 0.0]], requires_grad=True)
    found = teacher_kl(
        query, torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([0]),
        torch.tensor([3.0]), torch.tensor([3.0]), temperature=1.0,
    )  # fmt: skip
    p = math.e / (math.e + 1)
    assert found.item() == pytest.approx(0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p)))
    found.backward()  # type: ignore[no-untyped-call]
    assert query.grad is not None
    # d/ds of KL is q - p: (p - 1/2) for the positive, -(p - 1/2) for the negative.
    assert query.grad[0].tolist() == pytest.approx([p - 0.5, 0.5 - p])


def test_margin_mse_by_hand() -> None:
    """Margins 1 and -1 at scale 2 beside the teacher's 3 and 0: ((2 - 3)^2 + (-2 - 0)^2) / 2."""
    found = margin_mse(
        torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1]),
        torch.tensor([5.0, 1.0]), torch.tensor([2.0, 1.0]), scale=2.0,
    )  # fmt: skip
    assert found.item() == pytest.approx((1 + 4) / 2)


def test_both_equal_a_plain_loop_and_leave_out_what_the_teacher_did_not_score() -> None:
    query, positive, negatives = unit(5, 6), unit(5, 6, seed=1), unit(9, 6, seed=2)
    row = torch.tensor([0, 3, 0, 1, 1, 3, 4, 0, 2])
    best = torch.tensor([2.0, 1.0, NAN, 0.5, 3.0], dtype=torch.float64)
    rest = torch.tensor([1.0, 0.2, -1.0, 0.0, 2.0, 0.1, NAN, 0.3, 1.0], dtype=torch.float64)
    kl, squares = [], []
    for b in range(5):
        own = (row == b).nonzero().flatten()
        teacher = torch.cat([best[b : b + 1], rest[own]])
        scores = torch.cat([(query[b] * positive[b]).sum()[None], negatives[own] @ query[b]])
        if torch.isfinite(teacher).all():
            p, log_q = torch.softmax(teacher / 2, 0), torch.log_softmax(scores / 0.1, 0)
            kl.append(float((p * (p.log() - log_q)).sum()))
        for place in range(1, len(scores)):
            wanted = teacher[0] - teacher[place]
            if math.isfinite(wanted):
                squares.append(float((3 * (scores[0] - scores[place]) - wanted) ** 2))
    assert len(kl) == 3
    found = teacher_kl(query, positive, negatives, row, best, rest, 0.1, 2.0)
    assert found.item() == pytest.approx(np.mean(kl))
    assert margin_mse(query, positive, negatives, row, best, rest, 3.0).item() == pytest.approx(
        np.mean(squares)
    )


@pytest.mark.parametrize("name", ["kl", "margin-mse"])
def test_without_scores_a_term_is_zero_with_a_way_for_gradients(name: str) -> None:
    query = unit(2, 4).requires_grad_()
    batch = EmbeddedBatch(
        query,
        unit(2, 4, seed=1),
        unit(3, 4, seed=2),
        torch.tensor([0, 1, 1]),
        torch.zeros(3, dtype=torch.bool),
    )
    value = TERMS.component(name).build().value(batch)
    assert value.item() == 0
    value.backward()  # type: ignore[no-untyped-call]
    assert query.grad is not None
    assert not query.grad.any()
    with pytest.raises(ValueError, match="must be positive"):
        TERMS[name](**{"kl": {"temperature": 0.0}, "margin-mse": {"scale": 0.0}}[name])


def test_matryoshka_is_the_mean_of_infonce_on_shortened_vectors() -> None:
    query, positive, negatives = unit(3, 8), unit(3, 8, seed=1), unit(4, 8, seed=2)
    row = torch.tensor([0, 1, 1, 2])

    def contrast(q: Tensor, p: Tensor, n: Tensor) -> Tensor:
        found = info_nce(q, p, n, row, 0.1, True)
        assert isinstance(found, Tensor)
        return found

    batch = EmbeddedBatch(
        query, positive, negatives, row, torch.zeros(4, dtype=torch.bool), info_nce=contrast
    )
    expected = []
    for dim in (2, 5):
        cut = [x[:, :dim] / x[:, :dim].norm(dim=1, keepdim=True) for x in (query, positive, negatives)]
        expected.append(contrast(cut[0], cut[1], cut[2]).item())
    term = TERMS.component("matryoshka", dims=[2, 5]).build()
    assert term.value(batch).item() == pytest.approx(np.mean(expected))
    whole = TERMS.component("matryoshka", dims=[8]).build().value(batch)
    assert whole.item() == pytest.approx(contrast(query, positive, negatives).item())
    with pytest.raises(ValueError, match="from 1 to the encoder's 8, got 9"):
        TERMS.component("matryoshka", dims=[9]).build().value(batch)


def scored(row: int) -> Example:
    return Example(
        query=QUERIES[row],
        positives=[Passage(document_id=DOCUMENTS[row].id, teacher=2.0 + row)],
        negatives=[
            Negative(
                document_id=DOCUMENTS[row - step].id, source="mined", backend="bm25", teacher=float(-step)
            )
            for step in (1, 2)
        ],
    )


def test_scores_reach_the_loss_and_travel_to_flagembedding(tmp_path: Path) -> None:
    examples = [scored(row) for row in range(12)]
    path = tmp_path / "scored.jsonl"
    write_examples(path, examples)
    texts = [
        e.model_copy(
            update={
                "positives": [Passage(text="p", teacher=p.teacher) for p in e.positives],
                "negatives": [
                    Negative(text=f"n{at}", source="mined", backend="bm25", teacher=n.teacher)
                    for at, n in enumerate(e.negatives)
                ],
            }
        )
        for e in examples
    ]
    export_examples(texts, tmp_path / "fe.jsonl", format="flagembedding")
    first = json.loads((tmp_path / "fe.jsonl").read_text().splitlines()[0])
    assert (first["pos_scores"], first["neg_scores"]) == ([2.0], [-1.0, -2.0])
    back = read_training_set(tmp_path / "fe.jsonl")
    assert [[n.teacher for n in e.negatives] for e in back] == [[-1.0, -2.0]] * 12
    data = tiny_data(tmp_path / "data")
    config = tmp_path / "train.yaml"
    config.write_text(json.dumps({"data": str(data), "out": str(tmp_path), "name": "run", "tests": []}))
    terms = "loss.terms=[{name: kl, weight: .5}, {name: margin-mse}, {name: matryoshka, dims: [4]}]"
    causalneg("train", config, f"sets=[{{path: {path}, count: 2}}]", terms, *TRAIN)
    header, *rows = [line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()]
    logged = dict(zip(header, rows[0], strict=True))
    names = ("info_nce", "kl", "margin-mse", "matryoshka")
    values = [float(logged[f"train/{name}"]) for name in names]
    assert all(value > 0 for value in values)
    assert sum(values) == pytest.approx(float(logged["train/loss"]), rel=1e-5)
