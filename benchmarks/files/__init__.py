"""Benchmark from files to files: Millrace, stock Beam and a plain loop."""
