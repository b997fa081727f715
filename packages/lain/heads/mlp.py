"""The head of the published models: a multilayer perceptron."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from common.config import Dropout, checked
from lain.heads.base import Head, Widths, layers


@checked
class MLPHead(Head):
    """logit = w . ReLU(W_n ... ReLU(W_1 x)); a condition acts on W_1 x.

    Args:
        width: Width of the input.
        hidden: Widths of the hidden layers.
        dropout: Share of hidden units dropped in training.
        batch_norm: Normalise hidden layers over the batch.

    Raises:
        ValueError: ``dropout`` outside [0, 1), or no hidden layer.
    """

    def __init__(
        self,
        *,
        width: int,
        hidden: Widths = (128, 64),
        dropout: Dropout = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        first, *rest = layers(width, hidden, dropout=dropout, batch_norm=batch_norm)
        self.units = hidden[0]
        self.first = first
        self.rest = nn.Sequential(*rest, nn.Linear(hidden[-1], 1))

    @property
    def conditioned_units(self) -> int:
        """The first layer."""
        return self.units

    def forward(
        self, x: Float[Tensor, "samples width"], condition: Float[Tensor, "samples condition"] | None
    ) -> Float[Tensor, " samples"]:
        """The logits."""
        out: Tensor = self.rest(self.conditioned(self.first(x), condition))
        return out[:, 0]
