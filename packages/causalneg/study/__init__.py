"""Retrieval studies: arms and their report."""
