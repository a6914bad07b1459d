"""What a Dataflow worker installs; everything else about the project is in pyproject.toml."""

from setuptools import find_packages, setup

PACKAGES = (
    "cloud",
    "common",
    "examples",
    "millrace",
    "model_handlers",
    "pipelines",
    "resources",
    "serving",
    "transforms",
)

setup(packages=find_packages(include=[*PACKAGES, *(f"{name}.*" for name in PACKAGES)]))
