"""Hard negatives from the corpus."""

from causalneg.mining.candidates import Candidates, find_candidates
from causalneg.mining.mine import mine
from causalneg.mining.near_duplicates import Shingles
from causalneg.mining.report import MiningReport
from causalneg.mining.rules import MiningRules

__all__ = ["Candidates", "MiningReport", "MiningRules", "Shingles", "find_candidates", "mine"]
