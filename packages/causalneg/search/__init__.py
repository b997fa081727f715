"""Search: the best documents of every query; a search is a file, and a line in SEARCHERS."""

from causalneg.search.approximate import HNSWSearcher, IVFSearcher, approximate_search
from causalneg.search.base import Collection, Searcher, as_run, unmatched_warning
from causalneg.search.bm25 import BM25
from causalneg.search.dense import check_device, pair_scores
from causalneg.search.exact import ExactSearcher, exact_search
from common.config import Component, Registry

__all__ = [
    "BM25",
    "SEARCHERS",
    "Collection",
    "ExactSearcher",
    "HNSWSearcher",
    "IVFSearcher",
    "Search",
    "Searcher",
    "approximate_search",
    "as_run",
    "check_device",
    "exact_search",
    "make_searcher",
    "pair_scores",
    "unmatched_warning",
]

SEARCHERS: Registry[Searcher] = Registry("search", given={"collection"})
"""Searches by name; code passes the collection."""

SEARCHERS.add("bm25", BM25.build)
SEARCHERS.add("exact", ExactSearcher)
SEARCHERS.add("hnsw", HNSWSearcher)
SEARCHERS.add("ivf", IVFSearcher)

Search = str | Component[Searcher]
"""A search by its name, or with settings."""


def make_searcher(search: Search, collection: Collection) -> Searcher:
    """A search over a collection.

    Args:
        search: One of :data:`SEARCHERS`, by name or with settings.
        collection: The documents.
    """
    chosen = SEARCHERS.component(search) if isinstance(search, str) else search
    return SEARCHERS[chosen.name](collection=collection, **chosen.options)
