"""SIM: a soft search of its own, trained by its own loss, then attention over what it found."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from lain.backbones.base import Memory, Table, Targets
from lain.backbones.short_long import ShortLong
from lain.layers.attention import Start, start_projection
from lain.length import LengthState
from lain.ops.products import span_dot, span_sum
from lain.ops.spans import Spans


class SIM(ShortLong):
    """Search-based interest model with soft search.

    Search: r_p = (W_a target) . (W_b item_p); the sum of all behaviours weighted by r goes to an
    auxiliary head with a click loss of its own, which trains W_a and W_b; the ``top_k`` largest r
    are read by target attention. short = attention over the last ``short_length`` behaviours.
    Source: Pi et al., SIM, CIKM 2020 (soft search). Differs from it in having no time-interval
    embeddings.
    """

    def make_search(self, start: Start) -> None:
        """W_a and W_b."""
        self.search_query = nn.Linear(self.width, self.attention_dim, bias=False)
        self.search_key = nn.Linear(self.width, self.attention_dim, bias=False)
        start_projection(self.search_query, start)
        start_projection(self.search_key, start)

    @property
    def auxiliary_width(self) -> int:
        """The search's own weighted sum."""
        return self.width

    def encode(self, table: Table, spans: Spans, length: LengthState) -> Memory:
        """The items, what the search compares, and keys and values of both branches."""
        rows = {"search": self.search_key(table)[:, None], "item": table[:, None]}
        return Memory(spans, {**rows, **super().encode(table, spans, length).rows})

    def find(
        self, memory: Memory, target: Targets, length: LengthState
    ) -> tuple[Spans, Float[Tensor, "samples width"]]:
        """The behaviours with the largest r, and the sum of all weighted by it."""
        spans, rows = memory.spans, memory.rows
        relevance = span_dot(self.search_query(target)[:, None], rows["search"], spans)
        pooled = span_sum(relevance, rows["item"], spans)[:, 0]
        return spans.top(relevance[:, 0], self.top_k), pooled
