"""Schemas of public logs, one YAML file each."""
