"""The heads against loops over plain numbers, and what conditions them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lain.heads import HEADS, Head
from lain.heads.dcnv2 import DCNv2Head
from lain.heads.finalmlp import FinalMLPHead
from lain.heads.mlp import MLPHead

all_heads = pytest.mark.parametrize("name", list(HEADS))


def stirred(head: Head, seed: int = 0) -> Head:
    """Every weight random, also those that start at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in head.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.7)
    return head.double()


def linear(layer: nn.Module, x: list[float]) -> list[float]:
    assert isinstance(layer, nn.Linear)
    bias = (
        layer.get_parameter("bias").tolist() if "bias" in layer.state_dict() else [0.0] * layer.out_features
    )
    rows = layer.weight.tolist()
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(rows, bias, strict=True)]


def perceptron(layers: Iterable[nn.Module], x: list[float]) -> list[float]:
    for layer in layers:
        x = [max(v, 0.0) for v in x] if isinstance(layer, nn.ReLU) else linear(layer, x)
    return x


def condition(head: Head, x: list[float], vector: list[float] | None) -> list[float]:
    if head.condition is None or vector is None:
        return x
    change = linear(head.condition.project, vector)
    if not head.condition.film:
        return [v + c for v, c in zip(x, change, strict=True)]
    scale, shift = change[: len(x)], change[len(x) :]
    return [v * (1 + a) + b for v, a, b in zip(x, scale, shift, strict=True)]


def reference(head: Head, x: list[float], vector: list[float] | None) -> float:
    """The logit of one sample, number by number."""
    if isinstance(head, MLPHead):
        first = condition(head, linear(head.first, x), vector)
        return perceptron(head.rest, first)[0]
    x = condition(head, x, vector)
    if isinstance(head, DCNv2Head):
        crossed = x
        for cross in head.crosses:
            crossed = [x0 * c + xl for x0, c, xl in zip(x, linear(cross, crossed), crossed, strict=True)]
        return linear(head.out, [*crossed, *perceptron(head.deep, x)])[0]
    assert isinstance(head, FinalMLPHead)
    streams = []
    for number, layers in enumerate((head.first, head.second)):
        gated = x
        if len(head.gates):
            network = head.gates[number].get_submodule("network")
            assert isinstance(network, nn.Sequential)
            before = perceptron(list(network)[:3], head.gates[number].get_parameter("vector").tolist())
            gated = [v * 2 / (1 + math.exp(-g)) for v, g in zip(x, before, strict=True)]
        assert isinstance(layers, nn.Sequential)
        streams.append(perceptron(layers, gated))
    logit = linear(head.of_first, streams[0])[0] + linear(head.of_second, streams[1])[0]
    a, b = (len(stream) // head.heads for stream in streams)
    for h in range(head.heads):
        for d in range(a):
            for e in range(b):
                logit += streams[0][h * a + d] * head.form[h, d, e].item() * streams[1][h * b + e]
    return logit


OPTIONS: dict[str, list[dict[str, Any]]] = {
    "mlp": [{"hidden": (4, 2)}, {"hidden": (3,)}],
    "dcnv2": [{"hidden": (4, 2), "crosses": 1}, {"hidden": (3,), "crosses": 3}],
    "finalmlp": [
        {"hidden": (4, 2), "gate_hidden": 3},
        {"hidden": (6, 4), "hidden_second": (5, 2), "heads": 2, "gate_hidden": 0},
        {"hidden": (3,), "heads": 3, "gate_hidden": 2},
    ],
}
CASES = [(name, options) for name, each in OPTIONS.items() for options in each]


@pytest.mark.parametrize(("name", "options"), CASES)
@given(
    seed=st.integers(0, 99),
    width=st.integers(1, 5),
    samples=st.integers(1, 4),
    how=st.sampled_from([None, "add", "film"]),
)
def test_equals_the_loop(
    name: str, options: dict[str, Any], seed: int, width: int, samples: int, how: str
) -> None:
    head = HEADS[name](width=width, **options)
    if how is not None:
        head.condition_on(2, film=how == "film")
    stirred(head, seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, width, generator=generator, dtype=torch.float64)
    vector = torch.randn(samples, 2, generator=generator, dtype=torch.float64) if how else None
    found = head(x, vector).tolist()
    vectors: list[list[float] | None] = [None] * samples if vector is None else vector.tolist()
    wanted = [reference(head, row, v) for row, v in zip(x.tolist(), vectors, strict=True)]
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-11)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_gradients(name: str, options: dict[str, Any]) -> None:
    """Of the input and of every weight, against finite differences."""
    torch.manual_seed(0)
    head = HEADS[name](width=3, **options)
    head.condition_on(2, film=True)
    stirred(head)
    x, vector = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    names = [key for key, _ in head.named_parameters()]

    def logits(inputs: Tensor, *weights: Tensor) -> Tensor:
        state = dict(zip(names, weights, strict=True))
        out: Tensor = torch.func.functional_call(head, state, (inputs, vector))
        return out

    weights = [p.detach().requires_grad_() for p in head.parameters()]
    assert torch.autograd.gradcheck(logits, (x.requires_grad_(), *weights))


