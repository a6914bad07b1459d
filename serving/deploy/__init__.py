"""A model package behind an endpoint of Vertex AI: `python -m serving deploy --help`."""
