"""CPU seconds of a bundle alone: without building and starting the pipeline, or loading a model.

A module of its own, since classes of the module that is run are pickled with its globals.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import apache_beam as beam

# Of this process, when a bundle began and when it ended; the runner's workers are threads of it.
CPU_SECONDS: list[float] = []


class CpuClock(beam.DoFn):
    """Elements -> the same; notes the CPU seconds when a bundle begins, or when it ends."""

    def __init__(self, *, at_end: bool) -> None:
        self._at_end = at_end

    def start_bundle(self) -> None:
        """Notes the beginning."""
        if not self._at_end:
            CPU_SECONDS.append(time.process_time())

    def process(self, element: Any) -> Iterator[Any]:
        """An element -> the same."""
        yield element

    def finish_bundle(self) -> None:
        """Notes the end."""
        if self._at_end:
            CPU_SECONDS.append(time.process_time())
