"""Documents, queries, judgements and training sets, and the files they come in."""
