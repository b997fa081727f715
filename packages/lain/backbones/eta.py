"""ETA: behaviours whose hashes are nearest to the target's, read by target attention."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge, Le
from jaxtyping import Float
from torch import Tensor

from common.config import Positive, checked
from lain.backbones.base import Backbone, Contexts, Count, Interests, Memory, Table, Targets
from lain.layers.attention import Start, TargetAttention
from lain.length import LengthState
from lain.ops.products import span_dot
from lain.ops.spans import Spans

MOST_BITS = 1 << 20
"""Bits of a hash whose agreement a float32 counts exactly."""


@checked
class ETA(Backbone):
    """Efficient target attention.

    A hash is ``hash_bits`` signs of fixed random projections of an item. long = attention over the ``top_k``
    behaviours whose hashes differ from the target's in the fewest bits; short = attention over the last
    ``short_length`` behaviours. Source: Chen et al., End-to-End User Behavior Retrieval in Click-Through Rate
    Prediction Model, 2021 (arXiv 2108.04468), section 3; layout as in LongCTR. Of behaviours that differ in
    equally many bits the latest win, where LongCTR's choice is arbitrary. The search has no logits, so the
    length conditions only the attention over what it found; prompts join after the search.

    Args:
        width: Width d of an item's vector.
        short_length: Behaviours of the short branch, the latest ones.
        top_k: Behaviours that the search keeps.
        hash_bits: Bits of the hash.
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
        hash_bits: Annotated[int, Ge(1), Le(MOST_BITS)] = 32,
        attention_dim: Annotated[int, Ge(0)] = 0,
        heads: Positive = 2,
        attention_start: Start = "identity",
    ) -> None:
        super().__init__()
        self.width, self.short_length, self.top_k, self.hash_bits = width, short_length, top_k, hash_bits
        self.attention_dim = attention_dim or width
        attention = partial(
            TargetAttention,
            width=width,
            attention_dim=self.attention_dim,
            heads=heads,
            start=attention_start,
        )
        self.projection: Tensor
        self.register_buffer("projection", torch.randn(width, hash_bits))
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

    def signs(self, items: Float[Tensor, "*n width"]) -> Float[Tensor, "*n bits"]:
        """The hashes of items, a bit as 1 or -1: their products count agreeing bits less differing ones."""
        up = items.detach() @ self.projection > 0
        return 2 * up.to(items.dtype) - 1

    def encode(self, table: Table, spans: Spans, length: LengthState) -> Memory:
        """Hashes of the items, and keys and values of both branches."""
        rows = self.short.project(table) | self.long.project(table)
        return Memory(spans, rows | {"hash": self.signs(table)[:, None]})

    def score(self, memory: Memory, target: Targets, context: Contexts, length: LengthState) -> Interests:
        """Short interest beside long interest in what the hashes found."""
        spans, rows = memory.spans, memory.rows
        with torch.no_grad():
            agreement = span_dot(self.signs(target)[:, None], rows["hash"], spans)[:, 0]
        found = spans.top(agreement, self.top_k)
        short, short_record = self.short(target, rows, spans.tail(self.short_length), length)
        long, long_record = self.long(target, rows, found, length)
        return Interests(torch.cat([short, long], 1), attention={"short": short_record, "long": long_record})
