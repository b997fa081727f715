"""TWIN: one attention, used twice: to search the long history and to read what it found."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from lain.backbones.base import Backbone, Count, Interests, Memory, positive
from lain.layers.attention import Start, TargetAttention
from lain.length import LengthState
from lain.ops.spans import Spans


class TWIN(Backbone):
    """Two-stage interest network with identical target-behaviour relevance in both stages.

    short = attention over the last ``short_length`` behaviours; long = attention over the ``top_k``
    behaviours with the largest logits of that same attention. Source: Chang et al., TWIN, KDD 2023.
    Differs from it in having no cross features of user and item, so no bias in the logits; the
    search takes the heads' mean. Prompts join after the search.

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
        width: int,
        short_length: Count = 50,
        top_k: Count = 50,
        attention_dim: Annotated[int, Ge(0)] = 0,
        heads: Annotated[int, Ge(1)] = 2,
        attention_start: Start = "identity",
    ) -> None:
        super().__init__()
        positive(width=width, short_length=short_length, top_k=top_k, heads=heads)
        self.width, self.short_length, self.top_k = width, short_length, top_k
        self.attention_dim = attention_dim or width
        attention = partial(
            TargetAttention,
            width=width,
            attention_dim=self.attention_dim,
            heads=heads,
            start=attention_start,
        )
        self.short = attention(branch="short")
        self.long = attention(branch="long")

    @property
    def branches(self) -> dict[str, int]:
        """The short and the long branch."""
        return {"short": self.attention_dim, "long": self.attention_dim}

    @property
    def interest_width(self) -> int:
        """Short and long interest."""
        return 2 * self.width

    def encode(self, table: Float[Tensor, "rows width"], spans: Spans, length: LengthState) -> Memory:
        """Keys and values of both branches."""
        return Memory(spans, self.short.project(table) | self.long.project(table))

    def score(
        self,
        memory: Memory,
        target: Float[Tensor, "samples width"],
        context: Float[Tensor, "samples context"],
        length: LengthState,
    ) -> Interests:
        """Short interest beside searched long interest."""
        spans, rows = memory.spans, memory.rows
        short, short_record = self.short(target, rows, spans.tail(self.short_length), length)
        found = self.long.search(target, rows, spans, length, self.top_k)
        long, long_record = self.long(target, rows, found, length)
        return Interests(torch.cat([short, long], 1), attention={"short": short_record, "long": long_record})
