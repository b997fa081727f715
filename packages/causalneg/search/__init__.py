"""Nearest documents of queries."""
