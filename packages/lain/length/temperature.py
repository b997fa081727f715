"""Temperatures: what the logits of a history are divided by, from its length."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.config import Registry
from lain.length.affine import Affine
from lain.length.encoder import scale_length


class Temperature(nn.Module, ABC):
    """A temperature tau > 0 of each sample's attention in one branch.

    A constructor takes the width d of the length encoding as ``width``, and any of the options of
    :class:`~lain.length.options.LengthOptions` by their names.
    """

    encoded: bool = False
    """Whether it reads the length encoding e."""

    @abstractmethod
    def forward(
        self, length: Int[Tensor, " samples"], scaled: Float[Tensor, " samples"], encoding: Affine | None
    ) -> Float[Tensor, " samples"]:
        """Tau of each sample.

        Args:
            length: True lengths, in behaviours.
            scaled: What the method sees of them (see :func:`~lain.length.encoder.scale_length`).
            encoding: Their encodings e, if :attr:`encoded`.
        """


class SigmoidTemperature(Temperature):
    """Softer for short histories: tau = 1 + gamma sigmoid(-beta (l - l0)), on the scaled length l.

    Source: LAIN, length-modulated attention. The paper does not give l0, nor the start of beta and gamma.

    Args:
        gamma: Start of gamma, the extra softness for the shortest histories.
        beta: Start of beta, per unit of the scaled length.
        positive: Keep beta and gamma positive (softplus), so that short means softer.
        center: L0 in behaviours.
        learn_center: Whether L0 is learned.
        scale: ``log`` or ``raw`` length.
    """

    def __init__(
        self,
        *,
        gamma: float = 1.0,
        beta: float = 1.0,
        positive: bool = True,
        center: float = 100.0,
        learn_center: bool = False,
        scale: Literal["log", "raw"] = "log",
    ) -> None:
        super().__init__()
        self.center: Tensor
        self.positive = positive
        start = [math.log(math.expm1(value)) for value in (gamma, beta)] if positive else [gamma, beta]
        self.weight = nn.Parameter(torch.tensor(start))
        scaled = scale_length(torch.tensor(center), scale, torch.get_default_dtype())
        if learn_center:
            self.center = nn.Parameter(scaled)
        else:
            self.register_buffer("center", scaled)

    def forward(
        self, length: Int[Tensor, " samples"], scaled: Float[Tensor, " samples"], encoding: Affine | None
    ) -> Float[Tensor, " samples"]:
        """Tau of each sample."""
        weight = nn.functional.softplus(self.weight) if self.positive else self.weight
        gamma, beta = weight.unbind()
        return 1 + gamma * torch.sigmoid(-beta * (scaled - self.center))


class EncodedTemperature(Temperature):
    """tau = exp(w . e), from w = 0: neutral at first, it may sharpen as well as soften. Not in the paper.

    Args:
        width: Width d of e.
    """

    encoded = True

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(
        self, length: Int[Tensor, " samples"], scaled: Float[Tensor, " samples"], encoding: Affine | None
    ) -> Float[Tensor, " samples"]:
        """Tau of each sample."""
        assert encoding is not None
        return encoding.through(self.weight[None]).value[:, 0].exp()


class BucketTemperature(Temperature):
    """One learned tau per bucket of lengths, 1 at first; a control, not in the paper.

    Args:
        buckets: Rising borders of the buckets, in behaviours; a border belongs to the longer bucket.
    """

    def __init__(self, *, buckets: Sequence[int] = (50, 100, 200)) -> None:
        super().__init__()
        self.buckets = tuple(buckets)
        self.weight = nn.Parameter(torch.zeros(len(self.buckets) + 1))

    def forward(
        self, length: Int[Tensor, " samples"], scaled: Float[Tensor, " samples"], encoding: Affine | None
    ) -> Float[Tensor, " samples"]:
        """Tau of each sample."""
        border = torch.tensor(self.buckets, device=length.device)
        return self.weight[torch.bucketize(length, border, right=True)].exp()


TEMPERATURES: Registry[Temperature] = Registry("temperature", given={"width"})
TEMPERATURES.add("sigmoid", SigmoidTemperature)
TEMPERATURES.add("encoded", EncodedTemperature)
TEMPERATURES.add("bucket", BucketTemperature)
