"""The number of rows of a forward pass: it fits into memory, shrinks, and grows again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from common.memory import is_of_memory

# The share of the free memory of a GPU that a pass may use: the copies of another batch and
# fragments of free memory need the rest.
SHARE = 0.8
# The memory of a row is measured from this many rows on, with TIMES as many rows each time, until a
# pass uses ENOUGH of the free memory. In small passes, what kernels use for themselves hides it.
FEW, TIMES, ENOUGH = 8, 8, 1 / 64
# A smaller size is kept for this many full passes before a larger one is tried.
PATIENCE, MOST_PATIENCE = 64, 4096

Arrays = list[np.ndarray]


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that the GPU or the host ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError) or is_of_memory(error):
        return True
    return "ALLOC_FAILED" in str(error)


class PassSize:
    """The maximum number of rows of a forward pass.

    It is halved when memory runs out, and doubled after some full passes without such an error.
    If the larger size fails, it takes twice as many passes until the next attempt.

    Args:
        most: The maximum, to which the size may grow again.

    Attributes:
        rows: The current size, at least 1.
    """

    def __init__(self, most: int) -> None:
        self.rows = self.most = most
        self._patience, self._passed, self._tried = PATIENCE, 0, False

    def limit(self, most: int) -> None:
        """Never again use more rows than this."""
        self.most = max(min(self.most, most), 1)
        self.rows = min(self.rows, self.most)

    def shrink(self, rows: int) -> None:
        """Use at most this many rows, because memory was too short for more."""
        if self._tried:
            self._patience = min(2 * self._patience, MOST_PATIENCE)
        self.rows, self._passed, self._tried = max(min(self.rows, rows), 1), 0, False

    def passed(self, rows: int) -> None:
        """Count a pass of this many rows for which there was enough memory."""
        if rows < self.rows or self.rows >= self.most:
            return
        self._passed += 1
        if self._passed >= self._patience:
            self.rows, self._passed, self._tried = min(2 * self.rows, self.most), 0, True


def in_passes(attempt: Callable[[slice], Arrays | None], rows: slice, size: PassSize) -> Arrays:
    """Run a range of rows, in smaller passes if a pass is too large.

    Args:
        attempt: A function that runs a range. It returns one array per output, or None if the
            range has too many rows, after it has made `size` smaller than that.
        rows: The range.
        size: The size of a pass, which counts the passes.

    Returns:
        One array per output for the range.
    """
    whole = attempt(rows)
    if whole is not None:
        size.passed(rows.stop - rows.start)
        return whole
    parts, start = [], rows.start
    while start < rows.stop:
        # The size may have changed, because a part had to be halved again.
        stop = min(start + size.rows, rows.stop)
        parts.append(in_passes(attempt, slice(start, stop), size))
        start = stop
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def rows_that_fit(peak: Callable[[int], int], free: int, most: int) -> int:
    """Return how many rows of a pass fit into the memory of a device.

    The memory of a pass is a fixed part and a part for each row, because nothing is kept for a
    backward pass.

    Args:
        peak: A function that runs a pass of some rows, and returns how many bytes it used.
        free: The bytes that are free.
        most: The maximum number of rows.

    Returns:
        A number from 1 to `most`.
    """
    rows = min(FEW, most)
    peak(rows)  # The first pass also allocates what later passes share.
    used = peak(rows)
    per_row = used / rows
    # Not even a pass that uses memory for rows alone may use more than is free.
    while rows < most and TIMES * used <= free:
        more = min(TIMES * rows, most)
        higher = peak(more)
        per_row = (higher - used) / (more - rows)
        rows, used = more, higher
        if used >= ENOUGH * free:
            break
    if per_row <= 0:
        return most
    fixed = max(used - rows * per_row, 0)
    return max(min(int((SHARE * free - fixed) / per_row), most), 1)


def gpu_memory(devices: Sequence[torch.device], run: Callable[[], object]) -> tuple[int, int]:
    """Run something on one of several GPUs; return the bytes that it used, and how many are free.

    Args:
        devices: The GPUs.
        run: What runs on one of them.
    """
    for device in devices:
        torch.cuda.reset_peak_memory_stats(device)
    before = [torch.cuda.memory_allocated(device) for device in devices]
    run()
    peaks = [torch.cuda.max_memory_allocated(device) for device in devices]
    return max(p - b for p, b in zip(peaks, before, strict=True)), min(map(_free, devices))


def _free(device: torch.device) -> int:
    """Return the bytes that torch could use: those of the GPU, and those that torch keeps."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept
