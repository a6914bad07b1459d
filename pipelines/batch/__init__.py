"""Batch runs: files or tables in, scored rows and a report out."""
