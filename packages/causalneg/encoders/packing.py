"""Texts of equal length side by side: attention and means without padding and without masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

SEGMENT = 16384
"""Tokens that run through the layers together on a CPU: activations stay near its caches."""


@dataclass(frozen=True, eq=False)
class Packing:
    """The layout of texts sorted by length, one after the other.

    Args:
        place: Place of each token in its text.
        groups: How many texts of which length follow each other, shortest first.
    """

    place: Int[Tensor, " tokens"]
    groups: list[tuple[int, int]]

    @property
    def sizes(self) -> list[int]:
        """Tokens of each group."""
        return [texts * length for texts, length in self.groups]

    def attention(
        self,
        query: Float[Tensor, "tokens heads width"],
        key: Float[Tensor, "tokens key_heads width"],
        value: Float[Tensor, "tokens key_heads width"],
        *,
        scale: float | None = None,
        causal: bool = False,
        window: int | None = None,
        dropout: float = 0.0,
    ) -> Float[Tensor, "tokens heads width"]:
        """Every token attends to those of its own text.

        Texts of one length are a rectangle as they stand, so that each group is one plain product.

        Args:
            query: Queries.
            key: Keys; fewer heads are shared by neighbouring query heads.
            value: Values.
            scale: What scores are multiplied by; ``width ** -0.5`` by default.
            causal: Whether a token sees only itself and what stands before it.
            window: Tokens nearer than this are seen, on both sides unless ``causal``; all by default.
            dropout: Share of attention weights dropped.
        """
        share = query.shape[1] // key.shape[1]
        parts = []
        for (texts, length), q, k, v in zip(
            self.groups,
            torch.split(query, self.sizes),
            torch.split(key, self.sizes),
            torch.split(value, self.sizes),
            strict=True,
        ):
            q, k, v = (x.reshape(texts, length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
            if share > 1:
                k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
            mask = _near(length, window, causal, query.device)
            out = F.scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal=causal and mask is None, scale=scale
            )
            parts.append(out.transpose(1, 2).reshape(texts * length, *query.shape[1:]))
        return torch.cat(parts)

    def sum(self, x: Float[Tensor, "tokens width"]) -> Float[Tensor, "texts width"]:
        """Sum over the tokens of each text."""
        parts = zip(self.groups, torch.split(x, self.sizes), strict=True)
        return torch.cat([part.reshape(texts, length, -1).sum(1) for (texts, length), part in parts])

    def weighted_sum(
        self, weight: Float[Tensor, " tokens"], x: Float[Tensor, "tokens width"]
    ) -> Float[Tensor, "texts width"]:
        """Weighted sum over the tokens of each text; ``x`` is read once and not copied."""
        parts = zip(self.groups, torch.split(weight, self.sizes), torch.split(x, self.sizes), strict=True)
        return torch.cat(
            [
                torch.bmm(w.reshape(texts, 1, length).to(part.dtype), part.reshape(texts, length, -1))[:, 0]
                for (texts, length), w, part in parts
            ]
        )

    def first(self, x: Float[Tensor, "tokens width"]) -> Float[Tensor, "texts width"]:
        """First token of each text."""
        return x[self.place == 0]

    def last(self, x: Float[Tensor, "tokens width"]) -> Float[Tensor, "texts width"]:
        """Last token of each text."""
        lengths = [length for texts, length in self.groups for _ in range(texts)]
        return x[torch.tensor(lengths, device=x.device).cumsum(0) - 1]

    def mean(self, x: Float[Tensor, "tokens width"]) -> Float[Tensor, "texts width"]:
        """Mean over the tokens of each text."""
        lengths = [length for texts, length in self.groups for _ in range(texts)]
        return self.sum(x) / torch.tensor(lengths, device=x.device, dtype=x.dtype)[:, None]


def _near(length: int, window: int | None, causal: bool, device: torch.device) -> Tensor | None:
    if window is None or window >= length:
        return None
    place = torch.arange(length, device=device)
    distance = place[:, None] - place
    return (distance < window) & (distance >= 0 if causal else distance > -window)


def run_packed(
    ids: Int[Tensor, " tokens"],
    offsets: Int[Tensor, " texts_plus_one"],
    run: Callable[[Int[Tensor, " tokens"], Packing], Float[Tensor, "texts dim"]],
    *,
    segment: int = SEGMENT,
) -> Float[Tensor, "texts dim"]:
    """Sort texts by length, run them segment by segment, and give the vectors in the order asked for.

    Args:
        ids: Token ids, one text after the other; no text is empty.
        offsets: Where each text begins, and the end of the last; at least one text.
        run: Vectors of a segment's texts, from its token ids and their layout.
        segment: Tokens of a segment; a text is never split.

    Raises:
        ValueError: A text is empty.
    """
    length, order = torch.sort(offsets.diff(), stable=True)
    if int(length[0]) < 1:
        raise ValueError(f"text {int(order[0])} has no token")
    start = offsets[:-1][order]
    ends = length.cumsum(0)
    borders = torch.unique_consecutive((ends - length) // segment, return_counts=True)[1]
    out = []
    for text_start, text_length in zip(
        torch.split(start, borders.tolist()), torch.split(length, borders.tolist()), strict=True
    ):
        total = int(text_length.sum())
        shift = torch.repeat_interleave(text_length.cumsum(0) - text_length, text_length, output_size=total)
        place = torch.arange(total, device=ids.device) - shift
        index = torch.repeat_interleave(text_start, text_length, output_size=total) + place
        lengths, count = torch.unique_consecutive(text_length, return_counts=True)
        groups = list(zip(count.tolist(), lengths.tolist(), strict=True))
        out.append(run(ids[index].long(), Packing(place, groups)))
    return torch.cat(out)[torch.argsort(order)]
