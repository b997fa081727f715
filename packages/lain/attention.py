"""Attention of a target over histories held as spans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lain.length import LengthState
from lain.spans import Spans, span_dot, span_softmax, span_sum

Start = Literal["identity", "xavier"]


@dataclass(frozen=True, eq=False)
class AttentionRecord:
    """The weights a branch gave, for diagnosis.

    Args:
        weight: Weight of each pair, head by head.
        spans: The pairs, prompts included.
        prompt_place: Pair numbers of the prompts, per sample; None without prompts.
    """

    weight: Float[Tensor, "pairs heads"]
    spans: Spans
    prompt_place: Int[Tensor, "samples prompts"] | None


def with_prompts(
    table: Float[Tensor, "rows width"], spans: Spans, prompts: Float[Tensor, "samples prompts width"] | None
) -> tuple[Float[Tensor, "more_rows width"], Spans, Int[Tensor, "samples prompts"] | None]:
    """Append the prompts to the table and put them in front of the spans.

    Returns:
        The longer table, the longer spans, and the pair numbers of the prompts (None without any).
    """
    if prompts is None:
        return table, spans, None
    samples, count, _ = prompts.shape
    number = torch.arange(samples * count, device=table.device).reshape(samples, count)
    longer, place = spans.with_prefix(len(table) + number)
    return torch.cat([table, prompts.flatten(0, 1).to(table.dtype)]), longer, place


def start_projection(layer: nn.Linear, start: Start) -> None:
    """Start a projection as a (rectangular) identity, or with Xavier's uniform weights."""
    if start == "identity":
        nn.init.eye_(layer.weight)
    else:
        nn.init.xavier_uniform_(layer.weight)


class TargetAttention(nn.Module):
    """Multi-head attention of each sample's target over its span.

    out = W_o concat_h sum_p softmax_p(Q'_h . K'_h,p / (sqrt(d_h) tau)) V_h,p, with Q = W_q target,
    K = W_k item, V = W_v item; the length may bend Q, K and tau and add prompts. A sample without
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

    def search(
        self,
        target: Float[Tensor, "samples width"],
        table: Float[Tensor, "rows width"],
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
            score = span_dot(query[:, None], self.key(table)[:, None], spans)
            return spans.top(score[:, 0], count)

    def forward(
        self,
        target: Float[Tensor, "samples width"],
        table: Float[Tensor, "rows width"],
        spans: Spans,
        length: LengthState,
    ) -> tuple[Float[Tensor, "samples width"], AttentionRecord]:
        """Attend over the spans, prompts in front."""
        table, spans, place = with_prompts(table, spans, length.prompts(self.branch))
        plain = self.query(target)
        query = length.query(self.branch, plain)
        keys = self._split(self.key(table))
        logits = span_dot(self._split(query), keys, spans)
        shift = length.key_shift(self.branch)
        if shift is not None:
            logits = logits + (self._split(query) * self._split(shift)).sum(-1).index_select(0, spans.row)
        if place is not None and length.plain_prompt_query:
            prompt_keys = torch.unflatten(keys[-place.numel() :], 0, place.shape)
            prompt_logits = torch.einsum("bhd,bkhd->bkh", self._split(plain), prompt_keys)
            logits = logits.index_copy(0, place.flatten(), prompt_logits.flatten(0, 1).to(logits.dtype))
        logits = logits / (keys.shape[-1] ** 0.5)
        offset = length.prompt_offset
        if place is not None and offset is not None:
            logits = logits.index_add(0, place.flatten(), offset.expand(place.numel(), self.heads))
        temperature = length.temperature(self.branch)
        if temperature is not None:
            logits = logits / temperature.index_select(0, spans.row)[:, None]
        weight = span_softmax(logits, spans)
        mixed = span_sum(weight, self._split(self.value(table)), spans)
        return self.out(mixed.flatten(1)), AttentionRecord(weight.detach(), spans, place)

    def _split(self, x: Float[Tensor, "n attention"]) -> Float[Tensor, "n heads dim"]:
        return torch.unflatten(x, 1, (self.heads, -1))
