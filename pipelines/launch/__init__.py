"""Start and follow Dataflow jobs: see `python -m pipelines.launch --help`."""
