"""One branch's attention, modulated by the length."""

from __future__ import annotations

import inspect

from jaxtyping import Float, Int
from torch import Tensor, nn

from lain.length.affine import Affine
from lain.length.options import LengthOptions
from lain.length.temperature import TEMPERATURES, Temperature


class LengthModulation(nn.Module):
    """Queries, keys and temperature of one branch: Q' = W_q [Q; e], K' = W_k [K; e], logits / tau.

    W_q [Q; e] = W_q1 Q + W_q2 e: the backbone's own projection stays W_q1, this module adds the
    half on e. Source: LAIN, length-modulated attention. The ``multiplicative`` query, two of the
    temperatures and the zero start are not in the paper.

    Args:
        width: Width of e.
        attention: Width of the space in which the branch compares query and keys.
        options: Which parts are on.
    """

    def __init__(self, *, width: int, attention: int, options: LengthOptions) -> None:
        super().__init__()
        self.options = options
        self.temperature = None if options.temperature == "none" else _temperature(width, options)
        self.query_weight = nn.Linear(width, attention, bias=False) if options.query != "none" else None
        self.key_weight = nn.Linear(width, attention, bias=False) if options.keys else None
        for layer in (self.query_weight, self.key_weight):
            if layer is not None and options.modulation_start == "zero":
                nn.init.zeros_(layer.weight)

    def query(
        self, query: Float[Tensor, "samples attention"], encoding: Affine | None
    ) -> Float[Tensor, "samples attention"]:
        """Q' of projected queries Q."""
        if self.query_weight is None or encoding is None:
            return query
        shift = encoding.through(self.query_weight.weight).value
        return query + shift if self.options.query == "additive" else query * (1 + shift)

    def key_shift(self, encoding: Affine | None) -> Float[Tensor, "samples attention"] | None:
        """What the length adds to every key of a sample: W_k2 e."""
        if self.key_weight is None or encoding is None:
            return None
        return encoding.through(self.key_weight.weight).value

    def divisor(
        self, length: Int[Tensor, " samples"], scaled: Float[Tensor, " samples"], encoding: Affine | None
    ) -> Float[Tensor, " samples"] | None:
        """Tau of each sample, or None for 1."""
        if self.temperature is None:
            return None
        tau: Tensor = self.temperature(length, scaled, encoding)
        return tau


def _temperature(width: int, options: LengthOptions) -> Temperature:
    """The temperature that the options name, with those of the options that it takes."""
    constructor = TEMPERATURES[options.temperature]
    taken = inspect.signature(constructor).parameters
    known = {"width": width, **vars(options)}
    return constructor(**{name: known[name] for name in taken if name in known})
