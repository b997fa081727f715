"""DIEN: interests extracted by a recurrence, then evolved towards the target by another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from common.config import Positive, checked
from lain.backbones.base import Backbone, Contexts, Interests, Memory, Table, Targets
from lain.layers.attention import AttentionRecord, Start, start_projection
from lain.length import LengthState, conditioned_logits
from lain.ops.recurrence import GRU, PackedSpans
from lain.ops.softmax import span_softmax_with
from lain.ops.spans import Spans


@dataclass(frozen=True, eq=False)
class States(Memory):
    """States of a recurrence as rows.

    Args:
        prompts: How many steps of each history are prompts, the first ones.
        packed: The order in which a recurrence reads the spans, while the states stand in it.
    """

    prompts: int
    packed: PackedSpans | None

    def take(self, history: Int[Tensor, " samples"]) -> States:
        """The states of samples that ask about these histories."""
        return States(self.spans.take(history), self.rows, self.prompts, None)


@checked
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

    def __init__(self, *, width: Positive, attention_start: Start = "identity") -> None:
        super().__init__()
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

    def encode(self, table: Table, spans: Spans, length: LengthState) -> Memory:
        """The states of the first recurrence, the prompts' before those of the behaviours."""
        prompts = length.prompts("long")
        count = 0 if prompts is None else prompts.shape[1]
        rows = torch.arange(spans.samples * count, device=table.device).reshape(spans.samples, count)
        read, _ = spans.with_prefix(len(table) + rows)
        items = table if prompts is None else torch.cat([table, prompts.flatten(0, 1).to(table.dtype)])
        packed = PackedSpans.of(read)
        states, _ = self.extract(items, packed.index, None, packed.sizes)
        return States(packed.read, {"state": states}, count, packed)

    def score(self, memory: Memory, target: Targets, context: Contexts, length: LengthState) -> Interests:
        """The evolved interest."""
        assert isinstance(memory, States)
        states, read, count = memory.rows["state"], memory.spans, memory.prompts
        first = read.offsets[:-1, None] + torch.arange(count, device=target.device)  # pairs that are prompts
        real = torch.ones_like(read.index, dtype=torch.bool).index_fill_(0, first.flatten(), False)
        spans = read.select(real) if count else read
        of_prompts = states.index_select(0, read.index[first.flatten()]).view(*first.shape, self.width)
        logits, prompt_logits = conditioned_logits(
            length,
            "long",
            query=self.relevance(target),
            keys=states,
            spans=spans,
            prompt_keys=of_prompts,
            divide="logits",
        )
        weight, prompt_weight = span_softmax_with(logits, prompt_logits, spans)
        every = weight[:, 0]
        if count:
            every = weight.new_empty(len(read.index)).masked_scatter(real, every)
            every = every.index_copy(0, first.flatten(), prompt_weight.flatten())
        packed = memory.packed or PackedSpans.of(read)
        index = None if memory.packed else packed.index
        _, last = self.evolve(states, index, every.index_select(0, packed.order), packed.sizes)
        record = AttentionRecord(weight.detach(), spans, prompt_weight.detach())
        return Interests(packed.by_sample(last), attention={"long": record})
