"""Streams: messages in, scored rows out as they come."""
