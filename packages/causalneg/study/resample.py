"""Runs of a study measured on resamples of its test queries."""

from __future__ import annotations

import json
from pathlib import Path

from common.errors import DataError
from common.stats.bootstrap import MeanBootstrap
from common.study.collect import Measure, Run
from common.study.compare import Resampler, Vector


def splits(run: Run) -> list[str]:
    """Splits that a run was tested on."""
    return list(run.record.notes["tests"])


def per_query(run: Run, measure: Measure) -> dict[str, float]:
    """A metric by query id; empty where it was not measured.

    Args:
        run: The run.
        measure: Its bucket is a view of the corpus: ``""``, ``mixed``, ``mixed-plain`` or ``mixed-styled``.

    Raises:
        DataError: The file is gone.
    """
    split, view = measure.split, measure.bucket
    name = run.record.notes["evaluated"].get(split + ("/mixed" if view else ""))
    if name is None:
        return {}
    path = run.folder / "eval" / name / "per_query.json"
    try:
        values: dict[str, float] = json.loads(path.read_text())[measure.metric]
    except (OSError, ValueError, KeyError) as error:
        hint = "remove the run's folder to train it again"
        raise DataError(f"{path}: cannot be read ({error}); {hint}") from error
    if view in ("mixed-plain", "mixed-styled"):
        styled = set(run.record.notes["styled_gold"].get(split, []))
        return {q: v for q, v in values.items() if (q in styled) == (view == "mixed-styled")}
    return values


class QueryResampler(Resampler):
    """Means of every run's metrics over the same resamples of queries.

    Args:
        resamples: Number of resamples.
    """

    def __init__(self, *, resamples: int = 1000) -> None:
        self.resamples = resamples
        self._bootstraps: dict[tuple[str, ...], MeanBootstrap] = {}
        self._measured: dict[tuple[Path, Measure], Vector | None] = {}

    def __call__(self, run: Run, measure: Measure) -> Vector | None:
        """A mean over the queries as they are, then over every resample; None where it was not measured.

        Raises:
            DataError: The run's metrics by query are gone.
        """
        place = (run.folder, measure)
        if place not in self._measured:
            values = per_query(run, measure)
            self._measured[place] = self._bootstrap(values).mean(values) if values else None
        return self._measured[place]

    def _bootstrap(self, values: dict[str, float]) -> MeanBootstrap:
        queries = tuple(sorted(values))
        if queries not in self._bootstraps:
            self._bootstraps[queries] = MeanBootstrap(queries, resamples=self.resamples)
        return self._bootstraps[queries]
