"""Attention of a target over histories held as spans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from lain.length import LengthState, conditioned_logits
from lain.ops.products import span_sum
from lain.ops.search import span_top
from lain.ops.softmax import span_softmax_with
from lain.ops.spans import Spans

Start = Literal["identity", "xavier"]


@dataclass(frozen=True, eq=False)
class AttentionRecord:
    """The weights a branch gave, for diagnosis.

    Args:
        weight: Weight of each pair, head by head.
        spans: The pairs: real behaviours.
        of_prompts: Weight of each prompt, head by head; no prompts, no weights.
    """

    weight: Float[Tensor, "pairs heads"]
    spans: Spans
    of_prompts: Float[Tensor, "samples prompts heads"]


def start_projection(layer: nn.Linear, start: Start) -> None:
    """Start a projection as a (rectangular) identity, or with Xavier's uniform weights."""
    if start == "identity":
        nn.init.eye_(layer.weight)
    else:
        nn.init.xavier_uniform_(layer.weight)


class TargetAttention(nn.Module):
    """Multi-head attention of each sample's target over its span.

    out = W_o concat_h sum_p softmax_p(Q'_h . K'_h,p / (sqrt(d_h) tau)) V_h,p, with Q = W_q target,
    K = W_k item, V = W_v item; Q', K', tau and the prompts are the length's
    (:func:`~lain.length.conditioned_logits`). A sample without
    behaviours and prompts gets zeros. Source: multi-head target attention as in LongCTR and TWIN.

    Args:
        width: Width of an item's vector, in and out.
        attention_dim: Width of queries, keys and values over all heads.
        heads: Number of heads.
        branch: Name under which the length is asked.
        start: ``identity`` starts W_q and W_k as (rectangular) identities, so that attention is the
            similarity of embeddings from the first step; ``xavier`` is the usual start.

    Raises:
        ValueError: ``attention_dim`` is not a multiple of ``heads``.
    """

    def __init__(
        self,
        *,
        width: int,
        attention_dim: int,
        heads: int,
        branch: str,
        start: Start = "identity",
    ) -> None:
        super().__init__()
        if attention_dim % heads:
            raise ValueError(f"attention_dim must be a multiple of heads, got {attention_dim} and {heads}")
        self.heads, self.branch = heads, branch
        self.query = nn.Linear(width, attention_dim, bias=False)
        self.key = nn.Linear(width, attention_dim, bias=False)
        self.value = nn.Linear(width, attention_dim, bias=False)
        self.out = nn.Linear(attention_dim, width, bias=False)
        start_projection(self.query, start)
        start_projection(self.key, start)
        start_projection(self.value, "xavier")
        start_projection(self.out, "xavier")

    def project(self, table: Float[Tensor, "rows width"]) -> dict[str, Float[Tensor, "rows attention"]]:
        """Keys and values of items, under the names by which :meth:`forward` finds them in a memory."""
        return {f"{self.branch}.key": self.key(table), f"{self.branch}.value": self.value(table)}

    def search(
        self,
        target: Float[Tensor, "samples width"],
        rows: Mapping[str, Shaped[Tensor, "rows ..."]],
        spans: Spans,
        length: LengthState,
        count: int,
    ) -> Spans:
        """The ``count`` behaviours of each sample with the largest logit, averaged over heads.

        Heads' mean of Q'_h . K'_h is the whole Q' . K' up to a constant, so one product ranks them.
        No gradient flows through a choice, so none is recorded.
        """
        with torch.no_grad():
            query = length.query(self.branch, self.query(target))
            return span_top(query, rows[f"{self.branch}.key"], spans, count)

    def forward(
        self,
        target: Float[Tensor, "samples width"],
        rows: Mapping[str, Shaped[Tensor, "rows ..."]],
        spans: Spans,
        length: LengthState,
    ) -> tuple[Float[Tensor, "samples width"], AttentionRecord]:
        """Attend over the spans and the prompts.

        Args:
            target: Each sample's target item.
            rows: What :meth:`project` gave for the items.
            spans: Each sample's behaviours as rows of them.
            length: The batch's lengths.
        """
        query = self.query(target)
        keys, values = rows[f"{self.branch}.key"], rows[f"{self.branch}.value"]
        prompts = length.prompts(self.branch, torch.cat([self.key.weight, self.value.weight]))
        if prompts is None:
            prompts = query.new_empty(len(query), 0, 2 * query.shape[1])
        prompt_keys, prompt_values = prompts.chunk(2, -1)
        logits, prompt_logits = conditioned_logits(
            length,
            self.branch,
            query=query,
            keys=keys,
            spans=spans,
            prompt_keys=prompt_keys,
            heads=self.heads,
            scale=(keys.shape[-1] // self.heads) ** 0.5,
        )
        weight, of_prompts = span_softmax_with(logits, prompt_logits, spans)
        mixed = span_sum(weight, self._split(values), spans)
        mixed = mixed + (of_prompts[..., None] * self._split(prompt_values)).sum(1)
        return self.out(mixed.flatten(1)), AttentionRecord(weight.detach(), spans, of_prompts.detach())

    def _split(self, x: Float[Tensor, "*n attention"]) -> Float[Tensor, "*n heads dim"]:
        return torch.unflatten(x, -1, (self.heads, -1))
