"""Packed recurrences against PyTorch's GRU and a plain loop, one sample at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lain.ops.recurrence import GRU, PackedSpans
from lain.ops.spans import Spans

WIDTH = 3

lengths = st.lists(st.integers(0, 7), min_size=1, max_size=6)


def spans_of(counts: list[int]) -> Spans:
    """Spans of these lengths."""
    return Spans(torch.tensor([0, *counts]).cumsum(0), torch.arange(sum(counts)))


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def make_cell(seed: int = 1) -> GRU:
    torch.manual_seed(seed)
    return GRU(WIDTH).double()


def pytorch_gru(cell: GRU) -> nn.GRU:
    """PyTorch's GRU with the same weights; its update gate keeps what ours replaces."""
    gru = nn.GRU(WIDTH, WIDTH).double()
    with torch.no_grad():
        for layer, weight, bias in (
            (cell.input, "weight_ih_l0", "bias_ih_l0"),
            (cell.state, "weight_hh_l0", "bias_hh_l0"),
        ):
            for own, name in ((layer.weight, weight), (layer.bias, bias)):
                update, reset, new = torch.split(own, WIDTH)
                gru.get_parameter(name).copy_(torch.cat([reset, -update, new]))
    return gru


def loop(cell: GRU, inputs: Tensor, weight: Tensor) -> Tensor:
    """The states after each input of one sample, from the class's equations."""
    w_input, b_input = torch.split(cell.input.weight, WIDTH), torch.split(cell.input.bias, WIDTH)
    w_state, b_state = torch.split(cell.state.weight, WIDTH), torch.split(cell.state.bias, WIDTH)
    h, states = inputs.new_zeros(WIDTH), []
    for x, a in zip(inputs, weight, strict=True):
        u = a * torch.sigmoid(w_input[0] @ x + b_input[0] + w_state[0] @ h + b_state[0])
        r = torch.sigmoid(w_input[1] @ x + b_input[1] + w_state[1] @ h + b_state[1])
        c = torch.tanh(w_input[2] @ x + b_input[2] + r * (w_state[2] @ h + b_state[2]))
        h = (1 - u) * h + u * c
        states.append(h)
    return torch.stack(states) if states else inputs.new_zeros(0, WIDTH)


def assert_same(out: Tensor, wanted: Tensor, leaves: list[Tensor]) -> None:
    """Equal values and equal gradients of a number that depends on each value differently."""
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-14)
    if out.requires_grad and wanted.requires_grad:
        mixture = torch.linspace(0.5, 1.5, out.numel(), dtype=out.dtype).reshape(out.shape)
        found, expected = (
            torch.autograd.grad((x * mixture).sum(), leaves, materialize_grads=True, retain_graph=True)
            for x in (out, wanted)
        )
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


