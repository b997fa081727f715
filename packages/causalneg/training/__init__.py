"""From a config to a trained encoder."""
