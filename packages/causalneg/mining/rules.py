"""The rules of mining: which candidates become negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from common.errors import ConfigError

Pick = Literal["top", "random"]
Against = Literal["one", "all", "lowest"]


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
        relative_margin: Share of the positive's score to stay below, such as 0.95. (sentence-transformers
            counts from the other end: its 0.05 is 0.95 here.)
        against: The positive that both margins mean, where a query has several. ``one``: it is enough that
            they hold against one, so the highest counts. ``all``: they must hold against every one, so the
            lowest counts. ``lowest``: the lowest of those that the search found within its depth, since a
            positive that the search does not see says nothing of what it ranks high; all, if it found none.
        near_duplicate: Share of common five-word sequences, of the shorter text's, from which on a candidate
            is the same text as a positive and left out; None: none is.
        distinct: The same between the negatives of one query; None: they may be alike.

    Raises:
        ConfigError: A rule is out of range.
    """

    count: int = 15
    depth: int = 100
    first_rank: int = 1
    last_rank: int | None = None
    pick: Pick = "top"
    max_score: float | None = None
    min_score: float | None = None
    margin: float | None = None
    relative_margin: float | None = None
    against: Against = "one"
    near_duplicate: float | None = 0.6
    distinct: float | None = None

    def __post_init__(self) -> None:
        """Check every rule."""
        found = [
            f"{name} must be 1 or more, got {value}"
            for name, value in (("count", self.count), ("depth", self.depth), ("first_rank", self.first_rank))
            if value < 1
        ]
        if not self.first_rank <= self.last <= self.depth:
            found.append(
                f"ranks must lie within the depth, first to last: got {self.first_rank} to {self.last}, "
                f"depth {self.depth}"
            )
        for name, chosen, choices in (
            ("pick", self.pick, get_args(Pick)),
            ("against", self.against, get_args(Against)),
        ):
            if chosen not in choices:
                found.append(f"{name} must be one of {', '.join(choices)}, got '{chosen}'")
        for name, share in (
            ("relative_margin", self.relative_margin),
            ("near_duplicate", self.near_duplicate),
            ("distinct", self.distinct),
        ):
            if share is not None and not 0 < share <= 1:
                found.append(f"{name} must be above 0 and at most 1, got {share}")
        if self.margin is not None and self.margin < 0:
            found.append(f"margin must not be negative, got {self.margin}")
        if self.min_score is not None and self.max_score is not None and self.min_score > self.max_score:
            found.append(f"min_score {self.min_score} is above max_score {self.max_score}")
        ConfigError.raise_if(found)

    @property
    def last(self) -> int:
        """Last rank looked at."""
        return self.depth if self.last_rank is None else self.last_rank
