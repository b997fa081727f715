"""What every head is: all that is known of a sample in, one logit out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from common.config import Positive

Widths = Sequence[Positive]
"""Widths of layers."""


class Condition(nn.Module):
    """A vector c acts on activations x: x + W c, or (``film``) x (1 + W_1 c) + W_2 c. W starts at zero.

    Source: FiLM, Perez et al., AAAI 2018, from the identity.

    Args:
        width: Width of c.
        units: Width of x.
        film: Scale and shift instead of adding.
    """

    def __init__(self, *, width: int, units: int, film: bool) -> None:
        super().__init__()
        self.film = film
        self.project = nn.Linear(width, units * (1 + film), bias=False)
        nn.init.zeros_(self.project.weight)

    def forward(
        self, x: Float[Tensor, "samples units"], vector: Float[Tensor, "samples condition"]
    ) -> Float[Tensor, "samples units"]:
        """The conditioned activations."""
        change: Tensor = self.project(vector)
        if not self.film:
            return x + change
        scale, shift = change.chunk(2, 1)
        return x * (1 + scale) + shift


class Head(nn.Module, ABC):
    """From everything known of a sample to one logit.

    Blind to the history's length, unless :meth:`condition_on` is called once after the head is made; its
    :meth:`forward` then passes some activations, ``conditioned_units`` wide, through :meth:`conditioned`.
    Constructors take keywords only: ``width``, that of the input; all others are settings.
    """

    def __init__(self) -> None:
        super().__init__()
        self.condition: Condition | None = None

    @property
    @abstractmethod
    def conditioned_units(self) -> int:
        """Width of the activations that a vector can act on."""

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "samples width"], condition: Float[Tensor, "samples condition"] | None
    ) -> Float[Tensor, " samples"]:
        """The logits.

        Args:
            x: Features, target and interests of each sample, side by side.
            condition: What the head is conditioned on; None: nothing.
        """

    def condition_on(self, width: int, *, film: bool) -> None:
        """Condition the head on a vector; without effect at first.

        Args:
            width: Width of the vector.
            film: It scales and shifts instead of being added.
        """
        self.condition = Condition(width=width, units=self.conditioned_units, film=film)

    def conditioned(
        self, x: Float[Tensor, "samples units"], condition: Float[Tensor, "samples condition"] | None
    ) -> Float[Tensor, "samples units"]:
        """The activations under the condition, if there is one."""
        if self.condition is None or condition is None:
            return x
        out: Tensor = self.condition(x, condition)
        return out


def layers(
    width: int, hidden: Sequence[int], *, dropout: float = 0.0, batch_norm: bool = False
) -> list[nn.Module]:
    """Linear layers, each followed by batch norm, ReLU and dropout where they are on.

    Args:
        width: Width of the input.
        hidden: Widths of the layers.
        dropout: Share of units dropped in training.
        batch_norm: Normalise each layer over the batch.

    Raises:
        ValueError: There is no layer.
    """
    if not hidden:
        raise ValueError("hidden must name at least one width, got none")
    made: list[nn.Module] = []
    for before, units in zip([width, *hidden], hidden, strict=False):
        made.append(nn.Linear(before, units))
        made += [nn.BatchNorm1d(units)] * batch_norm + [nn.ReLU()] + [nn.Dropout(dropout)] * (dropout > 0)
    return made
