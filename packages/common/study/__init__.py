"""Studies: plan a matrix of runs, execute it, collect one tidy frame, compare the arms, report."""
