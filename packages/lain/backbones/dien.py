"""DIEN: interests extracted by a recurrence, then evolved towards the target by another."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lain.attention import AttentionRecord, with_prompts
from lain.backbones.base import Backbone, Interests, positive
from lain.length import LengthState
from lain.recurrence import GRU, PackedSpans
from lain.spans import Spans, span_softmax, take


class DIEN(Backbone):
    """Deep interest evolution network.

    h = GRU(history); a = softmax_p(h_p . W target / tau); interest = last state of an AUGRU over h,
    whose update gate is scaled by a. Source: Zhou et al., DIEN, AAAI 2019, eq. 2-7. As in LongCTR there
    is no auxiliary loss on the next behaviour; W starts as the identity. Prompts are the first steps
    of the recurrence, and their states take part in the attention. A sample without any step gets
    zeros.

    Args:
        width: Width d of an item's vector, and of the states.

    Raises:
        ValueError: The width is not positive.
    """

    name: ClassVar[str] = "dien"

    def __init__(self, *, width: int) -> None:
        super().__init__()
        positive(width=width)
        self.width = width
        self.extract = GRU(width)
        self.relevance = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.relevance.weight)
        self.evolve = GRU(width)

    @property
    def branches(self) -> dict[str, int]:
        """One branch over the whole history."""
        return {"long": self.width}

    @property
    def interest_width(self) -> int:
        """The last state."""
        return self.width

    def forward(
        self,
        target: Float[Tensor, "samples width"],
        table: Float[Tensor, "rows width"],
        spans: Spans,
        length: LengthState,
    ) -> Interests:
        """The evolved interest."""
        table, spans, place = with_prompts(table, spans, length.prompts("long"))
        packed = PackedSpans.of(spans)
        states = packed.run(self.extract, take(table, spans.index))
        plain = self.relevance(target)
        query = length.query("long", plain)
        logits = (states * take(query, spans.row)).sum(1, keepdim=True)
        shift = length.key_shift("long")
        if shift is not None:
            logits = logits + (query * shift).sum(1, keepdim=True).index_select(0, spans.row)
        if place is not None and length.plain_prompt_query:
            of_prompts = (
                torch.unflatten(take(states, place.flatten()), 0, place.shape) * plain[:, None]
            ).sum(-1)
            logits = logits.index_copy(0, place.flatten(), of_prompts.reshape(-1, 1))
        offset = length.prompt_offset
        if place is not None and offset is not None:
            logits = logits.index_add(0, place.flatten(), offset.expand(place.numel(), 1))
        temperature = length.temperature("long")
        if temperature is not None:
            logits = logits / temperature.index_select(0, spans.row)[:, None]
        weight = span_softmax(logits, spans)
        interest = packed.last(packed.run(self.evolve, states, weight[:, 0]))
        return Interests(interest, attention={"long": AttentionRecord(weight.detach(), spans, place)})
