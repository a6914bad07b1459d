"""The version of Millrace, from the checkout that it is imported from or the installed package."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

NAME = "millrace"


def find_version(folder: Path) -> str:
    """Return the version of Millrace in a folder, the one that contains its packages."""
    # In a checkout this file is right, whichever version is installed.
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    except (OSError, ValueError, KeyError):
        project = {}
    if project.get("name") == NAME:
        return str(project["version"])
    return importlib.metadata.version(NAME)


__version__ = find_version(Path(__file__).parent.parent)
