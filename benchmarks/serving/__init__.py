"""Benchmarks of servers of a model, and of clients of an endpoint."""
