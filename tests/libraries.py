"""Skips tests whose library, an extra of the package, is not installed."""

import importlib.util
import os

import pytest


def need_library(name: str) -> None:
    """Skip the test if a library is not installed, or fail it if CI=true is set."""
    if importlib.util.find_spec(name) is None:
        fails = os.environ.get("CI") == "true"
        (pytest.fail if fails else pytest.skip)(f"{name} is not installed: run make setup")
