"""What is minimised: InfoNCE, and terms beside it; a term is a file, and a line in TERMS.

Pure functions on embeddings, and a :class:`Term` for each that a config can name.
"""

from causalneg.losses.entropy import EntropyTerm, query_view_entropy
from causalneg.losses.info_nce import Candidates, info_nce
from causalneg.losses.matching import MatchingTerm, distribution_matching, easy_negatives, hardness_gap
from causalneg.losses.matryoshka import MatryoshkaTerm
from causalneg.losses.similarity import Gradient, own_similarity
from causalneg.losses.teacher import KLTerm, MarginMSETerm, margin_mse, teacher_kl
from causalneg.losses.term import EmbeddedBatch, Term
from common.config import Registry

__all__ = [
    "TERMS",
    "Candidates",
    "EmbeddedBatch",
    "Gradient",
    "Term",
    "distribution_matching",
    "easy_negatives",
    "hardness_gap",
    "info_nce",
    "margin_mse",
    "own_similarity",
    "query_view_entropy",
    "teacher_kl",
]

TERMS: Registry[Term] = Registry("loss term")
"""Terms that a config can name under ``loss.terms``."""

TERMS.add("entropy", EntropyTerm)
TERMS.add("matching", MatchingTerm)
TERMS.add("kl", KLTerm)
TERMS.add("margin-mse", MarginMSETerm)
TERMS.add("matryoshka", MatryoshkaTerm)
