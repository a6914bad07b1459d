"""Replays: `python -m pipelines.replay --help`."""
