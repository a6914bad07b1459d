"""How Beam starts the workers of a run that are processes of their own.

Importing this module changes nothing. tests/test_private_beam.py lists the name and fails if a
release of Beam moves it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

from apache_beam.runners.worker import worker_pool_main


@contextmanager
def silent_processes() -> Iterator[None]:
    """Drop what worker processes that start in the block print on standard error.

    They print the traceback of each failing bundle several times, while the error itself is
    reported once, at the end.
    """
    quiet = partial(subprocess.Popen, stderr=subprocess.DEVNULL)
    worker_pool_main.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": quiet})
    try:
        yield
    finally:
        worker_pool_main.subprocess = subprocess
