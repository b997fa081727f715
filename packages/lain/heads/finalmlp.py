"""FinalMLP: two perceptrons on gated copies of the input, joined by a bilinear form."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor, nn

from common.config import Dropout, Positive, checked
from lain.heads.base import Head, Widths, layers


@checked
class FinalMLPHead(Head):
    """logit = b + w_1 . o_1 + w_2 . o_2 + sum_h o_1h W_h o_2h, with o_s = MLP_s(2 sigmoid(gate_s(c_s)) o x).

    Source: Mao et al., FinalMLP, AAAI 2023, eq. 5-10. The gates of the paper read chosen fields; here both
    streams' gates read a learned vector c_s, the paper's form without chosen fields, so a gate is the same
    for all samples. A condition acts on the input x.

    Args:
        width: Width of the input.
        hidden: Widths of the first stream's layers.
        hidden_second: Widths of the second stream's layers; null: those of the first.
        gate_hidden: Hidden width of a gate's network; 0 leaves the gates out.
        heads: Pieces h of the streams between which the bilinear form acts.
        dropout: Share of the streams' units dropped in training.
        batch_norm: Normalise the streams' layers over the batch.

    Raises:
        ValueError: ``dropout`` outside [0, 1), no hidden layer, or streams that ``heads`` do not divide.
    """

    def __init__(
        self,
        *,
        width: int,
        hidden: Widths = (128, 64),
        hidden_second: Widths | None = None,
        gate_hidden: Annotated[int, Ge(0)] = 64,
        heads: Positive = 1,
        dropout: Dropout = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        second = hidden if hidden_second is None else hidden_second
        if not hidden or not second:
            raise ValueError("both streams must have a layer")
        first_out, second_out = hidden[-1], second[-1]
        if first_out % heads or second_out % heads:
            raise ValueError(
                f"heads must divide both streams' outputs, {first_out} and {second_out}, got {heads}"
            )
        self.width, self.heads = width, heads
        self.gates = nn.ModuleList(_Gate(width, gate_hidden) for _ in range(2 * (gate_hidden > 0)))
        self.first = nn.Sequential(*layers(width, hidden, dropout=dropout, batch_norm=batch_norm))
        self.second = nn.Sequential(*layers(width, second, dropout=dropout, batch_norm=batch_norm))
        self.of_first, self.of_second = nn.Linear(first_out, 1), nn.Linear(second_out, 1, bias=False)
        self.form = nn.Parameter(torch.empty(heads, first_out // heads, second_out // heads))
        nn.init.xavier_normal_(self.form)

    @property
    def conditioned_units(self) -> int:
        """The input."""
        return self.width

    def forward(
        self, x: Float[Tensor, "samples width"], condition: Float[Tensor, "samples condition"] | None
    ) -> Float[Tensor, " samples"]:
        """The logits."""
        x = self.conditioned(x, condition)
        inputs = [x * gate() for gate in self.gates] or [x, x]
        first, second = self.first(inputs[0]), self.second(inputs[1])
        pieces = [torch.unflatten(out, 1, (self.heads, -1)) for out in (first, second)]
        bilinear = torch.einsum("ihd,hde,ihe->i", pieces[0], self.form, pieces[1])
        out: Tensor = self.of_first(first)[:, 0] + self.of_second(second)[:, 0] + bilinear
        return out


class _Gate(nn.Module):
    """2 sigmoid(W_2 ReLU(W_1 c)) for a learned vector c."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(hidden))
        self.network = nn.Sequential(
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.Sigmoid()
        )

    def forward(self) -> Float[Tensor, " width"]:
        gate: Tensor = self.network(self.vector)
        return 2 * gate
