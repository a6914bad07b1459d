"""Tests of an endpoint: senders of requests, which receive the answers."""
