"""TWIN: one attention, used twice: to search the long history and to read what it found."""

from __future__ import annotations

from lain.backbones.base import Memory, Targets
from lain.backbones.short_long import ShortLong
from lain.length import LengthState
from lain.ops.spans import Spans


class TWIN(ShortLong):
    """Two-stage interest network with identical target-behaviour relevance in both stages.

    short = attention over the last ``short_length`` behaviours; long = attention over the ``top_k``
    behaviours with the largest logits of that same attention. Source: Chang et al., TWIN, KDD 2023.
    Differs from it in having no cross features of user and item, so no bias in the logits; the
    search takes the heads' mean.
    """

    def find(self, memory: Memory, target: Targets, length: LengthState) -> tuple[Spans, None]:
        """The behaviours with the largest logits of the long attention."""
        return self.long.search(target, memory.rows, memory.spans, length, self.top_k), None
