"""Writing negatives: who writes them, in whose voice, and who checks them."""
