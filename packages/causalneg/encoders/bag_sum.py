"""Weighted sums of word vectors, text by text."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_BLOCK = 1024  # positions whose weights' gradients are made at a time


def bag_sum(
    vectors: Float[Tensor, "words dim"],
    weight: Float[Tensor, " positions"],
    token: Int[Tensor, " positions"],
    offsets: Int[Tensor, " texts_plus_one"],
) -> Float[Tensor, "texts dim"]:
    """``out_t = sum_{p of t} w_p v_{u(p)}``, over the positions p of text t, u(p) being the word there.

    As :func:`torch.nn.functional.embedding_bag`, but the gradient of the vectors is sparse, one row per word
    of the batch. With ``g_t`` the gradient by ``out_t``:

        dv_u = sum_{p: u(p) = u} w_p g_{t(p)}        again a bag sum, over the texts that hold the word
        dw_p = v_{u(p)} . g_{t(p)}                   made a block of positions at a time

    Args:
        vectors: v, one per word.
        weight: w of each position.
        token: Word of each position, one text after the other.
        offsets: Where each text begins, and the end of the last.
    """
    out: Tensor = _BagSum.apply(vectors, weight, token, offsets)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
    return out


class _BagSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        vectors: Float[Tensor, "words dim"],
        weight: Float[Tensor, " positions"],
        token: Int[Tensor, " positions"],
        offsets: Int[Tensor, " texts_plus_one"],
    ) -> Float[Tensor, "texts dim"]:
        ctx.save_for_backward(vectors, weight, token, offsets)
        return F.embedding_bag(token, vectors, offsets[:-1], mode="sum", per_sample_weights=weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        vectors, weight, token, offsets = ctx.saved_tensors
        grad = grad.contiguous()
        text = torch.repeat_interleave(offsets.diff(), output_size=len(token))
        of_vectors = of_weight = None
        if ctx.needs_input_grad[0]:
            order = torch.argsort(token, stable=True)
            words, count = torch.unique_consecutive(token[order], return_counts=True)
            begin = count.cumsum(0) - count
            rows = F.embedding_bag(
                text[order], grad, begin, mode="sum", per_sample_weights=weight[order].to(grad.dtype)
            )
            of_vectors = torch.sparse_coo_tensor(
                words[None], rows, vectors.shape, is_coalesced=True, check_invariants=False
            )
        if ctx.needs_input_grad[1]:
            of_weight = torch.empty_like(weight)
            for low in range(0, len(token), _BLOCK):
                part = slice(low, low + _BLOCK)
                of_weight[part] = (vectors[token[part]] * grad[text[part]]).sum(1)
        return of_vectors, of_weight, None, None
