"""Target attention by hand; against a reference it is tested with the backbones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lain.layers.attention import TargetAttention, start_projection
from lain.length import LengthAdapter, LengthOptions, LengthState
from lain.ops.spans import Spans

OFF = LengthOptions()


def spans_of(*samples: list[int]) -> Spans:
    offsets = torch.tensor([0, *(len(s) for s in samples)]).cumsum(0)
    return Spans(offsets, torch.tensor([row for s in samples for row in s], dtype=torch.long))


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def make(width: int, heads: int, options: LengthOptions = OFF) -> tuple[TargetAttention, LengthAdapter]:
    """Attention all of whose projections are the identity, and an adapter."""
    attention = TargetAttention(width=width, attention_dim=width, heads=heads, branch="long").double()
    for layer in (attention.query, attention.key, attention.value, attention.out):
        start_projection(layer, "identity")
    return attention, LengthAdapter(width=width, branches={"long": width}, options=options).double()


def ask(adapter: LengthAdapter, *lengths: int) -> LengthState:
    state = adapter(torch.tensor(lengths), torch.float64)
    assert isinstance(state, LengthState)
    return state


class TestTargetAttention:
    def test_one_head_by_hand(self) -> None:
        """Logits 1/sqrt(2) * (log 9 * sqrt(2), 0) = (log 9, 0): weights 0.9 and 0.1."""
        attention, adapter = make(2, 1)
        target = tensor([math.log(9) * math.sqrt(2), 0.0])
        out, record = attention(
            target, attention.project(tensor([1.0, 0.0], [0.0, 1.0])), spans_of([0, 1]), ask(adapter, 2)
        )
        torch.testing.assert_close(out, tensor([0.9, 0.1]))
        torch.testing.assert_close(record.weight, tensor([0.9], [0.1]))
        assert record.of_prompts.shape == (1, 0, 1)

    def test_two_heads_by_hand(self) -> None:
        """Each head of width 1 sees its own coordinate of target and behaviours."""
        attention, adapter = make(2, 2)
        target = tensor([math.log(3), -math.log(4)])
        out, record = attention(
            target, attention.project(tensor([1.0, 0.0], [0.0, 1.0])), spans_of([0, 1]), ask(adapter, 2)
        )
        torch.testing.assert_close(record.weight, tensor([0.75, 0.8], [0.25, 0.2]))
        torch.testing.assert_close(out, tensor([0.75, 0.2]))

    def test_temperature_by_hand(self) -> None:
        """A bucket's tau of 2 halves the logits: log 9 becomes log 3."""
        attention, adapter = make(2, 1, LengthOptions(temperature="bucket", buckets=(10,)))
        with torch.no_grad():
            adapter.get_parameter("modulation.long.temperature.weight")[0] = math.log(2)
        target = tensor([math.log(9) * math.sqrt(2), 0.0]).expand(2, -1)
        table = tensor([1.0, 0.0], [0.0, 1.0])
        _, record = attention(target, attention.project(table), spans_of([0, 1], [0, 1]), ask(adapter, 2, 20))
        torch.testing.assert_close(
            record.weight[:, 0], torch.tensor([0.75, 0.25, 0.9, 0.1], dtype=torch.float64)
        )

    def test_zero_prompts_by_hand(self) -> None:
        """Two zero prompts have logit 0 each: weights e^x / (e^x + 2), and no value of their own."""
        attention, adapter = make(2, 1, LengthOptions(prompts=2))
        target = tensor([math.log(2) * math.sqrt(2), 0.0])
        out, record = attention(target, attention.project(tensor([1.0, 5.0])), spans_of([0]), ask(adapter, 1))
        torch.testing.assert_close(record.weight, tensor([0.5]))
        torch.testing.assert_close(record.of_prompts, tensor([0.25], [0.25])[None])
        torch.testing.assert_close(out, tensor([0.5, 2.5]))

    @pytest.mark.parametrize("plain", [True, False])
    def test_which_query_scores_the_prompts(self, plain: bool) -> None:
        """Q' = (1 + shift) target; a prompt is scored with the target itself, or with Q' too."""
        options = LengthOptions(
            prompts=1, hidden=1, query="multiplicative", prompt_query="plain" if plain else "modulated"
        )
        attention, adapter = make(1, 1, options)
        with torch.no_grad():
            for name, value in (
                ("encoder.mlp.2.weight", 0.0),
                ("encoder.mlp.2.bias", 1.0),  # e = 1
                ("modulation.long.query_weight.weight", 2.0),  # Q' = 3 Q
                ("prompt.mlp.0.weight", 1.0),
                ("prompt.mlp.0.bias", 0.0),
                ("prompt.mlp.2.weight", 1.0),  # P = 1
            ):
                adapter.get_parameter(name).fill_(value)
        _, record = attention(tensor([1.0]), attention.project(tensor([1.0])), spans_of([0]), ask(adapter, 1))
        weight = 1 / (1 + math.exp(2)) if plain else 0.5
        torch.testing.assert_close(record.weight, tensor([1 - weight]))
        torch.testing.assert_close(record.of_prompts, tensor([weight])[None])

    def test_nothing_to_attend_to(self) -> None:
        attention, adapter = make(2, 2)
        out, record = attention(
            tensor([1.0, 2.0]), attention.project(tensor([3.0, 4.0])), spans_of([]), ask(adapter, 0)
        )
        assert torch.equal(out, torch.zeros(1, 2, dtype=torch.float64))
        assert record.weight.shape == (0, 2)

    def test_one_behaviour_has_all_the_weight(self) -> None:
        attention, adapter = make(2, 2)
        out, _ = attention(
            tensor([1.0, 2.0]), attention.project(tensor([3.0, 4.0])), spans_of([0]), ask(adapter, 1)
        )
        torch.testing.assert_close(out, tensor([3.0, 4.0]))

    def test_no_gradient_through_the_record(self) -> None:
        attention, adapter = make(2, 1)
        _, record = attention(
            tensor([1.0, 2.0]), attention.project(tensor([3.0, 4.0])), spans_of([0]), ask(adapter, 1)
        )
        assert not record.weight.requires_grad

    def test_search_by_hand(self) -> None:
        attention, adapter = make(2, 2)
        table = tensor([1.0, 0.0], [3.0, -2.0], [0.0, 2.0], [-5.0, 1.0])  # sums 1, 1, 2, -4
        found = attention.search(
            tensor([1.0, 1.0]), attention.project(table), spans_of([2, 0, 3, 1]), ask(adapter, 4), 2
        )
        assert found.index.tolist() == [2, 1]

    def test_heads_divide_the_width(self) -> None:
        with pytest.raises(ValueError, match="attention_dim must be a multiple of heads, got 6 and 4"):
            TargetAttention(width=6, attention_dim=6, heads=4, branch="long")

    def test_starts(self) -> None:
        start = TargetAttention(width=3, attention_dim=2, heads=1, branch="long")
        assert start.query.weight.tolist() == start.key.weight.tolist() == [[1, 0, 0], [0, 1, 0]]
        usual = TargetAttention(width=3, attention_dim=2, heads=1, branch="long", start="xavier")
        for layer in (usual.query, usual.key, start.value, start.out):
            assert layer.weight.abs().max() <= math.sqrt(6 / 5)
            assert layer.weight.abs().min() > 0
