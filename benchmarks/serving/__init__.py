"""Servers of a model, and clients of an endpoint."""
