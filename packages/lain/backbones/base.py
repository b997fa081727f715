"""What every backbone is: items and spans in, interest vectors out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from lain.length import LengthState
from lain.ops.attention import AttentionRecord
from lain.ops.spans import Spans


@dataclass(frozen=True, eq=False)
class Interests:
    """What a backbone found in the histories.

    Args:
        vectors: The interest of each sample in its target, branches side by side.
        auxiliary: Interest for a second head with a loss of its own (SIM's search), or None.
        attention: Attention weights by branch.
    """

    vectors: Float[Tensor, "samples interest"]
    auxiliary: Float[Tensor, "samples auxiliary"] | None = None
    attention: dict[str, AttentionRecord] = field(default_factory=dict)


class Backbone(nn.Module, ABC):
    """A model of interest in a target, given a history.

    Subclasses say which branches the length may condition, and how wide their output is. Their
    constructors take keywords only, ``width`` first: the width d of an item's vector.
    """

    name: ClassVar[str]

    @property
    @abstractmethod
    def branches(self) -> dict[str, int]:
        """Branches, and the width in which each compares query and keys (0: it compares nothing)."""

    @property
    @abstractmethod
    def interest_width(self) -> int:
        """Width of :attr:`Interests.vectors`."""

    @property
    def auxiliary_width(self) -> int:
        """Width of :attr:`Interests.auxiliary`; 0 if there is none."""
        return 0

    @abstractmethod
    def forward(
        self,
        target: Float[Tensor, "samples width"],
        table: Float[Tensor, "rows width"],
        spans: Spans,
        length: LengthState,
    ) -> Interests:
        """The interests.

        Args:
            target: Each sample's target item.
            table: The batch's items.
            spans: Each sample's history as rows of the table, oldest first.
            length: Answers about the true lengths.
        """


def positive(**sizes: int) -> None:
    """Raise ValueError, naming the argument and its value, unless all sizes are positive."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
