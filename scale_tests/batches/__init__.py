"""Scoring rows with a batch, and finding each of them in the results."""
