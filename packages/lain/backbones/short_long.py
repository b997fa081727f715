"""What SIM and TWIN share: attention over the latest behaviours, and over those that a search finds."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from common.config import Positive, checked
from lain.backbones.base import Backbone, Contexts, Count, Interests, Memory, Table, Targets
from lain.layers.attention import Start, TargetAttention
from lain.length import LengthState
from lain.ops.spans import Spans


@checked
class ShortLong(Backbone):
    """Short interest beside long interest, both by target attention.

    short = attention over the last ``short_length`` behaviours; long = attention over the ``top_k``
    behaviours that :meth:`find` chooses. Prompts join after the search.

    Args:
        width: Width d of an item's vector.
        short_length: Behaviours of the short branch, the latest ones.
        top_k: Behaviours that the search keeps.
        attention_dim: Width of queries, keys and values over all heads; 0 means ``width``.
        heads: Attention heads.
        attention_start: Start of the query and key projections, ``identity`` or ``xavier``.

    Raises:
        ValueError: A size is not positive.
    """

    def __init__(
        self,
        *,
        width: Positive,
        short_length: Count = 50,
        top_k: Count = 50,
        attention_dim: Annotated[int, Ge(0)] = 0,
        heads: Positive = 2,
        attention_start: Start = "identity",
    ) -> None:
        super().__init__()
        self.width, self.short_length, self.top_k = width, short_length, top_k
        self.attention_dim = attention_dim or width
        self.make_search(attention_start)
        attention = partial(
            TargetAttention, width=width, attention_dim=self.attention_dim, heads=heads, start=attention_start
        )
        self.short = attention(branch="short")
        self.long = attention(branch="long")

    def make_search(self, start: Start) -> None:  # a search may have no weights
        """Make the weights of the search, if it has its own; drawn before those of the attentions."""

    @abstractmethod
    def find(
        self, memory: Memory, target: Targets, length: LengthState
    ) -> tuple[Spans, Float[Tensor, "samples auxiliary"] | None]:
        """The behaviours of the long branch, and the search's own interest, where it is trained by it."""

    @property
    def branches(self) -> dict[str, int]:
        """The short branch, and the long one after its search."""
        return {"short": self.attention_dim, "long": self.attention_dim}

    @property
    def interest_width(self) -> int:
        """Short and long interest."""
        return 2 * self.width

    def encode(self, table: Table, spans: Spans, length: LengthState) -> Memory:
        """Keys and values of both branches."""
        return Memory(spans, self.short.project(table) | self.long.project(table))

    def score(self, memory: Memory, target: Targets, context: Contexts, length: LengthState) -> Interests:
        """Short interest beside searched long interest."""
        found, auxiliary = self.find(memory, target, length)
        latest = memory.spans.tail(self.short_length)
        short, short_record = self.short(target, memory.rows, latest, length)
        long, long_record = self.long(target, memory.rows, found, length)
        attention = {"short": short_record, "long": long_record}
        return Interests(torch.cat([short, long], 1), auxiliary, attention)
