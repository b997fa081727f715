"""Recurrences over spans, packed: at each step only the samples that still have behaviours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lain.ops.products import FEWEST_ROWS
from lain.ops.spans import Spans


@dataclass(frozen=True, eq=False)
class PackedSpans:
    """Spans in the order in which a recurrence reads them: all first steps, all second steps, ...

    Samples are sorted by length, longest first, so that the samples alive at a step are the first ones.

    Args:
        spans: The spans.
        order: Pairs in reading order.
        place: Place of each pair in that order.
        rank: Place of each sample among the samples.
        sizes: Samples alive at each step; never rises.
    """

    spans: Spans
    order: Int[Tensor, " pairs"]
    place: Int[Tensor, " pairs"]
    rank: Int[Tensor, " samples"]
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
        return cls(spans, order, place, rank, torch.bincount(spans.place).tolist())

    @cached_property
    def index(self) -> Int[Tensor, " pairs"]:
        """Table row of each pair, in reading order."""
        return self.spans.index.index_select(0, self.order)

    @cached_property
    def read(self) -> Spans:
        """The same spans, their rows being those of an array in reading order."""
        return Spans(self.spans.offsets, self.place)

    def by_sample(self, last: Float[Tensor, "readers width"]) -> Float[Tensor, "samples width"]:
        """The last states of a recurrence, sample by sample; zeros for a sample without pairs."""
        none = last.new_zeros(self.spans.samples - len(last), last.shape[1])
        return torch.cat([last, none]).index_select(0, self.rank)


class GRU(nn.Module):
    """Gated recurrent unit, with an attentional update gate if weights are given (AUGRU).

    u = a sigmoid(W_u x + U_u h + b_u), r = sigmoid(W_r x + U_r h + b_r),
    c = tanh(W_c x + b_c + r * (U_c h + b'_c)), h' = (1 - u) h + u c, with a = 1 without weights.
    Source: DIEN (AAAI 2019), eq. 2-7, the candidate as in PyTorch's GRU; PyTorch's update gate is
    1 - u. Own code because PyTorch's packed GRU takes time quadratic in the length to go backward on a
    CPU, and has no attentional gate.

    Args:
        width: Width of inputs and states.
        start: ``uniform`` is PyTorch's start. ``identity`` differs in the candidate: W_c is the identity and
            the biases are zero. States then lie in the space of the inputs from the first step, so that
            they can be compared with an item, and inputs of zero leave the zero state where it is.
    """

    def __init__(self, width: int, *, start: Literal["uniform", "identity"] = "uniform") -> None:
        super().__init__()
        self.input = nn.Linear(width, 3 * width)
        self.state = nn.Linear(width, 3 * width)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(width**-0.5), width**-0.5)
        if start == "identity":
            nn.init.eye_(self.input.weight[2 * width :])
            nn.init.zeros_(self.input.bias[2 * width :])
            nn.init.zeros_(self.state.bias[2 * width :])

    def forward(
        self,
        inputs: Float[Tensor, "rows width"],
        index: Int[Tensor, " pairs"] | None,
        weight: Float[Tensor, " pairs"] | None,
        sizes: list[int],
    ) -> tuple[Float[Tensor, "pairs width"], Float[Tensor, "readers width"]]:
        """The state after each step, and the last one of each sample.

        Args:
            inputs: The inputs, each projected once however often it is read.
            index: Which input each pair reads, step by step, the samples alive at a step always in the
                same order; None: the inputs stand in that order.
            weight: Attention weight a of each pair, or None for a plain GRU.
            sizes: Samples alive at each step; never rises.
        """
        gates = self.input(inputs)
        gates = gates.float() if gates.dtype in (torch.float16, torch.bfloat16) else gates
        column = None if weight is None else weight[:, None].to(gates.dtype)
        states, last = _Scan.apply(gates, index, column, self.state.weight, self.state.bias, sizes)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
        return states, last


class _Scan(torch.autograd.Function):
    """The recurrence itself, with backpropagation through time written out.

    Step t, with x the projected inputs, U the state's matrix, b its bias, h the state before, h' after it:

        z = U h + b,  u = sigmoid(x_u + z_u),  r = sigmoid(x_r + z_r),  c = tanh(x_c + r o z_c),
        v = a u,      h' = (1 - v) o h + v o c

    Backward, with g the gradient by h' (what step t + 1 gives back, and what the outputs add). Since
    h' = h + v o (c - h):

        dv = g o (c - h)        da = sum of dv o u         du = a dv
        dx_u = dz_u = du o u o (1 - u) = dv o v o (1 - u)
        dc = g o v              dx_c = dc o (1 - c^2)      dz_c = dx_c o r
        dr = dx_c o z_c         dx_r = dz_r = dr o r o (1 - r)
        dU += dz (h)'           db += dz
        g for step t - 1 = g o (1 - v) + U' dz

    Kept are u, r, c, z_c and the states of all steps. Automatic differentiation would keep a dozen small
    nodes a step, and takes 6.7 times as long (64 samples of 205 items, width 64, one thread: 607 ms against
    90); this keeps two arrays in all. Every step is written into what is allocated once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        gates: Tensor,
        index: Tensor | None,
        weight: Tensor | None,
        matrix: Tensor,
        bias: Tensor,
        sizes: list[int],
    ) -> tuple[Tensor, Tensor]:
        width, pairs, most = matrix.shape[1], sum(sizes), max(sizes, default=0)
        # update, reset, candidate and U_c h + b'_c of every pair
        kept = gates.new_empty(pairs, 4 * width)
        states = gates.new_empty(pairs, width)
        # Scores must not depend on the company of a row, and products of few rows end in other bits.
        fewest = FEWEST_ROWS if torch.is_inference_mode_enabled() else 1
        alive = gates.new_zeros(max(most, fewest), width)
        last = alive[:most]
        of_state, of_input = gates.new_empty(2, len(alive), 3 * width)
        begin = 0
        with torch.autocast(gates.device.type, enabled=False):
            for size in sizes:
                now = slice(begin, begin + size)
                two, candidate, recalled = torch.split(kept[now], [2 * width, width, width], 1)
                x, h = of_input[:size], last[:size]
                x = gates[now] if index is None else torch.index_select(gates, 0, index[now], out=x)
                multiplied = max(size, fewest)
                torch.addmm(bias, alive[:multiplied], matrix.T, out=of_state[:multiplied])
                from_state = of_state[:size]
                torch.add(x[:, : 2 * width], from_state[:, : 2 * width], out=two).sigmoid_()
                recalled.copy_(from_state[:, 2 * width :])
                torch.addcmul(x[:, 2 * width :], two[:, width:], recalled, out=candidate).tanh_()
                update = two[:, :width] if weight is None else weight[now] * two[:, :width]
                torch.lerp(h, candidate, update, out=states[now])
                h.copy_(states[now])
                begin += size
        ctx.save_for_backward(index, weight, matrix, kept, states)
        ctx.sizes, ctx.rows = sizes, len(gates)
        ctx.set_materialize_grads(False)
        return states, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_last: Tensor | None) -> tuple[Tensor | None, ...]:
        index, weight, matrix, kept, states = ctx.saved_tensors
        sizes: list[int] = ctx.sizes
        width, most = matrix.shape[1], max(sizes, default=0)
        # Before its last step nothing of a sample is added to, so its last state's share can lie ready.
        d_state = kept.new_zeros(most, width) if grad_last is None else grad_last.clone()
        d_gates = (kept.new_empty if index is None else kept.new_zeros)(ctx.rows, 3 * width)
        d_weight = None if weight is None else torch.empty_like(weight)
        d_matrix, d_bias = torch.zeros_like(matrix), matrix.new_zeros(3 * width)
        nothing, one = kept.new_zeros(most, width), kept.new_ones(())
        of_state, of_input = kept.new_empty(2, most, 3 * width)
        end = len(kept)
        for step in range(len(sizes) - 1, -1, -1):
            size = sizes[step]
            now = slice(end - size, end)
            end -= size
            before = states[end - sizes[step - 1] :][:size] if step else nothing[:size]
            update, reset, candidate, recalled = kept[now].split(width, 1)
            g = d_state[:size] if grad is None else d_state[:size].add_(grad[now])
            # d of what the state adds to each gate; what the input adds differs in the candidate alone
            here, x = of_state[:size], of_input[:size] if index is not None else d_gates[now]
            d_update, d_reset, d_recalled = here.split(width, 1)
            torch.sub(candidate, before, out=d_update).mul_(g)
            whole = update
            if weight is not None and d_weight is not None:
                torch.sum(d_update * update, 1, keepdim=True, out=d_weight[now])
                whole = weight[now] * update
            d_update.mul_(whole).mul_(1 - update)
            d_candidate = x[:, 2 * width :]
            torch.addcmul(one, candidate, candidate, value=-1, out=d_candidate).mul_(g).mul_(whole)
            torch.mul(d_candidate, reset, out=d_recalled)
            torch.mul(d_recalled, recalled, out=d_reset).mul_(1 - reset)
            x[:, : 2 * width] = here[:, : 2 * width]
            if index is not None:
                d_gates.index_add_(0, index[now], x)
            d_matrix.addmm_(here.T, before)
            d_bias += here.sum(0)
            g.addcmul_(g, whole, value=-1).addmm_(here, matrix)
        return d_gates, None, d_weight, d_matrix, d_bias, None
