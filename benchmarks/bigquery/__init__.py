"""Benchmarks of tables: reading, writing, and from table to table."""
