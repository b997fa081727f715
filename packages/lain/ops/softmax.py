"""Softmax over the pairs of each sample."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lain.ops.spans import Spans


def span_softmax(logits: Float[Tensor, "pairs heads"], spans: Spans) -> Float[Tensor, "pairs heads"]:
    """Softmax over the pairs of each sample, head by head, stable for logits of any size."""
    return span_softmax_with(logits, logits.new_empty(spans.samples, 0, logits.shape[1]), spans)[0]


def span_softmax_with(
    logits: Float[Tensor, "pairs heads"], extra: Float[Tensor, "samples extra heads"], spans: Spans
) -> tuple[Float[Tensor, "pairs heads"], Float[Tensor, "samples extra heads"]]:
    """One softmax over the pairs of each sample and a fixed number of further logits.

    Args:
        logits: Logits of the pairs.
        extra: Further logits of each sample, the prompts' say.
        spans: The pairs of each sample.

    Returns:
        The weights of the pairs, and those of the further logits; together they sum to 1.
    """
    heads = logits.shape[1]
    with torch.no_grad():
        peak = logits.new_full((spans.samples, heads), float("-inf"))
        peak.scatter_reduce_(0, spans.row[:, None].expand(-1, heads), logits, "amax")
        if extra.shape[1]:
            peak = torch.maximum(peak, extra.amax(1))
    weight = torch.exp(logits - peak.index_select(0, spans.row))
    of_extra = torch.exp(extra - peak[:, None])
    total = of_extra.sum(1).index_add(0, spans.row, weight)
    return weight / total.index_select(0, spans.row), of_extra / total[:, None]
