"""Serving: texts to vectors on disk, indexes over them, search, and a small HTTP service."""
