"""SIM: a soft search of its own, trained by its own loss, then attention over what it found."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor, nn

from lain.backbones.base import Backbone, Count, Interests, Memory, positive
from lain.layers.attention import Start, TargetAttention, start_projection
from lain.length import LengthState
from lain.ops.products import span_dot, span_sum
from lain.ops.spans import Spans


class SIM(Backbone):
    """Search-based interest model with soft search.

    Search: r_p = (W_a target) . (W_b item_p); the sum of all behaviours weighted by r goes to an
    auxiliary head with a click loss of its own, which trains W_a and W_b; the ``top_k`` largest r
    are read by target attention. short = attention over the last ``short_length`` behaviours.
    Source: Pi et al., SIM, CIKM 2020 (soft search). Differs from it in having no time-interval
    embeddings. Prompts join after the search.

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
        self.search_query = nn.Linear(width, self.attention_dim, bias=False)
        self.search_key = nn.Linear(width, self.attention_dim, bias=False)
        start_projection(self.search_query, attention_start)
        start_projection(self.search_key, attention_start)
        self.short = attention(branch="short")
        self.long = attention(branch="long")

    @property
    def branches(self) -> dict[str, int]:
        """The short branch, and the long one after its search."""
        return {"short": self.attention_dim, "long": self.attention_dim}

    @property
    def interest_width(self) -> int:
        """Short and long interest."""
        return 2 * self.width

    @property
    def auxiliary_width(self) -> int:
        """The search's own weighted sum."""
        return self.width

    def encode(self, table: Float[Tensor, "rows width"], spans: Spans, length: LengthState) -> Memory:
        """The items, what the search compares, and keys and values of both branches."""
        rows = {"search": self.search_key(table)[:, None], "item": table[:, None]}
        return Memory(spans, rows | self.short.project(table) | self.long.project(table))

    def score(
        self,
        memory: Memory,
        target: Float[Tensor, "samples width"],
        context: Float[Tensor, "samples context"],
        length: LengthState,
    ) -> Interests:
        """Short interest beside searched long interest, and the search's weighted sum."""
        spans, rows = memory.spans, memory.rows
        relevance = span_dot(self.search_query(target)[:, None], rows["search"], spans)
        pooled = span_sum(relevance, rows["item"], spans)[:, 0]
        found = spans.top(relevance[:, 0], self.top_k)
        short, short_record = self.short(target, rows, spans.tail(self.short_length), length)
        long, long_record = self.long(target, rows, found, length)
        return Interests(
            torch.cat([short, long], 1), pooled, attention={"short": short_record, "long": long_record}
        )
