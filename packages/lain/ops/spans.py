"""Spans: per sample, a run of rows in the batch's item table; the form of every history here.

Samples with histories of different lengths are a sparse matrix in CSR form: one line per sample, one stored
entry per behaviour, the column saying which row of the table the behaviour is. Scores of queries against
histories are then a *sampled dense-dense product* (:func:`~lain.ops.products.span_dot`), weighted sums of
behaviours a *segment weighted sum*, which is a sparse-dense product (:func:`~lain.ops.products.span_sum`).
Nothing is padded and no ``[pairs, width]`` array is made: memory follows the number of behaviours, and an
item that many samples mention is stored and projected once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Spans:
    """Which table rows belong to which sample: sample ``i`` owns ``index[offsets[i]:offsets[i+1]]``.

    A *pair* is one (sample, behaviour); the pairs of a sample are in time order, oldest first.

    Args:
        offsets: Where each sample's pairs begin, and the end of the last.
        index: Row of the table for each pair.
    """

    offsets: Int[Tensor, " samples_plus_one"]
    index: Int[Tensor, " pairs"]

    @classmethod
    def from_runs(
        cls, pool: Int[Tensor, " pool"], start: Int[Tensor, " samples"], count: Int[Tensor, " samples"]
    ) -> Spans:
        """Spans ``pool[start[i] : start[i] + count[i]]`` into a pool that samples may share."""
        offsets = offsets_of(count)
        pairs = int(offsets[-1])
        shift = torch.repeat_interleave(start - offsets[:-1], count, output_size=pairs)
        return cls(offsets, pool[shift + torch.arange(pairs, device=pool.device)])

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> Int[Tensor, " samples"]:
        """Number of pairs of each sample."""
        return self.offsets[1:] - self.offsets[:-1]

    @cached_property
    def row(self) -> Int[Tensor, " pairs"]:
        """Sample of each pair."""
        samples = torch.arange(self.samples, device=self.index.device)
        return torch.repeat_interleave(samples, self.lengths, output_size=len(self.index))

    @cached_property
    def place(self) -> Int[Tensor, " pairs"]:
        """Place of each pair in its span, 0 for the oldest."""
        return torch.arange(len(self.index), device=self.index.device) - self.offsets[:-1][self.row]

    @cached_property
    def by_index(self) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
        """The pairs sorted by table row: their order, and their samples in that order."""
        order = torch.argsort(self.index, stable=True)
        return order, self.row[order]

    def take(self, sample: Int[Tensor, " samples"]) -> Spans:
        """The spans of these samples, in this order; one may come many times."""
        if self.samples == 1:
            return RepeatedSpan(self.index, len(sample))
        return Spans.from_runs(self.index, self.offsets[sample], self.lengths[sample])

    def tail(self, count: int) -> Spans:
        """The last ``count`` pairs of every sample."""
        keep = torch.clamp(self.lengths, max=count)
        return Spans.from_runs(self.index, self.offsets[1:] - keep, keep)

    def select(self, keep: Bool[Tensor, " pairs"]) -> Spans:
        """Only the pairs where ``keep`` is true, in the same order."""
        return Spans(offsets_of(keep)[self.offsets], self.index[keep])

    def top(self, score: Float[Tensor, " pairs"], count: int) -> Spans:
        """The ``count`` best pairs of every sample, in time order; of equal scores the latest win.

        Args:
            score: Finite score of each pair; no gradient flows through the choice.
            count: Pairs to keep; shorter samples keep all they have.
        """
        lengths = self.lengths
        longest = int(lengths.max()) if len(lengths) else 0
        if longest <= count:
            return self
        filled = torch.arange(longest, device=score.device) < lengths[:, None]
        padded = score.new_full(filled.shape, float("-inf")).masked_scatter_(filled, score.detach())
        bar = padded.topk(count, dim=1, sorted=True).values[:, -1:]  # -inf where all pairs fit
        above, equal = padded > bar, (padded == bar) & filled
        room = count - above.sum(1, keepdim=True)
        latest = equal.flip(1).cumsum(1, dtype=torch.int32).flip(1)
        return self.select((above | (equal & (latest <= room)))[filled])

    def with_prefix(self, prefix: Int[Tensor, "samples extra"]) -> tuple[Spans, Int[Tensor, "samples extra"]]:
        """Put the same number of further rows in front of every sample's pairs.

        Args:
            prefix: Table rows to put in front, per sample.

        Returns:
            The longer spans, and the pair number of each prefixed row in them.
        """
        samples, extra = prefix.shape
        offsets = self.offsets + extra * torch.arange(samples + 1, device=self.offsets.device)
        place = offsets[:-1, None] + torch.arange(extra, device=self.offsets.device)
        index = self.index.new_empty(len(self.index) + samples * extra)
        index[place.reshape(-1)] = prefix.reshape(-1)
        moved = torch.arange(len(self.index), device=self.index.device) + extra * (self.row + 1)
        index[moved] = self.index
        return Spans(offsets, index), place


class RepeatedSpan(Spans):
    """One span that many samples read, as the candidates of one user do: made pair by pair only when asked.

    Args:
        span: Row of the table for each of its places.
        samples: Number of samples that read it.
    """

    def __init__(self, span: Int[Tensor, " places"], samples: int) -> None:
        offsets = torch.arange(samples + 1, device=span.device) * len(span)
        object.__setattr__(self, "offsets", offsets)
        object.__setattr__(self, "span", span)

    span: Int[Tensor, " places"]

    @cached_property
    def index(self) -> Int[Tensor, " pairs"]:
        """Row of the table for each pair."""
        return self.span.repeat(self.samples)

    @cached_property
    def row(self) -> Int[Tensor, " pairs"]:
        """Sample of each pair."""
        samples = torch.arange(self.samples, device=self.span.device)
        return samples[:, None].expand(-1, len(self.span)).reshape(-1)

    def tail(self, count: int) -> Spans:
        """The last ``count`` places, for every sample."""
        return RepeatedSpan(self.span[max(len(self.span) - count, 0) :], self.samples)


def offsets_of(count: Bool[Tensor, " n"] | Int[Tensor, " n"]) -> Int[Tensor, " n_plus_one"]:
    """Where each sample's pairs begin, and the end of the last, from their numbers."""
    offsets = torch.zeros(len(count) + 1, dtype=torch.long, device=count.device)
    torch.cumsum(count, 0, out=offsets[1:])
    return offsets
