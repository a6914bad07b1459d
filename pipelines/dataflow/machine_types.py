"""The vCPUs and the memory of Compute Engine's machine types, from their names."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

# The experiment with which a Dataflow worker runs one process with threads, instead of a process
# for each vCPU.
ONE_PROCESS = "no_use_multiple_sdk_containers"
# The memory of a vCPU in GiB, and the numbers of vCPUs. Source: "General-purpose machine family"
# and "GPU machine types" of Compute Engine's documentation.
_SMALL = (2, 4, 8, 16, 32, 48, 64, 80)
_FAMILIES: dict[str, tuple[float, tuple[int, ...]]] = {
    "n1-standard": (3.75, (1, 2, 4, 8, 16, 32, 64, 96)),
    "n1-highmem": (6.5, (2, 4, 8, 16, 32, 64, 96)),
    "n1-highcpu": (0.9, (2, 4, 8, 16, 32, 64, 96)),
    "n2-standard": (4, (*_SMALL, 96, 128)),
    "n2-highmem": (8, (*_SMALL, 96)),
    "n2-highcpu": (1, (*_SMALL, 96)),
    "n2d-standard": (4, (*_SMALL, 96, 128, 224)),
    "n2d-highmem": (8, (*_SMALL, 96)),
    "n2d-highcpu": (1, (*_SMALL, 96, 128, 224)),
    "e2-standard": (4, (2, 4, 8, 16, 32)),
    "e2-highmem": (8, (2, 4, 8, 16)),
    "e2-highcpu": (1, (2, 4, 8, 16, 32)),
    "c2-standard": (4, (4, 8, 16, 30, 60)),
    "g2-standard": (4, (4, 8, 12, 16, 24, 32, 48, 96)),
}
# The family with the same processors and more memory for a vCPU.
_ROOMIER = {"standard": "highmem", "highcpu": "standard"}


class MachineType(NamedTuple):
    """A machine type.

    Attributes:
        memory: The memory in bytes.
    """

    name: str
    vcpus: int
    memory: int


def machine_type(name: str) -> MachineType | None:
    """Return a machine type by its name, such as `n1-standard-4`; None if it is not known."""
    custom = re.fullmatch(r"(?:\w+-)?custom-(\d+)-(\d+)(?:-ext)?", name)
    if custom:
        return MachineType(name, int(custom[1]), int(custom[2]) << 20)
    family, _, count = name.rpartition("-")
    ratio, sizes = _FAMILIES.get(family, (0, ()))
    if not count.isdecimal() or int(count) not in sizes:
        return None
    return MachineType(name, int(count), math.floor(int(count) * ratio * (1 << 30)))


def larger_types(machine: MachineType) -> list[MachineType]:
    """Return the machine types to try next: more memory for a vCPU first, then more vCPUs.

    Args:
        machine: The machine type that is too small.
    """
    family = machine.name.rpartition("-")[0]
    series, _, kind = family.partition("-")
    families = [family]
    while (kind := _ROOMIER.get(kind, "")) and f"{series}-{kind}" in _FAMILIES:
        families.append(f"{series}-{kind}")
    found = [
        made
        for name in families
        if name in _FAMILIES
        for size in _FAMILIES[name][1]
        if (made := machine_type(f"{name}-{size}")) and made.memory > machine.memory
    ]
    return sorted(found, key=lambda made: (made.memory, made.vcpus))
