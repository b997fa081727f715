"""The report of a mined set: ranks, scores, and what was left out by which rule."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MiningReport:
    """What was mined, and why not more.

    Args:
        split: Queries mined for.
        backend: What found the candidates.
        seed: Seed of the random picks.
        rules: The rules.
        queries: Number of queries.
        negatives: Number of negatives.
        documents: Number of different documents among them.
        per_query: Number of queries by number of negatives.
        ranks: Number of negatives by first and last rank of a range.
        score_edges: Ends of the ranges of score.
        negative_scores: Number of negatives by range of score.
        positive_scores: Number of positives by range of score.
        positives_found: Share of the positives within the depth of the search.
        excluded: Number of candidates in the window by the first rule that left them out.
        duplicates: Negatives whose content another negative of the same query has, letter by letter.
        false_negatives: Negatives that are positives by the truth; None where none is known.
        judged: Negatives of the queries that the truth knows.
        texts_cut: Queries and documents longer than the encoder takes; their ends were not read.
    """

    split: str
    backend: str
    seed: int
    rules: dict[str, Any]
    queries: int
    negatives: int
    documents: int
    per_query: dict[int, int]
    ranks: list[tuple[int, int, int]]
    score_edges: list[float]
    negative_scores: list[int]
    positive_scores: list[int]
    positives_found: float
    excluded: dict[str, int]
    duplicates: int
    false_negatives: int | None = None
    judged: int = 0
    texts_cut: int = 0

    @property
    def false_negative_rate(self) -> float | None:
        """Share of false negatives among the negatives whose truth is known; None where none is."""
        return None if self.false_negatives is None or not self.judged else self.false_negatives / self.judged

    def to_json(self) -> str:
        """The report as a JSON object."""
        values = dataclasses.asdict(self) | {"false_negative_rate": self.false_negative_rate}
        return json.dumps(values, indent=2, ensure_ascii=False)

    def to_markdown(self) -> str:
        """The report as tables."""
        few = sum(queries for count, queries in self.per_query.items() if count < self.rules["count"])
        rows = {
            "queries": f"{self.queries:,}",
            "negatives": f"{self.negatives:,} ({self.negatives / max(1, self.queries):.1f} a query)",
            "queries with fewer than asked for": f"{few:,} ({self.per_query.get(0, 0):,} with none)",
            "different documents": f"{self.documents:,}",
            "same text twice for one query": f"{self.duplicates:,}",
            "positives that the search found": f"{self.positives_found:.1%}",
        }
        if self.false_negative_rate is not None:
            rows["false negatives"] = f"{self.false_negatives:,} ({self.false_negative_rate:.2%})"
        if self.texts_cut:
            rows["texts longer than the encoder takes"] = f"{self.texts_cut:,}"
        lines = [f"Mined for {self.split} with {self.backend}, seed {self.seed}", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in rows.items()]
        lines += ["", "| left out | candidates |", "|---|---:|"]
        lines += [f"| {name} | {count:,} |" for name, count in self.excluded.items()]
        lines += ["", "| ranks | negatives |", "|---|---:|"]
        lines += [f"| {first}-{last} | {count:,} |" for first, last, count in self.ranks]
        lines += ["", "| score | negatives | positives |", "|---|---:|---:|"]
        for at, (negatives, positives) in enumerate(
            zip(self.negative_scores, self.positive_scores, strict=True)
        ):
            low, high = self.score_edges[at : at + 2]
            lines.append(f"| {low:.3g} to {high:.3g} | {negatives:,} | {positives:,} |")
        return "\n".join(lines) + "\n"
