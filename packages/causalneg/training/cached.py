"""Large batches in little memory: cached gradients.

A contrastive loss needs the vectors of all texts of a batch at once, but a text's vector needs no
other text. So the batch is encoded twice, chunk by chunk: first without a graph, to know all vectors
and the gradient of the loss with respect to them; then, in the backward pass, chunk after chunk with a
graph, which takes its share of that gradient and is freed again. Loss and gradients are those of the
plain path, for a third more work and the memory of one chunk.

Source: Gao, Zhang, Han, Callan, Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup (RepL4NLP 2021). Where the encoder draws random numbers (dropout), the second pass repeats the
first one's, chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from causalneg.encoders.base import Encoder, even_chunks
from common.ragged import Ragged


@dataclass(frozen=True, eq=False)
class TokenChunk:
    """Packed texts that are encoded together.

    Args:
        ids: Token ids, one text after the other.
        offsets: Where each text begins, and the end of the last.
        query: Whether they are queries.
    """

    ids: Int[Tensor, " tokens"]
    offsets: Int[Tensor, " texts_plus_one"]
    query: bool

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.offsets) - 1

    def to(self, device: torch.device | str) -> TokenChunk:
        """The same chunk on another device."""
        return TokenChunk(self.ids.to(device), self.offsets.to(device), self.query)


def token_chunks(
    tokens: Ragged, *, query: bool, chunk_tokens: int
) -> tuple[list[TokenChunk], Int[Tensor, " texts"]]:
    """Cut texts into chunks of about equal cost, texts of like length together.

    Args:
        tokens: Token ids of the texts.
        query: Whether they are queries.
        chunk_tokens: Tokens of a chunk.

    Returns:
        The chunks, and for each text its row in the vectors of all chunks, one after the other.
    """
    rows = even_chunks(tokens.lengths, chunk_tokens)
    chunks = []
    for chunk in rows:
        part = tokens.gather(chunk)
        chunks.append(TokenChunk(torch.from_numpy(part.values), torch.from_numpy(part.offsets), query))
    order = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
    return chunks, torch.from_numpy(np.argsort(order, kind="stable"))


@dataclass(frozen=True)
class _Conditions:
    """What a second pass must share with the first: random state and precision."""

    cpu: Tensor
    cuda: Tensor | None
    autocast: bool
    dtype: torch.dtype

    @classmethod
    def now(cls, device: torch.device) -> _Conditions:
        kind = device.type
        return cls(
            torch.get_rng_state(),
            torch.cuda.get_rng_state(device) if kind == "cuda" else None,
            torch.is_autocast_enabled(kind),
            torch.get_autocast_dtype(kind),
        )

    def precision(self, device: torch.device) -> torch.autocast:
        # Without autocast's cache: weights that were cast in a pass without a graph must not serve
        # one that needs it.
        return torch.autocast(device.type, dtype=self.dtype, enabled=self.autocast, cache_enabled=False)

    @contextmanager
    def again(self, device: torch.device) -> Iterator[None]:
        with (
            torch.random.fork_rng(devices=[device] if self.cuda is not None else []),
            self.precision(device),
        ):
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda, device)
            yield


class _Replay(torch.autograd.Function):
    """Vectors of all chunks; its backward encodes each chunk again and goes through it.

    The weights are inputs, so that their gradients leave through the graph as any others do: summed
    once, seen by hooks (and so by data-parallel wrappers) once.
    """

    @staticmethod
    def forward(
        ctx: Any, encoder: Encoder, chunks: Sequence[TokenChunk], *weights: Tensor
    ) -> Float[Tensor, "texts dim"]:
        ctx.encoder, ctx.chunks, ctx.training, ctx.conditions = encoder, chunks, encoder.training, []
        ctx.save_for_backward(*weights)  # so that a change in between is noticed
        out = []
        for chunk in chunks:
            device = chunk.ids.device
            ctx.conditions.append(_Conditions.now(device))
            with ctx.conditions[-1].precision(device):
                out.append(encoder(chunk.ids, chunk.offsets, query=chunk.query))
        return torch.cat(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.encoder.training != ctx.training:
            raise RuntimeError("the encoder's training mode changed between the passes")
        weights = ctx.saved_tensors
        sums: list[Tensor | None] = [None] * len(weights)
        for chunk, conditions, part in zip(
            ctx.chunks, ctx.conditions, torch.split(grad, [len(c) for c in ctx.chunks]), strict=True
        ):
            with torch.enable_grad(), conditions.again(chunk.ids.device):
                vectors = ctx.encoder(chunk.ids, chunk.offsets, query=chunk.query)
            found = torch.autograd.grad(vectors, weights, part.to(vectors.dtype), allow_unused=True)
            sums = [_add(old, new) for old, new in zip(sums, found, strict=True)]
        return None, None, *sums


def _add(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    return new if old is None else old if new is None else old + new


def cached_embeddings(encoder: Encoder, chunks: Sequence[TokenChunk]) -> Float[Tensor, "texts dim"]:
    """Vectors of all chunks, one after the other, whose backward pass needs the memory of one chunk.

    Use them as any other vectors: what is computed from them can be returned as a loss, scaled,
    accumulated, differentiated by ``torch.autograd.grad``. The encoder must not change between the two
    passes, nor its training mode; a change raises a RuntimeError.

    Args:
        encoder: The encoder.
        chunks: At least one chunk, for example of :func:`token_chunks`.

    Raises:
        ValueError: There is no chunk.
    """
    if not chunks:
        raise ValueError("there must be at least one chunk")
    weights = [weight for weight in encoder.parameters() if weight.requires_grad]
    out: Tensor = _Replay.apply(encoder, chunks, *weights)  # type: ignore[no-untyped-call]
    return out
