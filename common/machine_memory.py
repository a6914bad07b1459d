"""How much memory this process may use."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

# The limits of a container, for the two versions of control groups. `max` means no limit.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_memory(limits: tuple[str, ...] = _LIMITS) -> int:
    """Return the memory of this machine in bytes, or the limit of its container if it is less.

    Args:
        limits: The files that may hold the limit of the container in bytes.
    """
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in limits:
        with suppress(OSError, ValueError):
            found.append(int(Path(path).read_text()))
    return min(found)
