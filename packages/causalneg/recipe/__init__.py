"""From a data set, or from documents alone, to a trained encoder beside BM25: every step in one command."""