class TestPackedSpans:
    def test_reading_order(self) -> None:
        """First steps first, the longest sample in front; equal lengths keep their order."""
        spans = Spans(torch.tensor([0, 1, 4, 4, 7]), torch.tensor([5, 0, 5, 2, 3, 3, 1]))
        packed = PackedSpans.of(spans)
        assert packed.sizes == [3, 2, 2]
        assert packed.rank.tolist() == [2, 0, 3, 1]
        assert packed.order.tolist() == [1, 4, 0, 2, 5, 3, 6]
        assert packed.order[packed.place].tolist() == list(range(7))
        assert packed.index.tolist() == [0, 3, 5, 5, 3, 2, 1]
        assert packed.index[packed.read.index].tolist() == spans.index.tolist()
        last = torch.tensor([[10.0], [11.0], [12.0]])
        assert packed.by_sample(last).tolist() == [[12.0], [10.0], [0.0], [11.0]]

    @given(counts=lengths, weighted=st.booleans(), indexed=st.booleans(), data=st.data())
    def test_each_sample_alone(
        self, counts: list[int], weighted: bool, indexed: bool, data: st.DataObject
    ) -> None:
        """Both forms of reading, with and without attention: PyTorch's GRU and the loop."""
        pairs, rows = sum(counts), 4 if indexed else sum(counts)
        cell, items = make_cell(), random(rows, WIDTH)
        weight = torch.rand(pairs, dtype=torch.float64).requires_grad_()
        spans = spans_of(counts)
        if indexed:
            index = data.draw(st.lists(st.integers(0, rows - 1), min_size=pairs, max_size=pairs))
            spans = Spans(spans.offsets, torch.tensor(index, dtype=torch.long))
        packed = PackedSpans.of(spans)
        gate = weight[packed.order] if weighted else None
        if indexed:
            read, last = cell(items, packed.index, gate, packed.sizes)
        else:
            read, last = cell(items[packed.order], None, gate, packed.sizes)
        states, inputs = read[packed.place], items[spans.index]
        if not weighted:
            gru = pytorch_gru(cell)
            alone = torch.cat([gru(part)[0] if len(part) else part for part in torch.split(inputs, counts)])
            torch.testing.assert_close(states, alone, rtol=1e-12, atol=1e-14)
        factors = weight if weighted else torch.ones_like(weight)
        parts = zip(torch.split(inputs, counts), torch.split(factors, counts), strict=True)
        slow = [loop(cell, part, a) for part, a in parts]
        ends = torch.stack([s[-1] if len(s) else s.new_zeros(WIDTH) for s in slow])
        found_ends, leaves = packed.by_sample(last), [items, weight, *cell.parameters()]
        assert_same(states, torch.cat(slow), leaves)
        assert_same(found_ends, ends, leaves)
        assert_same(torch.cat([states, found_ends]), torch.cat([*slow, ends]), leaves)

    @pytest.mark.parametrize("indexed", [False, True])
    def test_derivatives(self, indexed: bool) -> None:
        """Backpropagation through time, written by hand, against finite differences."""
        cell, inputs = make_cell(), random(6, WIDTH)
        weight = torch.rand(6, dtype=torch.float64).requires_grad_()
        packed = PackedSpans.of(spans_of([2, 0, 3, 1]))
        names = [name for name, _ in cell.named_parameters()]
        index = torch.tensor([0, 3, 3, 1, 5, 0]) if indexed else None

        def states(inputs: Tensor, weight: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
            given = dict(zip(names, parameters, strict=True))
            out: tuple[Tensor, Tensor] = torch.func.functional_call(
                cell, given, (inputs, index, weight, packed.sizes)
            )
            return out

        assert torch.autograd.gradcheck(states, (inputs, weight, *cell.parameters()))

    def test_nothing_to_read(self) -> None:
        cell, packed = make_cell(), PackedSpans.of(spans_of([0, 0]))
        states, last = cell(torch.zeros(0, WIDTH, dtype=torch.float64), packed.index, None, packed.sizes)
        assert states.shape == (0, WIDTH)
        assert torch.equal(packed.by_sample(last), torch.zeros(2, WIDTH, dtype=torch.float64))


class TestGRU:
    def test_by_hand(self) -> None:
        """All weights zero but the candidate's: u = a / 2, c = tanh(x), h' = h + u (c - h)."""
        cell = GRU(1).double()
        for parameter in cell.parameters():
            nn.init.zeros_(parameter)
        with torch.no_grad():
            cell.input.weight[2] = 1
        inputs = torch.tensor([[2.0], [2.0]], dtype=torch.float64)
        out, last = cell(inputs, None, torch.tensor([1.0, 0.5], dtype=torch.float64), [1, 1])
        c = torch.tanh(inputs[0])
        torch.testing.assert_close(out, torch.stack([c / 2, c / 2 + (c - c / 2) / 4]))
        assert torch.equal(last, out[1:])

    def test_no_attention_leaves_the_state(self) -> None:
        states, _ = GRU(2)(torch.randn(3, 2), None, torch.zeros(3), [1, 1, 1])
        assert torch.equal(states, torch.zeros(3, 2))

    @pytest.mark.parametrize("width", [1, 16])
    def test_start(self, width: int) -> None:
        """Uniform within one over the root of the width, as PyTorch's recurrences start."""
        for parameter in GRU(width).parameters():
            assert parameter.abs().max() <= width**-0.5
            assert parameter.abs().max() > 0.3 * width**-0.5 or width == 1

    def test_identity_start(self) -> None:
        """A first state points where its input does, and inputs of zero are no steps."""
        torch.manual_seed(0)
        cell, item = GRU(8, start="identity"), torch.randn(1, 8)
        state, _ = cell(item, None, None, [1])
        assert torch.equal(state.sign(), item.sign())
        after_zeros, _ = cell(torch.cat([torch.zeros(2, 8), item]), None, None, [1, 1, 1])
        torch.testing.assert_close(after_zeros, torch.cat([torch.zeros(2, 8), state]))
