"""Streams: cost, latency, memory, malformed messages."""
