"""The behaviours that match a query best."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lain.ops.products import span_dot
from lain.ops.spans import RepeatedSpan, Spans, offsets_of


def span_top(
    query: Float[Tensor, "samples width"], table: Float[Tensor, "rows width"], spans: Spans, count: int
) -> Spans:
    """The ``count`` pairs of each sample with the largest product of query and row, in time order.

    Of equal products the latest win. A span that many samples read is searched by one matrix product, which
    rounds otherwise; only pairs that could be among the best whatever the rounding are then compared as all
    others are, so that the choice is the same.
    """
    if (
        isinstance(spans, RepeatedSpan)
        and torch.is_inference_mode_enabled()
        and query.device.type == "cpu"
        and len(spans.span) > 2 * count
    ):
        spans = _contenders(query, table, spans, count)
    return spans.top(span_dot(query[:, None], table[:, None], spans)[:, 0], count)


def _contenders(query: Tensor, table: Tensor, spans: RepeatedSpan, count: int) -> Spans:
    """Pairs among which the ``count`` best of each sample are for sure.

    The ``count``-th largest of maxima over disjoint groups is no larger than that of all. Two float products
    of width d differ by at most 2 d u |q| |k|, u being half the distance of 1 to the next number; what is
    among the best in one rounding lies at most twice that below the bar in the other.
    """
    keys = table.index_select(0, spans.span)
    near = query @ keys.T
    group = max(near.shape[1] // (4 * count), 1)
    groups = near.shape[1] // group
    best = torch.unflatten(near[:, : groups * group], 1, (group, groups)).amax(1)
    bar = torch.from_numpy(np.partition(best.numpy(), groups - count, axis=1)[:, groups - count])
    slack = 2.5 * query.shape[1] * torch.finfo(near.dtype).eps * query.norm(dim=1) * keys.norm(dim=1).max()
    chosen = (near >= (bar - slack)[:, None]).numpy()
    place = torch.from_numpy(np.flatnonzero(chosen))
    counts = torch.from_numpy(np.count_nonzero(chosen, axis=1))
    return Spans(offsets_of(counts), spans.span[place % len(spans.span)])
