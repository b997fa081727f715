"""Metrics of both fields, as small functions of arrays."""
