"""DCN-V2: explicit crosses of the input beside a multilayer perceptron."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.config import Dropout, Positive, checked
from lain.heads.base import Head, Widths, layers


@checked
class DCNv2Head(Head):
    """logit = w . [x_n; MLP(x_0)], with x_{l+1} = x_0 o (W_l x_l + b_l) + x_l and o elementwise.

    Source: Wang et al., DCN V2, WWW 2021, eq. 1, the parallel structure, full-rank W_l (no mixture of
    low-rank ones). A condition acts on the input x_0.

    Args:
        width: Width of the input.
        crosses: Cross layers n.
        hidden: Widths of the perceptron's layers.
        dropout: Share of the perceptron's units dropped in training.
        batch_norm: Normalise the perceptron's layers over the batch.

    Raises:
        ValueError: ``dropout`` outside [0, 1), no hidden layer, or no cross layer.
    """

    def __init__(
        self,
        *,
        width: int,
        crosses: Positive = 3,
        hidden: Widths = (128, 64),
        dropout: Dropout = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.width = width
        self.crosses = nn.ModuleList(nn.Linear(width, width) for _ in range(crosses))
        self.deep = nn.Sequential(*layers(width, hidden, dropout=dropout, batch_norm=batch_norm))
        self.out = nn.Linear(width + hidden[-1], 1)

    @property
    def conditioned_units(self) -> int:
        """The input."""
        return self.width

    def forward(
        self, x: Float[Tensor, "samples width"], condition: Float[Tensor, "samples condition"] | None
    ) -> Float[Tensor, " samples"]:
        """The logits."""
        x = self.conditioned(x, condition)
        crossed = x
        for cross in self.crosses:
            crossed = torch.addcmul(crossed, x, cross(crossed))
        out: Tensor = self.out(torch.cat([crossed, self.deep(x)], 1))
        return out[:, 0]
