"""The length as a few extra behaviours."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from lain.length.affine import Affine


class LengthPrompt(nn.Module):
    """Prompt behaviours of a length: P = reshape(MLP(e)) in R^{k x d}.

    Source: LAIN, length-conditioned prompting. Ours starts the last layer at zero by default, so
    that prompts begin as neutral behaviours.

    Args:
        width: Width d of a behaviour.
        prompts: Number k of prompts.
        hidden: Hidden width of the MLP.
        start: ``zero`` or ``random`` start of the last layer.
        offset: Start of the learned number added to the prompts' logits; 0 for none.
    """

    def __init__(
        self,
        *,
        width: int,
        prompts: int,
        hidden: int,
        start: Literal["zero", "random"],
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(offset)) if offset else None
        self.prompts = prompts
        last = nn.Linear(hidden, prompts * width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), last)
        if start == "zero":
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, encoding: Affine) -> Affine:
        """The prompts of each sample."""
        first, activation, last = self.mlp
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        hidden = activation(encoding.through(first.weight).value + first.bias)
        return Affine(hidden, *(torch.unflatten(x, 0, (self.prompts, -1)) for x in (last.weight, last.bias)))
