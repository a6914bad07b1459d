"""Streams: score messages as they arrive, and write the rows."""
