"""Run files as trec_eval reads them."""

from pathlib import Path

import pytrec_eval


def read_run(path: Path) -> dict[str, dict[str, float]]:
    """Scores by query and document."""
    with path.open() as file:
        found: dict[str, dict[str, float]] = pytrec_eval.parse_run(file)
    return found
