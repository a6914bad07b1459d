"""Replays, which score dead letters again; see `python -m pipelines.replay --help`."""
