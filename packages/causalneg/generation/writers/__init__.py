"""Writers by name: rules, naive, language models."""

from __future__ import annotations

from causalneg.generation.writers.base import Writer
from common.config import Registry

WRITERS: Registry[Writer] = Registry("writer", given={"corpus", "world", "seed", "backend", "profile"})
"""Who writes negatives. A constructor takes what it needs of: the words and sentences of the corpus, the
world that it is of (None for real text), the seed, the backend of a language model, the profile of the
corpus."""

WRITERS.add("rules", "causalneg.generation.writers.rules:RulesWriter")
WRITERS.add("naive", "causalneg.generation.writers.naive:NaiveWriter")
WRITERS.add("llm", "causalneg.generation.writers.language_model:LLMWriter")
