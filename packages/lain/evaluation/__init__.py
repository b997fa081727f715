"""What a trained run predicts, and why."""
