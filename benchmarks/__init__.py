"""Benchmarks of Millrace. Their results are in the folder `results`."""
