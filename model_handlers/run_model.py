"""A model over any number of rows: in passes, with the rows that it cannot take set apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model_handlers.isolate import isolate
from model_handlers.loaded_model import ROW_FAULTS, LoadedModel


@dataclass
class Answer:
    """One array an output, [rows, ...], and the rows on which the model raised.

    There are no arrays where it raised on every row; else a failed row is zero in each. A fault
    is NotTried where most rows of a batch failed, and this one was not tried alone.
    """

    arrays: list[np.ndarray]
    faults: dict[int, Exception]

    def part(self, rows: slice) -> Answer:
        """A range of rows -> the answer for these alone."""
        faults = {i - rows.start: e for i, e in self.faults.items() if rows.start <= i < rows.stop}
        return Answer([array[rows] for array in self.arrays], faults)


def run_model(
    model: LoadedModel, inputs: Sequence[np.ndarray], rows: int, *, to_the_end: bool = False
) -> Answer:
    """A model and checked input arrays of one or more rows -> the Answer.

    to_the_end: every row that fails is found alone, however many there are.
    A fault of the machine is raised, as DeviceError, MemoryError or ContractBroken.
    """
    arrays: list[np.ndarray] = []
    faults: dict[int, Exception] = {}
    start = 0
    while start < rows:
        # Read anew each time: running out of memory lowers it.
        window = slice(start, min(start + model.batch_rows, rows))
        for part, result in isolate(
            lambda s: model.forward(inputs, s), window, ROW_FAULTS, to_the_end=to_the_end
        ):
            if isinstance(result, Exception):
                faults |= dict.fromkeys(range(part.start, part.stop), result)
                continue
            if part == slice(0, rows):
                return Answer(result, {})
            arrays = arrays or [np.zeros((rows, *a.shape[1:]), a.dtype) for a in result]
            for whole, piece in zip(arrays, result, strict=True):
                whole[part] = piece
        start = window.stop
    return Answer(arrays, faults)
