"""The pipelines and the commands that start them; see `python -m pipelines.batch_local --help`."""
