"""Benchmarks: programs that measure, their results committed beside them."""
