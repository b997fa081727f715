"""DIEN: interests extracted by a recurrence, then evolved towards the target by another."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lain.backbones.base import Backbone, Interests, positive
from lain.length import LengthState
from lain.ops.attention import AttentionRecord, Start, start_projection
from lain.ops.recurrence import GRU, PackedSpans
from lain.ops.spans import Spans, span_dot, span_softmax, take


class DIEN(Backbone):
    """Deep interest evolution network.

    h = GRU(history); a = softmax_p(h_p . W target / tau); interest = last state of an AUGRU over h,
    whose update gate is scaled by a. Source: Zhou et al., DIEN, AAAI 2019, eq. 2-7. As in LongCTR there
    is no auxiliary loss on the next behaviour. Prompts are the first steps of the recurrence, and their
    states take part in the attention. A sample without any step gets zeros.

    Args:
        width: Width d of an item's vector, and of the states.
        attention_start: ``identity`` starts W and the candidates of both recurrences as the identity (see
            :class:`~lain.ops.recurrence.GRU`): a state is then like the latest items, its product with the
            target a similarity, and a prompt of zero no step. ``xavier`` starts the recurrences as usual
            and W with Xavier's uniform weights: attention then says nothing for an epoch or two, and what
            adds to its logits meanwhile, such as an additive query, can drive it onto one step for good.

    Raises:
        ValueError: The width is not positive.
    """

    name: ClassVar[str] = "dien"

    def __init__(self, *, width: int, attention_start: Start = "identity") -> None:
        super().__init__()
        positive(width=width)
        self.width = width
        start: Literal["identity", "uniform"] = "identity" if attention_start == "identity" else "uniform"
        self.extract = GRU(width, start=start)
        self.relevance = nn.Linear(width, width, bias=False)
        start_projection(self.relevance, attention_start)
        self.evolve = GRU(width, start=start)

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
        prompts = length.prompts("long")
        count = 0 if prompts is None else prompts.shape[1]
        rows = torch.arange(len(target) * count, device=target.device).reshape(len(target), count)
        read, place = spans.with_prefix(len(table) + rows)
        items = table if prompts is None else torch.cat([table, prompts.flatten(0, 1).to(table.dtype)])
        packed = PackedSpans.of(read)
        states, _ = self.extract(items, packed.index, None, packed.sizes)
        plain = self.relevance(target)
        query, shift = length.query("long", plain), length.key_shift("long")
        logits = span_dot(query[:, None], states[:, None], packed.read)[:, 0]
        if shift is not None:
            logits = logits + (query * shift).sum(1).index_select(0, read.row)
        first = place.flatten()
        if count and length.plain_prompt_query:
            keys = torch.unflatten(take(states, packed.place[first]), 0, place.shape)
            keys = keys if shift is None else keys + shift[:, None]
            logits = logits.index_copy(0, first, (keys * plain[:, None]).sum(-1).flatten().to(logits.dtype))
        if count and length.prompt_offset is not None:
            logits = logits.index_add(0, first, length.prompt_offset.expand(len(first)).to(logits.dtype))
        temperature = length.temperature("long")
        if temperature is not None:
            logits = logits / temperature.index_select(0, read.row)
        weight = span_softmax(logits[:, None], read)
        _, last = self.evolve(states, None, weight[:, 0].index_select(0, packed.order), packed.sizes)
        interest = packed.by_sample(last)
        real = torch.ones_like(read.index, dtype=torch.bool).index_fill_(0, first, False)
        record = AttentionRecord(weight.detach()[real], spans, weight.detach()[place])
        return Interests(interest, attention={"long": record})
