"""Matryoshka: the first numbers of a vector are to be a vector of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from causalneg.losses.similarity import full_precision
from causalneg.losses.term import EmbeddedBatch, Term


def shortened(x: Float[Tensor, "texts dim"], dim: int) -> Float[Tensor, "texts short"]:
    """The first numbers of vectors, of length 1 again.

    Raises:
        ValueError: There are not so many.
    """
    if not 1 <= dim <= x.shape[1]:
        raise ValueError(f"dims must lie from 1 to the encoder's {x.shape[1]}, got {dim}")
    return functional.normalize(full_precision(x[:, :dim]), dim=-1)


class MatryoshkaTerm(Term):
    """InfoNCE of shortened vectors, with the candidates of the loss itself, averaged over the lengths.

    ``L = 1 / |dims| sum over m of InfoNCE(q[:m], d[:m])``, each of length 1 again. The whole vectors are
    InfoNCE's already, beside this term.

    Source: Kusupati et al., Matryoshka Representation Learning (NeurIPS 2022), equal weights;
    sentence-transformers' MatryoshkaLoss sums over the lengths, the whole one among them.

    Args:
        weight: Its weight in the loss; 0 turns it off.
        dims: Lengths.

    Raises:
        ValueError: There is no length, or one is below 1.
    """

    def __init__(self, *, weight: Annotated[float, Ge(0)] = 1.0, dims: Sequence[int] = (64, 128)) -> None:
        super().__init__(weight=weight)
        if not dims or min(dims) < 1:
            raise ValueError(f"dims must name lengths of 1 and more, got {list(dims)}")
        self.dims = tuple(dims)

    def value(self, batch: EmbeddedBatch) -> Float[Tensor, ""]:
        """The term of one batch."""
        assert batch.info_nce is not None
        texts = (batch.query, batch.positive, batch.negatives)
        losses = [batch.info_nce(*(shortened(x, dim) for x in texts)) for dim in self.dims]
        return torch.stack(losses).mean()
