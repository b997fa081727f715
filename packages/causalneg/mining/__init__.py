"""Hard negatives from the corpus."""
