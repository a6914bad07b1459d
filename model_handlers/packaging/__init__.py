"""From a model file and a sample to a model package."""
