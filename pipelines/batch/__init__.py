"""Batch runs: they score the rows of files or tables, and write results and a report."""
