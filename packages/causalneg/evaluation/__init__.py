"""What a trained encoder finds, and what it scores by."""
