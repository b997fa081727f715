"""Recurrences over spans, packed: at each step only the samples that still have behaviours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lain.spans import Spans, take


@dataclass(frozen=True, eq=False)
class PackedSpans:
    """Spans in the order in which a recurrence reads them: all first steps, all second steps, ...

    Samples are sorted by length, longest first, so that the samples alive at a step are the first ones.

    Args:
        spans: The spans.
        order: Pairs in reading order.
        place: Place of each pair in that order.
        sizes: Samples alive at each step; never rises.
    """

    spans: Spans
    order: Int[Tensor, " pairs"]
    place: Int[Tensor, " pairs"]
    sizes: list[int]

    @classmethod
    def of(cls, spans: Spans) -> PackedSpans:
        """Sort the pairs of these spans for reading."""
        by_length = torch.argsort(spans.lengths, descending=True, stable=True)
        rank = torch.empty_like(by_length)
        rank[by_length] = torch.arange(spans.samples, device=by_length.device)
        order = torch.argsort(spans.place * spans.samples + rank[spans.row])
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        return cls(spans, order, place, torch.bincount(spans.place).tolist())

    def run(
        self,
        cell: GRU,
        inputs: Float[Tensor, "pairs width"],
        weight: Float[Tensor, " pairs"] | None = None,
    ) -> Float[Tensor, "pairs width"]:
        """State of a recurrence after each pair; inputs and states in the spans' own order."""
        read = inputs.index_select(0, self.order)
        gate = None if weight is None else weight.index_select(0, self.order)
        states: Tensor = cell(read, gate, self.sizes)
        return states.index_select(0, self.place)

    def last(self, states: Float[Tensor, "pairs width"]) -> Float[Tensor, "samples width"]:
        """The state after each sample's last pair; zeros for a sample without pairs."""
        if not len(states):
            return states.new_zeros(self.spans.samples, states.shape[1])
        end = take(states, (self.spans.offsets[1:] - 1).clamp(min=0))
        return end * (self.spans.lengths > 0)[:, None]


class GRU(nn.Module):
    """Gated recurrent unit, with an attentional update gate if weights are given (AUGRU).

    u = a sigmoid(W_u x + U_u h + b_u), r = sigmoid(W_r x + U_r h + b_r),
    c = tanh(W_c x + b_c + r * (U_c h + b'_c)), h' = (1 - u) h + u c, with a = 1 without weights.
    Source: DIEN (AAAI 2019), eq. 2-7, the candidate as in PyTorch's GRU; PyTorch's update gate is
    1 - u. Own code because PyTorch's packed GRU takes time quadratic in the length to go backward on a
    CPU, and has no attentional gate.

    Args:
        width: Width of inputs and states.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input = nn.Linear(width, 3 * width)
        self.state = nn.Linear(width, 3 * width)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(width**-0.5), width**-0.5)

    def forward(
        self, inputs: Float[Tensor, "pairs width"], weight: Float[Tensor, " pairs"] | None, sizes: list[int]
    ) -> Float[Tensor, "pairs width"]:
        """The state after each input.

        Args:
            inputs: Inputs step by step, the samples alive at a step always in the same order.
            weight: Attention weight a of each input, or None for a plain GRU.
            sizes: Samples alive at each step; never rises.
        """
        gates = self.input(inputs)
        gates = gates.float() if gates.dtype in (torch.float16, torch.bfloat16) else gates
        column = gates.new_ones(len(gates), 1) if weight is None else weight[:, None]
        out: Tensor = _Scan.apply(gates, column, self.state.weight, self.state.bias, sizes)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
        return out


class _Scan(torch.autograd.Function):
    """The recurrence itself, with backpropagation through time written out.

    Automatic differentiation would keep a dozen small nodes a step; this keeps four arrays in all.
    """

    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, weight: Tensor, matrix: Tensor, bias: Tensor, sizes: list[int]
    ) -> Tensor:
        width = matrix.shape[1]
        # update, reset, candidate and U_c h + b'_c of every pair; overwritten step by step
        kept = gates.new_empty(len(gates), 4 * width)
        states = gates.new_empty(len(gates), width)
        before = gates.new_empty(len(gates), width)
        state = gates.new_zeros(sizes[0] if sizes else 0, width)
        begin = 0
        with torch.autocast(gates.device.type, enabled=False):
            for size in sizes:
                now = slice(begin, begin + size)
                state = state[:size]
                from_state = torch.addmm(bias, state, matrix.T)
                two = torch.sigmoid(gates[now, : 2 * width] + from_state[:, : 2 * width])
                update, reset = two[:, :width], two[:, width:]
                of_state = from_state[:, 2 * width :]
                candidate = torch.tanh(torch.addcmul(gates[now, 2 * width :], reset, of_state))
                torch.cat([two, candidate, of_state], 1, out=kept[now])
                before[now] = state
                state = torch.lerp(state, candidate, weight[now] * update)
                states[now] = state
                begin += size
        ctx.save_for_backward(weight, matrix, kept, before)
        ctx.sizes = sizes
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, matrix, kept, before = ctx.saved_tensors
        width = matrix.shape[1]
        d_state = grad.new_zeros(ctx.sizes[0] if ctx.sizes else 0, width)
        d_state_gates = grad.new_empty(len(grad), 3 * width)  # of what the state adds to each gate
        d_candidates = grad.new_empty(len(grad), width)  # of what the input adds to the candidate
        d_weight = torch.empty_like(weight)
        end = len(grad)
        for size in reversed(ctx.sizes):
            now = slice(end - size, end)
            update, reset, candidate, of_state = kept[now].split(width, 1)
            a = weight[now]
            g = d_state[:size] + grad[now]
            d_step = g * (candidate - before[now])
            d_weight[now] = (d_step * update).sum(1, keepdim=True)
            d_candidate = g * (a * update) * (1 - candidate * candidate)
            d_candidates[now] = d_candidate
            here = d_state_gates[now]
            here[:, :width] = d_step * a * update * (1 - update)
            here[:, width : 2 * width] = d_candidate * of_state * reset * (1 - reset)
            here[:, 2 * width :] = d_candidate * reset
            d_state[:size] = torch.addmm(g * (1 - a * update), here, matrix)
            end -= size
        d_matrix, d_bias = d_state_gates.T @ before, d_state_gates.sum(0)
        d_gates = torch.cat([d_state_gates[:, : 2 * width], d_candidates], 1)
        return d_gates, d_weight, d_matrix, d_bias, None
