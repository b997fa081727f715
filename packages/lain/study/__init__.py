"""Click-through studies: comparison of arms and their report."""
