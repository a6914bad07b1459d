"""Compares ways to score raw rows: Millrace, stock Beam, a pandas loop and Daft."""
