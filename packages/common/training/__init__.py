"""Training: fit, checkpoints, tracking, records, and the one lifecycle of a run."""
