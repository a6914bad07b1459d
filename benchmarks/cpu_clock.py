"""Measures the CPU seconds of a bundle, without pipeline construction and model loading.

This is a separate module because Beam pickles classes of the main module together with its globals.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import apache_beam as beam

# CPU seconds of this process at the start and the end of a bundle. Workers are threads in it.
CPU_SECONDS: list[float] = []


class CpuClock(beam.DoFn):
    """Passes elements on, and records the CPU seconds at the start or the end of a bundle."""

    def __init__(self, *, at_end: bool) -> None:
        self._at_end = at_end

    def start_bundle(self) -> None:
        """Record the start."""
        if not self._at_end:
            CPU_SECONDS.append(time.process_time())

    def process(self, element: Any) -> Iterator[Any]:
        """Pass the element on."""
        yield element

    def finish_bundle(self) -> None:
        """Record the end."""
        if self._at_end:
            CPU_SECONDS.append(time.process_time())
