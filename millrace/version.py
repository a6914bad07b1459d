"""The version of the package: of the checkout that it is imported from, else as installed."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

NAME = "millrace"


def find_version(folder: Path) -> str:
    """The folder that the packages lie in -> the version of what lies there."""
    # Of a checkout this file is right, whatever was installed before.
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    except (OSError, ValueError, KeyError):
        project = {}
    if project.get("name") == NAME:
        return str(project["version"])
    return importlib.metadata.version(NAME)


__version__ = find_version(Path(__file__).parent.parent)
