"""Pub/Sub messages: pulled, decoded from JSON, Avro or Arrow, gathered and published."""
