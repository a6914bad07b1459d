"""How Beam starts the workers of a run that are processes of their own.

Importing this module changes nothing. tests/test_private_beam.py lists the name and fails if a
release of Beam moves it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from apache_beam.runners.worker import worker_pool_main


@contextmanager
def noted_workers(*, silent: bool) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Yield the list of worker processes that this process starts in the block.

    Args:
        silent: Whether to drop what the workers print on standard error. They print the traceback
            of each failing bundle several times, while the error itself is reported once, at the
            end.
    """
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], **given: Any) -> subprocess.Popen[bytes]:
        stderr = subprocess.DEVNULL if silent else None
        started.append(subprocess.Popen(command, stderr=stderr, **given))
        return started[-1]

    worker_pool_main.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": start})
    try:
        yield started
    finally:
        worker_pool_main.subprocess = subprocess
