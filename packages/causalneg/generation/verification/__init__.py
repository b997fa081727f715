"""Who checks what was written: heuristics and judges."""
