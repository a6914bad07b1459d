"""RunInference over Arrow record batches, with a model in the worker or an endpoint.

RunInference returns the record batches that it gets, with two more columns, `outputs` and `error`
(see common/record_batch.py). It never adds or drops a row.
"""

from __future__ import annotations

import functools
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler

from common.errors import UsageError
from common.measures import MODEL, ROWS
from common.record_batch import BATCH_BYTES, ERROR, ERROR_TYPE, INPUTS, OUTPUTS, flat_values
from model_handlers.manifests.manifest import Manifest, OutputSpec
from model_handlers.preparation import rows_at_once
from model_handlers.trusted_code import TrustedCode
from model_handlers.without_values import without_cells, without_numbers

NAMESPACE = "millrace"
# The key of the precision that a worker has chosen, in the metadata of the column `outputs`.
PRECISION = "precision"
M = TypeVar("M")


class BatchHandler(ModelHandler[pa.RecordBatch, pa.RecordBatch, M], Generic[M]):  # type: ignore[misc]
    """The base class of the ModelHandlers for record batches.

    Args:
        manifest: The manifest of the model.
        outputs: The names of the outputs to return, or None for all.
        batch_rows: The maximum number of rows that Beam gathers for one call of run_inference. If
            steps prepare wide rows, fewer are gathered.
        batch_bytes: The maximum number of bytes of their batches.

    Attributes:
        package: The path of the package, in which workers find the files of its steps, or None.
        code: The modules from which the functions of its steps may be imported.

    Raises:
        UsageError: A limit is less than 1, or the model does not have one of the outputs.
    """

    package: str | None = None
    code: TrustedCode = TrustedCode()

    def __init__(
        self,
        manifest: Manifest,
        outputs: Sequence[str] | None,
        batch_rows: int,
        batch_bytes: int = BATCH_BYTES,
    ) -> None:
        if batch_rows < 1 or batch_bytes < 1:
            raise UsageError(
                f"batch_rows and batch_bytes must be at least 1, got {batch_rows} and {batch_bytes}"
            )
        if manifest.has_steps:
            batch_rows = min(batch_rows, rows_at_once(manifest))
        super().__init__(
            min_batch_size=batch_rows,
            max_batch_size=batch_rows,
            element_size_fn=functools.partial(_share, batch_rows, batch_bytes),
        )
        self.manifest, self.batch_rows, self.batch_bytes = manifest, batch_rows, batch_bytes
        self.outputs = tuple(dict.fromkeys(outputs or [spec.name for spec in manifest.outputs]))
        for name in self.outputs:
            manifest.output(name)
        self._rows_inferred = Metrics.counter(NAMESPACE, "rows_inferred")

    @abstractmethod
    def predict(
        self, model: M, arrays: Sequence[np.ndarray], rows: int
    ) -> tuple[pa.StructArray, pa.StructArray]:
        """Return the columns `outputs` and `error` for validated inputs.

        Args:
            model: The object that load_model returned.
            arrays: One array per input, `[rows, width]`, or `[rows]` for single numbers.
            rows: The number of rows.

        Returns:
            Two columns of `rows` rows. The outputs of a row that has an error are null.
        """

    def answer(
        self, model: M, batches: Sequence[pa.RecordBatch], arrays: Sequence[np.ndarray]
    ) -> tuple[pa.StructArray, pa.StructArray]:
        """Return the columns `outputs` and `error` for validated batches.

        Args:
            model: The object that load_model returned.
            batches: The batches.
            arrays: The inputs of all their rows, one array per input.
        """
        return self.predict(model, arrays, sum(batch.num_rows for batch in batches))

    def outputs_metadata(self, model: M) -> Mapping[str, str] | None:
        """Return what the field of the column `outputs` says about the model; usually nothing."""
        return None

    def run_inference(
        self,
        batch: Sequence[pa.RecordBatch],
        model: M,
        inference_args: dict[str, Any] | None = None,
    ) -> list[pa.RecordBatch]:
        """Return record batches that have `inputs`, in order, with `outputs` and `error` added."""
        if not batch:
            return []
        columns = [part.column(INPUTS) for part in batch]
        arrays = [
            _to_numpy(
                columns[0].field(spec.name)
                if len(columns) == 1
                else pa.concat_arrays([column.field(spec.name) for column in columns])
            )
            for spec in self.manifest.inputs
        ]
        rows = sum(part.num_rows for part in batch)
        with MODEL.timed():
            outputs, error = self.answer(model, batch, arrays)
        ROWS.add(rows)
        self._rows_inferred.inc(rows)
        field = pa.field(OUTPUTS, outputs.type, metadata=self.outputs_metadata(model))
        results, start = [], 0
        for part in batch:
            answer = outputs.slice(start, part.num_rows)
            failed = error.slice(start, part.num_rows)
            results.append(part.append_column(field, answer).append_column(ERROR, failed))
            start += part.num_rows
        return results

    def get_num_bytes(self, batch: Sequence[pa.RecordBatch]) -> int:
        """Return the size of the input tensors in bytes."""
        return sum(part.column(INPUTS).nbytes for part in batch)

    def get_metrics_namespace(self) -> str:
        """Return the namespace of all metrics of this project."""
        return NAMESPACE


