"""Retrieval studies: what their runs read, whether arms compare, tables and plots."""
