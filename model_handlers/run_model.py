"""Run a model over any number of rows, and find the rows on which it fails."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from model_handlers.batch_handler import to_arrow
from model_handlers.isolate import isolate
from model_handlers.loaded_model import ROW_FAULTS, LoadedModel
from model_handlers.manifests.manifest import OutputSpec
from model_handlers.preparation import Preparation
from model_handlers.steps.step import Refused


@dataclass
class Answer:
    """The answer of a model to some rows.

    Attributes:
        arrays: One array `[rows, *shape]` per output, with zeros for failed rows. Empty if every
            row failed.
        faults: The exception of each failed row, by row number. It is NotTried if most rows of a
            batch failed and this row was not tried on its own.
        fields: The column of each field that was computed, by name.
        refused: The rows whose fields cannot be computed; the column of each refusal is the field.
    """

    arrays: list[np.ndarray]
    faults: dict[int, Exception]
    fields: Mapping[str, pa.Array] = dataclasses.field(default_factory=dict)
    refused: Sequence[Refused] = ()

    def part(self, rows: slice) -> Answer:
        """Return the answer for a range of the rows."""
        faults = {i - rows.start: e for i, e in self.faults.items() if rows.start <= i < rows.stop}
        count = rows.stop - rows.start
        return Answer(
            [array[rows] for array in self.arrays],
            faults,
            {name: column.slice(rows.start, count) for name, column in self.fields.items()},
            [some.part(rows) for some in self.refused],
        )

    def with_fields(
        self, outputs: Sequence[OutputSpec], preparation: Preparation, names: Collection[str]
    ) -> Answer:
        """Return the answer with fields.

        Args:
            outputs: The output of each array.
            preparation: The steps of the manifest.
            names: The fields to compute, as `Manifest.fields_for` returns them.
        """
        pairs = zip(outputs, self.arrays, strict=bool(self.arrays))
        columns = {spec.name: to_arrow(array, spec) for spec, array in pairs}
        fields, refused = preparation.derive(columns, names)
        return dataclasses.replace(self, fields=fields, refused=refused)


def run_model(
    model: LoadedModel, inputs: Sequence[np.ndarray], rows: int, *, to_the_end: bool = False
) -> Answer:
    """Run a model over rows, in passes of at most `model.batch_rows`.

    Args:
        model: The model.
        inputs: One array per input, `[rows, width]` or `[rows]`, already validated.
        rows: The number of rows, 1 or more.
        to_the_end: Whether to try every failing row alone, even if most rows fail.

    Returns:
        The outputs, and the exceptions of the rows on which the model raised.

    Raises:
        ContractBroken: The model does not do what its manifest says.
        DeviceError: The accelerator failed.
        MemoryError: There is not enough memory for a single row.
    """
    arrays: list[np.ndarray] = []
    faults: dict[int, Exception] = {}
    start = 0
    while start < rows:
        # batch_rows is read in each round, because running out of memory lowers it.
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
