"""What a term of the loss is: something beside InfoNCE that the embeddings of a batch are held to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class EmbeddedBatch:
    """The embeddings of a batch.

    Args:
        query: L2-normalised embeddings of the queries.
        positive: Embedding of each query's positive.
        negatives: Embeddings of all negatives.
        negative_row: Query of each negative.
        generated: Whether each negative was generated.
        positive_teacher: Teacher's score of each positive, NaN for none; None: of none at all.
        negative_teacher: Teacher's score of each negative, NaN for none.
        info_nce: InfoNCE of other embeddings of the same texts (queries, positives, negatives), with the
            candidates and the temperature of the loss.
    """

    query: Float[Tensor, "queries dim"]
    positive: Float[Tensor, "queries dim"]
    negatives: Float[Tensor, "negatives dim"]
    negative_row: Int[Tensor, " negatives"]
    generated: Bool[Tensor, " negatives"]
    positive_teacher: Float[Tensor, " queries"] | None = None
    negative_teacher: Float[Tensor, " negatives"] | None = None
    info_nce: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None


class Term(ABC):
    """A term of the loss, added to InfoNCE with a weight; its constructor's arguments are its settings.

    Args:
        weight: Its weight in the loss; 0 turns it off.

    Raises:
        ValueError: The weight is negative.
    """

    def __init__(self, *, weight: float) -> None:
        if weight < 0:
            raise ValueError(f"weight must not be negative, got {weight}")
        self.weight = weight

    @abstractmethod
    def value(self, batch: EmbeddedBatch) -> Float[Tensor, ""]:
        """The term of one batch, without its weight."""

    def warning(self, hardness_gap: float) -> str | None:
        """What a user should know before training; None for nothing.

        Args:
            hardness_gap: What :func:`causalneg.losses.hardness_gap` gives for the untrained encoder.
        """
        return None
