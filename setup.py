"""What a Dataflow worker installs; everything else about the project is in pyproject.toml."""

from setuptools import setup

setup(packages=["cloud", "model_handlers", "pipelines", "resources", "serving", "transforms"])