@all_heads
@pytest.mark.parametrize("film", [False, True])
def test_a_condition_starts_without_effect_and_learns(name: str, film: bool) -> None:
    torch.manual_seed(0)
    head = HEADS[name](width=3).double()
    x, vector = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    before = head(x, vector)
    assert torch.equal(before, head(x, None))
    head.condition_on(2, film=film)
    head.double()
    assert torch.equal(head(x, vector), before)
    head(x, vector).sum().backward()
    assert head.condition is not None
    gradient = head.condition.project.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0


@all_heads
def test_batch_norm_and_dropout_act_in_training_only(name: str) -> None:
    torch.manual_seed(0)
    head = HEADS[name](width=3, dropout=0.5, batch_norm=True).double()
    x = torch.randn(8, 3, dtype=torch.float64)
    assert not torch.equal(head(x, None), head(x, None))
    head.eval()
    torch.testing.assert_close(head(x, None)[:1], head(x[:1], None))


@pytest.mark.parametrize(
    ("name", "wrong", "line"),
    [
        ("dcnv2", {"crosses": 0}, "crosses must be at least 1, got 0"),
        ("dcnv2", {"hidden": ()}, "hidden must name at least one width"),
        ("finalmlp", {"hidden": (4,), "heads": 3}, "heads must divide both streams' outputs, 4 and 4, got 3"),
        ("finalmlp", {"hidden_second": (0,)}, r"hidden_second\[0\] must be at least 1, got 0"),
        ("finalmlp", {"gate_hidden": -1}, "gate_hidden must be at least 0, got -1"),
        ("finalmlp", {"dropout": 1.0}, "dropout must be below 1"),
    ],
)
def test_settings_that_make_no_head(name: str, wrong: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        HEADS[name](width=3, **wrong)


class TestMLP:
    """The multilayer perceptron: what conditions it, and what it is made of."""

    def make(self, **how: Any) -> MLPHead:
        torch.manual_seed(0)
        settings: dict[str, Any] = {"width": 3, "hidden": (4, 2), "dropout": 0.0, "batch_norm": False}
        return MLPHead(**settings | how).double()

    @pytest.mark.parametrize("film", [False, True])
    def test_condition_starts_without_effect(self, film: bool) -> None:
        x, vector = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
        head = self.make()
        before = head(x, None)
        head.condition_on(2, film=film)
        assert torch.equal(head.double()(x, vector), before)

    @pytest.mark.parametrize("film", [False, True])
    def test_condition_by_hand(self, film: bool) -> None:
        head = MLPHead(width=1, hidden=(1,), dropout=0.0, batch_norm=False)
        head.condition_on(1, film=film)
        with torch.no_grad():
            for parameter, value in zip(head.parameters(), [2.0, 1.0, 3.0, 0.5, 10.0], strict=True):
                parameter.fill_(value)
        # first = 2 * 4 + 1 = 9; conditioned: 9 + 50, or 9 * (1 + 50) + 50; out = 3 * relu(.) + 0.5
        out = head(torch.tensor([[4.0]]), torch.tensor([[5.0]]))
        assert out.tolist() == [3 * (9 * 51 + 50) + 0.5 if film else 3 * 59 + 0.5]

    def test_layers(self) -> None:
        kinds = [type(layer).__name__ for layer in self.make(dropout=0.1, batch_norm=True).rest]
        one = ["BatchNorm1d", "ReLU", "Dropout"]
        assert kinds == [*one, "Linear", *one, "Linear"]

    def test_normalised_and_dropped(self) -> None:
        """Dropout in training only; batch norm makes samples depend on each other in training only."""
        head, x = self.make(dropout=0.5, batch_norm=True), torch.randn(8, 3, dtype=torch.float64)
        assert not torch.equal(head(x, None), head(x, None))
        head.eval()
        torch.testing.assert_close(head(x, None)[:1], head(x[:1], None))

    @pytest.mark.parametrize(
        ("wrong", "line"),
        [
            ({"hidden": ()}, "hidden must name at least one width, got none"),
            ({"hidden": (4, 0)}, "hidden\\[1\\] must be at least 1, got 0"),
            ({"dropout": 1.0}, "dropout must be below 1, got 1.0"),
            ({"dropout": -0.1}, "dropout must be at least 0, got -0.1"),
        ],
    )
    def test_what_makes_no_head(self, wrong: dict[str, Any], line: str) -> None:
        with pytest.raises(ValueError, match=line):
            self.make(**wrong)
