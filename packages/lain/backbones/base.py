"""What every backbone is: histories into a memory, a memory and targets into interest vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Annotated

import torch
from annotated_types import Ge, Le
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from lain.layers.attention import AttentionRecord
from lain.length import LengthState
from lain.ops.spans import Spans, offsets_of

Count = Annotated[int, Ge(1), Le(2**31 - 1)]
"""A number of behaviours; lengths of histories are 32-bit integers."""

Table = Float[Tensor, "rows width"]
"""Items, each once."""

Targets = Float[Tensor, "samples width"]
"""Each sample's target item."""

Contexts = Float[Tensor, "samples context"]
"""Each sample's user and context features; no features, no width."""


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


@dataclass(frozen=True, eq=False)
class Memory:
    """What a backbone keeps of histories to score any target against them.

    Args:
        spans: Each history, as rows of the tensors below, oldest behaviour first.
        rows: Tensors with one row per item (vectors, keys, values, hashes, states), by name.
    """

    spans: Spans
    rows: Mapping[str, Shaped[Tensor, "rows ..."]]

    def take(self, history: Int[Tensor, " samples"]) -> Memory:
        """The memory of samples that ask about these histories, in this order; one may come many times.

        Nothing but the spans is copied: a thousand candidates of one user read the same rows.
        """
        return Memory(self.spans.take(history), self.rows)

    @classmethod
    def join(cls, memories: Sequence[Memory]) -> Memory:
        """The histories of several memories of one backbone, in this order; a single one is not copied."""
        if len(memories) == 1:
            return memories[0]
        rows = {name: torch.cat([m.rows[name] for m in memories]) for name in memories[0].rows}
        first = accumulate((len(next(iter(m.rows.values()))) for m in memories[:-1]), initial=0)
        index = torch.cat([m.spans.index + begin for m, begin in zip(memories, first, strict=True)])
        lengths = torch.cat([m.spans.lengths for m in memories])
        return replace(memories[0], spans=Spans(offsets_of(lengths), index), rows=rows)


class Backbone(nn.Module, ABC):
    """A model of interest in a target, given a history.

    :meth:`encode` does all that does not depend on the target, once per item and history; :meth:`score` the
    rest, once per sample. Training calls both for every batch; a server keeps the memory of a user and calls
    :meth:`score` alone.

    Subclasses say which branches the length may condition, and how wide their output is. Their
    constructors take keywords only: ``width``, the width d of an item's vector, and if they like
    ``context_width``, that of the context; all others are settings.
    """

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
    def encode(self, table: Table, spans: Spans, length: LengthState) -> Memory:
        """What is kept of the histories.

        Args:
            table: The items, each once.
            spans: The histories as rows of the table, oldest behaviour first.
            length: The histories' true lengths. Part of the memory where prompts are: DIEN reads them before
                the first behaviour. Most backbones do not look at it.
        """

    @abstractmethod
    def score(self, memory: Memory, target: Targets, context: Contexts, length: LengthState) -> Interests:
        """The interests.

        Args:
            memory: The histories, one per sample.
            target: The targets.
            context: What else is known of the samples.
            length: The samples' true lengths.
        """
