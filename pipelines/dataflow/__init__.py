"""Dataflow jobs: start them, find them, and explain how they went."""
