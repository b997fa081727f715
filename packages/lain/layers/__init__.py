"""Layers that every backbone shares."""
