"""SDIM: behaviours whose random hashes collide with the target's, summed."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Le
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.config import Positive, checked
from lain.backbones.base import Backbone, Contexts, Count, Interests, Memory, Table, Targets
from lain.layers.attention import Start, TargetAttention
from lain.length import LengthState
from lain.ops.products import span_sum
from lain.ops.spans import Spans

MOST_BITS = 63
"""Bits of a hash that fit into an integer."""


@checked
class SDIM(Backbone):
    """Sampling-based deep interest model.

    A hash m is ``hash_bits`` signs of random projections. long = mean_m of the sum, scaled to unit
    length, of the behaviours whose m-th hash equals the target's; short = attention over the last
    ``short_length`` behaviours. Source: Cao et al., SDIM, CIKM 2022, eq. 9-12; the projections are
    fixed. The long branch has no logits, so the length conditions only its prompts, which are hashed like
    any behaviour; a hash in which no real behaviour meets the target adds nothing, since a prompt alone
    would count in full however short it is.

    Args:
        width: Width d of an item's vector.
        short_length: Behaviours of the short branch, the latest ones.
        hashes: Number of hashes.
        hash_bits: Bits of each hash.
        attention_dim: Width of queries, keys and values over all heads; 0 means ``width``.
        heads: Attention heads.
        attention_start: Start of the query and key projections, ``identity`` or ``xavier``.

    Raises:
        ValueError: A size is not positive, or a hash has more bits than an integer.
    """

    def __init__(
        self,
        *,
        width: Positive,
        short_length: Count = 50,
        hashes: Positive = 8,
        hash_bits: Annotated[int, Ge(1), Le(MOST_BITS)] = 3,
        attention_dim: Annotated[int, Ge(0)] = 0,
        heads: Positive = 2,
        attention_start: Start = "identity",
    ) -> None:
        super().__init__()
        self.width, self.short_length, self.hashes, self.hash_bits = width, short_length, hashes, hash_bits
        self.attention_dim = attention_dim or width
        self.projection: Tensor
        self.register_buffer("projection", torch.randn(width, hashes * hash_bits))
        self.short = TargetAttention(
            width=width,
            attention_dim=self.attention_dim,
            heads=heads,
            branch="short",
            start=attention_start,
        )

    @property
    def branches(self) -> dict[str, int]:
        """The short branch, and the long one, which compares hashes."""
        return {"short": self.attention_dim, "long": 0}

    @property
    def interest_width(self) -> int:
        """Short and long interest."""
        return 2 * self.width

    def signature(self, items: Float[Tensor, "rows width"]) -> Int[Tensor, "rows hashes"]:
        """The hashes of items, each a number of ``hash_bits`` bits."""
        bits = torch.unflatten(items.detach() @ self.projection > 0, 1, (self.hashes, -1))
        worth = torch.bitwise_left_shift(1, torch.arange(self.hash_bits, device=items.device))
        return (bits * worth).sum(-1)

    def encode(self, table: Table, spans: Spans, length: LengthState) -> Memory:
        """The items and their hashes, and keys and values of the short branch."""
        return Memory(spans, self.short.project(table) | {"item": table, "hash": self.signature(table)})

    def score(self, memory: Memory, target: Targets, context: Contexts, length: LengthState) -> Interests:
        """Short interest beside the sums of colliding behaviours."""
        spans, rows = memory.spans, memory.rows
        table = rows["item"]
        short, record = self.short(target, rows, spans.tail(self.short_length), length)
        of_item, of_target = rows["hash"], self.signature(target)
        prompts = length.prompts("long")
        if prompts is not None:
            of_prompt = torch.unflatten(self.signature(prompts.flatten(0, 1)), 0, prompts.shape[:2])
            meets = (of_prompt == of_target[:, None]).to(prompts.dtype)
            of_prompts = torch.einsum("iph,ipd->hid", meets, prompts).unbind()
        long = torch.zeros_like(target)
        for m in range(self.hashes):
            met = spans.select(of_item[:, m][spans.index] == of_target[:, m][spans.row])
            total = span_sum(table.new_ones(len(met.index), 1), table[:, None], met)[:, 0]
            if prompts is not None:
                total = total + of_prompts[m]
            some = (met.lengths > 0)[:, None]
            unit = nn.functional.normalize(torch.where(some, total, 1), dim=1)
            long = long + torch.where(some, unit, 0) / self.hashes
        return Interests(torch.cat([short, long], 1), attention={"short": record})
