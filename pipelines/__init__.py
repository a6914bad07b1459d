"""The pipelines: `python -m pipelines.batch_local --help`."""