def outputs_column(
    specs: Sequence[OutputSpec],
    parts: Sequence[tuple[slice | np.ndarray, list[np.ndarray]]],
    failed: Sequence[int],
    rows: int,
) -> pa.StructArray:
    """Build the column `outputs` from arrays of parts of the rows.

    Args:
        specs: The outputs.
        parts: Row numbers, and one array `[rows, *shape]` per output for these rows. Together the
            parts contain all rows except the failed ones.
        failed: The numbers of the failed rows, whose outputs are null.
        rows: The number of all rows.
    """
    mask = None
    if failed:
        mask = np.zeros(rows, dtype=bool)
        mask[list(failed)] = True
    columns = []
    for i, spec in enumerate(specs):
        if len(parts) == 1 and not failed:
            whole = parts[0][1][i]
        else:
            whole = np.zeros((rows, *spec.shape), dtype=spec.dtype)
            for part, arrays in parts:
                whole[part] = arrays[i]
        columns.append(to_arrow(whole, spec))
    names = [spec.name for spec in specs]
    return pa.StructArray.from_arrays(
        columns, names=names, mask=None if mask is None else pa.array(mask)
    )


def to_arrow(values: np.ndarray, spec: OutputSpec) -> pa.Array:
    """Convert an output's array `[rows, *shape]` to Arrow, without a copy if Arrow allows it."""
    column = pa.array(values.reshape(-1))
    for size in reversed(spec.shape):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


def error_column(
    faults: Mapping[int, tuple[str, str]],
    arrays: Sequence[np.ndarray],
    rows: int,
    cells_of: Callable[[int], Mapping[str, Any]] | None = None,
) -> pa.StructArray:
    """Build the column `error`.

    A message from a model or an endpoint may quote the row, so the row's values are removed.

    Args:
        faults: The reason and the message of each failed row, by row number.
        arrays: The inputs of all rows, one array per input.
        rows: The number of all rows.
        cells_of: A function that returns the raw values of a row, if the model got these.
    """
    if not faults:
        return pa.nulls(rows, ERROR_TYPE)
    values: list[dict[str, str] | None] = [None] * rows
    for row, (reason, message) in faults.items():
        # An HTTP status at the start of a message stays, even if the row contains that number.
        start = 3 if re.match(r"\d{3} [A-Z]", message) else 0
        text = (
            message[start:] if cells_of is None else without_cells(message[start:], cells_of(row))
        )
        text = without_numbers(text, [array[row] for array in arrays])
        values[row] = {"reason": reason, "message": message[:start] + text}
    return pa.array(values, ERROR_TYPE)


def _to_numpy(column: pa.Array) -> np.ndarray:
    """Return the values of an input column as `[rows, width]` or `[rows]`, without a copy."""
    if pa.types.is_fixed_size_list(column.type):
        flat = flat_values(column).to_numpy(zero_copy_only=False)
        return flat.reshape(len(column), column.type.list_size)
    return column.to_numpy(zero_copy_only=False)


def _share(
    batch_rows: int, batch_bytes: int, element: pa.RecordBatch | tuple[Any, pa.RecordBatch]
) -> int:
    """Return how much of a full batch, which is `batch_rows`, an element takes up.

    It is the number of its rows, or more if its share of `batch_bytes` is larger. So elements that
    together are no more than a full batch are within both limits. The result is at most
    `batch_rows`: before a larger element, Beam would pass on an empty batch. The element has a key
    if Beam's KeyedModelHandler wraps the handler.
    """
    batch = element[1] if isinstance(element, tuple) else element
    by_bytes = -(-batch.nbytes * batch_rows // batch_bytes)
    return min(max(batch.num_rows, by_bytes), batch_rows)
