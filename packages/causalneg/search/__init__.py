"""Search: the best documents of every query; a search is a file, and a line in SEARCHERS."""

from collections.abc import Callable

from causalneg.search.approximate import HNSWSearcher, IVFSearcher, approximate_search
from causalneg.search.base import Collection, Searcher, as_run, unmatched_warning
from causalneg.search.bm25 import BM25
from causalneg.search.dense import check_device, pair_scores
from causalneg.search.exact import ExactSearcher, exact_search

__all__ = [
    "BM25",
    "SEARCHERS",
    "Collection",
    "ExactSearcher",
    "HNSWSearcher",
    "IVFSearcher",
    "Searcher",
    "approximate_search",
    "as_run",
    "check_device",
    "exact_search",
    "pair_scores",
    "unmatched_warning",
]

SEARCHERS: dict[str, Callable[..., Searcher]] = {
    "bm25": BM25.build,
    "exact": ExactSearcher,
    "hnsw": HNSWSearcher,
    "ivf": IVFSearcher,
}
"""Constructors by name; each takes the collection."""
