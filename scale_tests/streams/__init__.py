"""Tests of a stream: senders of messages, and collectors of results."""
