"""Serving: a trained run scores candidates of users whose histories it has read once."""
