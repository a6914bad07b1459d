"""Deploy model packages to Vertex AI endpoints: `python -m serving deploy --help`."""
