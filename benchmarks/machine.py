"""Describes the software and the machine of a measurement, without names or paths."""

import importlib.util
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import psutil

PACKAGES = {"torch": "torch", "beam": "apache-beam", "pyarrow": "pyarrow", "numpy": "numpy"}


def versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Return the versions of Python and of the libraries that do the work.

    Args:
        more: Packages that are named too, if they are installed.
    """
    found = {name: metadata.version(package) for name, package in PACKAGES.items()}
    installed = {name: metadata.version(name) for name in more if importlib.util.find_spec(name)}
    return {"python": platform.python_version(), **found, **installed}


def describe_machine() -> dict[str, str | int]:
    """Return the model of the processor, the number of cores and the memory in GB."""
    return {
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count() or 0,
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": platform.system(),
    }


def _cpu_model() -> str:
    """Return the model of the processor that Linux reports, or else the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
