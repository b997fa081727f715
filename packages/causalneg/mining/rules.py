"""The rules of mining: which candidates become negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from common.config import checked
from common.errors import ConfigError

Pick = Literal["top", "random"]
Against = Literal["one", "all", "lowest"]


Part = Annotated[float, Gt(0), Le(1)]


@checked
@dataclass(frozen=True)
class MiningRules:
    """Which candidates become negatives.

    With ``p`` the score of the positive it is compared to, a candidate of score ``s`` is kept if
    ``min_score <= s <= max_score``, ``s <= p - margin`` and ``s < p - (1 - relative_margin) |p|``.

    Source: NV-Retriever (Moreira et al. 2024) for the last, "positive-aware" rule, with 0.95.

    Args:
        count: Most negatives of a query.
        depth: How many documents a search returns for each query.
        first_rank: First rank looked at; 1 is the best document. Positives are ranked with the others.
        last_rank: Last rank looked at; None: ``depth``.
        pick: The best ranked, or any, in random order.
        max_score: Highest score.
        min_score: Lowest score.
        margin: How far below the positive's score, in units of the score.
        relative_margin: Part of the positive's score to stay below, such as 0.95. (sentence-transformers
            counts from the other end: its 0.05 is 0.95 here.)
        against: The positive that both margins mean, where a query has several. ``one``: it is enough that
            they hold against one, so the highest counts. ``all``: they must hold against every one, so the
            lowest counts. ``lowest``: the lowest of those that the search found within its depth, since a
            positive that the search does not see says nothing of what it ranks high; all, if it found none.
        near_duplicate: Part of common five-word sequences, of the shorter text's, from which on a candidate
            is the same text as a positive and left out; None: none is.
        distinct: The same between the negatives of one query; None: they may be alike.

    Raises:
        ConfigError: A rule is out of range.
    """

    count: Annotated[int, Ge(1)] = 15
    depth: Annotated[int, Ge(1)] = 100
    first_rank: Annotated[int, Ge(1)] = 1
    last_rank: int | None = None
    pick: Pick = "top"
    max_score: float | None = None
    min_score: float | None = None
    margin: Annotated[float, Ge(0)] | None = None
    relative_margin: Part | None = None
    against: Against = "one"
    near_duplicate: Part | None = 0.6
    distinct: Part | None = None

    def __post_init__(self) -> None:
        """Refuse ranks beyond the depth and an empty range of scores."""
        found = []
        if not self.first_rank <= self.last <= self.depth:
            found.append(
                f"ranks must lie within the depth, first to last: got {self.first_rank} to {self.last}, "
                f"depth {self.depth}"
            )
        if self.min_score is not None and self.max_score is not None and self.min_score > self.max_score:
            found.append(f"min_score {self.min_score} is above max_score {self.max_score}")
        ConfigError.raise_if(found)

    @property
    def last(self) -> int:
        """Last rank looked at."""
        return self.depth if self.last_rank is None else self.last_rank
