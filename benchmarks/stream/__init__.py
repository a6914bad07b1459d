"""Benchmarks of streams: cost, latency, memory, and malformed messages."""
