"""The launch on Dataflow: `python -m pipelines.launch --help`."""
