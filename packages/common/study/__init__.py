"""Studies: plan, execute, collect."""
