"""The length as a vector."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from lain.length.affine import Affine


def scale_length(
    length: Num[Tensor, "*samples"], scale: Literal["log", "raw"], dtype: torch.dtype
) -> Float[Tensor, "*samples"]:
    """What the method sees of a length: log(1 + L), or L itself."""
    length = length.to(dtype)
    return torch.log1p(length) if scale == "log" else length


class SpectralLengthEncoder(nn.Module):
    """The length as a vector: e = MLP(LayerNorm(Linear([sin(l w), cos(l w)]))).

    Source: LAIN, spectral length encoder. The paper writes l = L; here it is log(1 + L) by default,
    and the frequencies w, learned, start geometrically spaced (the paper does not say).

    Args:
        width: Width d of the encoding.
        frequencies: Number d_f of frequencies.
        frequency_range: Smallest and largest starting frequency.
        hidden: Hidden width of the MLP.
    """

    def __init__(
        self, *, width: int, frequencies: int, frequency_range: tuple[float, float], hidden: int
    ) -> None:
        super().__init__()
        low, high = (math.log(f) for f in frequency_range)
        self.frequency = nn.Parameter(torch.linspace(low, high, frequencies).exp())
        self.project = nn.Linear(2 * frequencies, width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, scaled: Float[Tensor, " samples"]) -> Affine:
        """The encodings of scaled lengths."""
        angle = scaled[:, None] * self.frequency
        spectrum = torch.cat([angle.sin(), angle.cos()], dim=1)
        first, activation, last = self.mlp
        assert isinstance(last, nn.Linear)
        return Affine(activation(first(self.norm(self.project(spectrum)))), last.weight, last.bias)
