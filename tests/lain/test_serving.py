"""What a backbone keeps of one user scores any candidate as training does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lain.backbones import BACKBONES, Memory
from lain.length import PRESETS, LengthOptions
from lain.model import CTRModel
from reference import Sample
from small_model import HOURS, ITEMS, SAMPLES, make_batch, make_model, stir

ARMS = ["base", "lain", "lain-published", "lain-plus", "bucket-temperature"]
each = pytest.mark.parametrize(("name", "preset"), [(n, p) for n in BACKBONES for p in ARMS])


def model_of(name: str, preset: str, dtype: torch.dtype) -> CTRModel:
    return stir(make_model(name, LengthOptions(**PRESETS[preset]))).to(dtype).eval()


def users(model: CTRModel, samples: list[Sample]) -> Memory:
    """The memory of these users, made together, before any candidate is known."""
    batch = make_batch(samples)
    table = model.table(batch)
    return model.backbone.encode(table, batch.spans(), model.length(batch.length, table.dtype))


def candidates_of(sample: Sample) -> list[Sample]:
    """The same user asked about every item, at every hour."""
    return [
        replace(sample, target=item, context={"user_id": sample.context["user_id"], "hour": item % HOURS})
        for item in range(1, ITEMS)
    ]


def served(model: CTRModel, memory: Memory, user: Tensor, asked: list[Sample]) -> Tensor:
    """Logits from a memory: which of its users each asked sample is, and what is asked."""
    batch = make_batch([replace(sample, history=()) for sample in asked])  # no history comes with a request
    table = model.table(batch)
    state = model.length(batch.length, table.dtype)
    return model.score(memory.take(user), table[batch.target], batch.features, state).logit


@torch.no_grad()
@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_user_many_candidates(name: str, preset: str, dtype: torch.dtype) -> None:
    model = model_of(name, preset, dtype)
    exact: dict[str, Any] = (
        {"rtol": 1e-12, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    )
    for sample in SAMPLES:
        asked = candidates_of(sample)
        memory = users(model, [sample])
        trained = model(make_batch(asked)).logit
        many = served(model, memory, torch.zeros(len(asked), dtype=torch.long), asked)
        torch.testing.assert_close(many, trained, **exact)
        one = torch.cat([served(model, memory, torch.zeros(1, dtype=torch.long), [a]) for a in asked[::6]])
        torch.testing.assert_close(one, trained[::6], **exact)


@torch.no_grad()
@each
def test_many_users_in_any_order(name: str, preset: str) -> None:
    """Requests for several users at once, each user once, often, or not at all."""
    model = model_of(name, preset, torch.float64)
    memory = users(model, list(SAMPLES))
    order = torch.tensor([3, 0, 3, 5, 1, 5, 5, 2])
    asked = [replace(SAMPLES[i], target=1 + 3 * k % (ITEMS - 1)) for k, i in enumerate(order.tolist())]
    trained = model(make_batch(asked)).logit
    torch.testing.assert_close(served(model, memory, order, asked), trained, rtol=1e-12, atol=1e-13)


@torch.no_grad()
@each
def test_the_training_path_is_these_two_calls(name: str, preset: str) -> None:
    """The same arithmetic: the same bits, in float32."""
    model = model_of(name, preset, torch.float32)
    batch = make_batch(SAMPLES)
    table = model.table(batch)
    state = model.length(batch.length, table.dtype)
    memory = model.backbone.encode(table, batch.spans(), state)
    logit = model.score(memory, table[batch.target], batch.features, state).logit
    assert torch.equal(logit, model(batch).logit)


@torch.no_grad()
@pytest.mark.parametrize("name", list(BACKBONES))
def test_candidates_copy_no_row(name: str) -> None:
    """A memory that a thousand candidates share holds each row once."""
    model = model_of(name, "lain", torch.float32)
    memory = users(model, [SAMPLES[4]])
    shared = memory.take(torch.zeros(1000, dtype=torch.long))
    assert shared.spans.samples == 1000
    for key, rows in memory.rows.items():
        assert shared.rows[key].data_ptr() == rows.data_ptr()


@torch.no_grad()
@pytest.mark.parametrize("name", list(BACKBONES))
def test_scoring_reads_nothing_but_the_memory(name: str) -> None:
    """Items of the history may be gone from the table once they are encoded."""
    model = model_of(name, "lain", torch.float64)
    sample = SAMPLES[4]
    asked = [replace(sample, target=14)]
    memory = users(model, [sample])
    before = served(model, memory, torch.zeros(1, dtype=torch.long), asked)
    weight = model.get_parameter("items.layers.item_id.weight")
    weight[list(sample.history)] = torch.nan
    assert torch.equal(served(model, memory, torch.zeros(1, dtype=torch.long), asked), before)
