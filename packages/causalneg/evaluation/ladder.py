"""The ladder: BM25, the start encoder and the trained one on the same queries, with intervals, in words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.metrics.retrieval import RetrievalMetrics
from common.report.tables import Table
from common.stats.bootstrap import Difference, MeanBootstrap, paired_difference

BM25 = "BM25"
"""Name of the lowest rung; every other one is compared with it."""

MEASURE, BESIDE = "ndcg@10", "recall@100"
"""What decides, and what stands beside it."""


@dataclass(frozen=True)
class Rung:
    """A retriever on the ladder.

    Args:
        name: Name of the retriever.
        value: Mean nDCG@10 over the queries.
        low: Lower end of the 95 % interval over queries.
        high: Upper end of the interval.
        recall: Mean recall@100.
        against: Difference to BM25 on the same resamples; None for BM25.
    """

    name: str
    value: float
    low: float
    high: float
    recall: float
    against: Difference | None


@dataclass(frozen=True)
class Ladder:
    """Retrievers on the queries of one split, lowest rung first.

    Args:
        title: Data set and split.
        queries: How many queries.
        rungs: The retrievers.
    """

    title: str
    queries: int
    rungs: tuple[Rung, ...]

    @classmethod
    def of(
        cls, title: str, found: Mapping[str, RetrievalMetrics], *, resamples: int = 1000, seed: int = 0
    ) -> Ladder:
        """Compare retrievers; intervals by the bootstrap over queries, differences in pairs.

        Args:
            title: Data set and split.
            found: Metrics by retriever, from the lowest rung up; :data:`BM25` is one of them.
            resamples: Number of resamples.
            seed: Seed of the resamples.

        Raises:
            ValueError: BM25 is not there, or retrievers were measured on other queries.
        """
        if BM25 not in found:
            raise ValueError(f"the ladder needs {BM25}, got {', '.join(found)}")
        bootstrap = MeanBootstrap(found[BM25].per_query[MEASURE], resamples=resamples, seed=seed)
        means = {name: bootstrap.mean(metrics.per_query[MEASURE]) for name, metrics in found.items()}
        rungs = []
        for name, metrics in found.items():
            low, high = np.quantile(means[name][1:], [0.025, 0.975])
            against = paired_difference([means[name]], [means[BM25]]) if name != BM25 else None
            rungs.append(
                Rung(name, metrics.mean[MEASURE], float(low), float(high), metrics.mean[BESIDE], against)
            )
        return cls(title, found[BM25].queries, tuple(rungs))

    def to_markdown(self) -> str:
        """The ladder as a table in Markdown."""
        return self.table().markdown()

    def table(self) -> Table:
        """The ladder as a table."""
        rows = [
            [
                rung.name,
                f"{rung.value:.4f}",
                f"{rung.low:.4f} - {rung.high:.4f}",
                "" if rung.against is None else f"{rung.against.mean:+.4f}",
                f"{rung.recall:.4f}",
            ]
            for rung in self.rungs
        ]
        title = f"{self.title}, {self.queries} queries"
        return Table([title, "nDCG@10", "95 % interval", "to BM25", "recall@100"], rows)

    def words(self) -> list[str]:
        """A line for each encoder: whether it is above or below BM25, and whether the queries tell."""
        lines = []
        for rung in self.rungs:
            if rung.against is None:
                continue
            mean, low, high = rung.against.mean, rung.against.low, rung.against.high
            where = "below" if mean < 0 else "above" if mean > 0 else "level with"
            interval = f"95 % interval {low:+.4f} to {high:+.4f}"
            line = f"{rung.name} is {where} BM25: {mean:+.4f} nDCG@10 ({interval})"
            if low <= 0 <= high:
                line += f"; {self.queries} queries are too few to tell them apart"
            lines.append(line)
        encoders = [rung for rung in self.rungs if rung.against is not None]
        if len(encoders) == 2 and encoders[1].value < encoders[0].value:
            lost = encoders[0].value - encoders[1].value
            lines.append(f"{encoders[1].name} is {lost:.4f} below {encoders[0].name}: training lowered it")
        return lines

    @classmethod
    def from_json(cls, text: str) -> Ladder:
        """Read what :meth:`to_json` wrote."""
        content = json.loads(text)
        rungs = []
        for rung in content["rungs"]:
            against = rung.pop("against_bm25")
            rungs.append(Rung(**rung, against=None if against is None else _read_difference(against)))
        return cls(content["title"], content["queries"], tuple(rungs))

    def to_json(self) -> str:
        """Everything, as JSON."""
        rungs: list[dict[str, Any]] = [
            {key: value for key, value in vars(rung).items() if key != "against"}
            | {"against_bm25": None if rung.against is None else vars(rung.against)}
            for rung in self.rungs
        ]
        content = {"title": self.title, "queries": self.queries, "rungs": rungs, "words": self.words()}
        # a single seed has no deviation, and JSON no word for infinite freedom
        return json.dumps(_finite(content), indent=1)


def _read_difference(found: dict[str, Any]) -> Difference:
    """A difference of :meth:`Ladder.to_json`; what has no number there is none here."""
    absent = {"freedom": math.inf}
    return Difference(**{k: absent.get(k, math.nan) if v is None else v for k, v in found.items()})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
