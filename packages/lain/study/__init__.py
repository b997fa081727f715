"""Click-through studies: their data, tables and plots."""
