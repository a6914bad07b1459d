"""Turn source columns into input tensors: check each row, but work on whole columns.

A row fails with one of the reasons `null`, `not_finite`, `wrong_type` (a string that is not a
number, or a fraction for an integer) and `wrong_width` (a list of the wrong length). If a column
is missing, or its type cannot hold numbers, the source is at fault and the run fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.cells import (
    INFINITE,
    NAN,
    NULL,
    WRONG,
    decoded,
    is_list,
    limits,
    read_cells,
)
from common.record_batch import INPUTS, SOURCE, flat_values
from model_handlers.manifests.manifest import InputSpec, Manifest
from model_handlers.packaged_steps import PackagedSteps
from model_handlers.preparation import Preparation, rows_at_once
from model_handlers.steps.step import Cells
from transforms.dead_letters import Fault, failed_rows
from transforms.provenance import Provenance, utc_now
from transforms.source_columns import source_columns
from transforms.split import Split, split_outputs

_FLOATS = ({pa.float32()}, {pa.float64()})
# Arrow writes a matrix column by column, each time from its first row to its last. Blocks that stay
# in the cache of a core take half of the time.
_BLOCK_BYTES = 1 << 19


class _Faults:
    """The first fault of each row, in the order in which they are found."""

    def __init__(self) -> None:
        self.by_row: dict[int, Fault] = {}

    def add(self, rows: Iterable[int], reason: str, column: str, message: str) -> None:
        fault = Fault(reason, f"column {column}: {message}", column)
        for row in rows:
            self.by_row.setdefault(row, fault)


def validate(
    batch: pa.RecordBatch,
    manifest: Manifest,
    names: dict[str, tuple[str, ...]] | None = None,
    preparation: Preparation | None = None,
) -> tuple[pa.RecordBatch, pa.RecordBatch, list[Fault]]:
    """Split a source batch into rows that the model accepts and rows that it cannot use.

    Rows keep their order.

    Args:
        batch: A source batch.
        manifest: The manifest of the model.
        names: The result of `source_columns` for the batch; computed if None.
        preparation: The steps of the manifest; loaded if None, which works if they need no files.

    Returns:
        The good rows with the column `inputs`, the bad rows, and the fault of each bad row.

    Raises:
        InputError: A column is missing, or its type cannot hold numbers.
    """
    source = batch.column(SOURCE)
    names = names or source_columns(manifest, pa.schema(list(source.type)))
    faults = _Faults()
    tensors = []
    cells: Mapping[str, Cells] = {}
    if manifest.has_steps:
        preparation = preparation or PackagedSteps(manifest).load()
        cells = preparation.read_columns({n: source.field(n) for n in manifest.columns})
    for spec in manifest.inputs:
        if spec.chains and preparation is not None:
            tensor, refused = preparation.tensor(spec, cells)
            for some in refused:
                faults.add(some.rows.tolist(), some.reason, some.column, some.message)
            tensors.append(tensor)
            continue
        arrays = {name: decoded(source.field(name)) for name in names[spec.name]}
        tensors.append(_tensor(arrays, spec, manifest, faults))
    if not faults.by_row:
        return batch.append_column(INPUTS, _struct(tensors, manifest)), batch.slice(0, 0), []
    bad = np.array(sorted(faults.by_row))
    good = np.delete(np.arange(batch.num_rows), bad)
    kept = batch.take(pa.array(good))
    inputs = _struct([tensor[good] for tensor in tensors], manifest)
    return (
        kept.append_column(INPUTS, inputs),
        batch.take(pa.array(bad)),
        [faults.by_row[row] for row in bad.tolist()],
    )


def _struct(tensors: Sequence[np.ndarray], manifest: Manifest) -> pa.StructArray:
    """Return the column `inputs` of arrays [rows, width], one per input, without a copy."""
    arrays = []
    for tensor, spec in zip(tensors, manifest.inputs, strict=True):
        flat = pa.array(tensor.reshape(-1))
        arrays.append(pa.FixedSizeListArray.from_arrays(flat, spec.width) if spec.shape else flat)
    return pa.StructArray.from_arrays(arrays, names=[spec.name for spec in manifest.inputs])


def _tensor(
    arrays: Mapping[str, pa.Array], spec: InputSpec, manifest: Manifest, faults: _Faults
) -> np.ndarray:
    """Return the imputed tensor [rows, width] of an input's columns; add bad rows to `faults`."""
    state: np.ndarray | None
    column, first = next(iter(arrays.items()))
    if len(arrays) == 1 and is_list(first.type):
        values, state = _from_list(first, column, spec.width, spec, faults)
    else:
        values, state = _from_columns(arrays, spec, faults)
    if state is not None and state.any():
        _impute(values, state, spec, manifest)
        _describe_faults(state, arrays, spec, faults)
    return values


def _from_columns(
    arrays: Mapping[str, pa.Array], spec: InputSpec, faults: _Faults
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read one column per element; return values and states of cells, both [rows, width].

    The cells of a column may be lists of one number. Other lists are added to `faults`. The states
    are None if all cells are FINE.
    """
    if (matrix := _float_matrix(arrays, spec.dtype)) is not None:
        return matrix, None
    values = np.empty((len(next(iter(arrays.values()))), len(arrays)), dtype=spec.dtype)
    state = np.zeros(values.shape, dtype=np.uint8)
    for i, (column, array) in enumerate(arrays.items()):
        if pa.types.is_nested(array.type):
            lists, cells = _from_list(array, column, 1, spec, faults)
            values[:, i : i + 1] = lists
            cells = None if cells is None else cells[:, 0]
        else:
            values[:, i], cells = read_cells(array, spec.dtype)
        if cells is not None:
            state[:, i] = cells
    return values, state


def _float_matrix(arrays: Mapping[str, pa.Array], dtype: str) -> np.ndarray | None:
    """Return columns as an array [rows, width], or None unless all are floats and finite."""
    columns = list(arrays.values())
    types = {column.type for column in columns}
    if types not in _FLOATS or not dtype.startswith("float"):
        return None
    if any(column.null_count for column in columns):
        return None
    batch = pa.RecordBatch.from_arrays(columns, names=list(arrays))
    # A value outside the range of the dtype becomes an infinity.
    with np.errstate(over="ignore"):
        matrix = _row_major(batch, dtype)
    # For small arrays, counting takes a fraction of the time that all() takes.
    return matrix if np.count_nonzero(np.isfinite(matrix)) == matrix.size else None


def _row_major(batch: pa.RecordBatch, dtype: str) -> np.ndarray:
    """Return columns of one type of floats as an array [rows, columns] of a dtype."""
    rows = max(_BLOCK_BYTES // (np.dtype(dtype).itemsize * batch.num_columns), 1)
    if batch.num_rows <= rows:
        return np.asarray(batch.to_tensor(row_major=True).to_numpy(), dtype)
    matrix = np.empty((batch.num_rows, batch.num_columns), dtype)
    for start in range(0, batch.num_rows, rows):
        matrix[start : start + rows] = batch.slice(start, rows).to_tensor(row_major=True).to_numpy()
    return matrix


def _from_list(
    array: pa.Array, column: str, width: int, spec: InputSpec, faults: _Faults
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read one list column; return values and states of cells, the latter None if all are FINE.

    Both are [rows, width]. Null lists and lists of the wrong length are added to `faults`.
    """
    if _is_matrix(array, width, spec):
        numbers, cells = read_cells(flat_values(array), spec.dtype)
        shape = (len(array), width)
        return numbers.reshape(shape), None if cells is None else cells.reshape(shape)
    lengths = np.asarray(pc.fill_null(pc.list_value_length(array), -1))
    fits = lengths == width
    for length in np.unique(lengths[~fits & (lengths >= 0)]).tolist():
        message = f"expected {width} value{'s' * (width > 1)}, got {length}"
        faults.add(_where(lengths == length), "wrong_width", column, message)
    values = np.zeros((len(array), width), dtype=spec.dtype)
    state = np.zeros(values.shape, dtype=np.uint8)
    flat = (array if fits.all() else array.filter(pa.array(fits))).flatten()
    numbers, cells = read_cells(flat, spec.dtype)
    values[fits] = numbers.reshape(-1, width)
    if cells is not None:
        state[fits] = cells.reshape(-1, width)
    if width == 1:
        state[lengths == -1] = NULL
    else:
        faults.add(_where(lengths == -1), "null", column, "expected a list, got null")
    return values, state


def _is_matrix(array: pa.Array, width: int, spec: InputSpec) -> bool:
    """Return whether a list column can be used as the tensor without a copy.

    A column that is imputed has to be copied first.
    """
    whole = pa.types.is_fixed_size_list(array.type) and not array.null_count and not spec.impute
    return bool(whole and array.type.list_size == width)


def _impute(values: np.ndarray, state: np.ndarray, spec: InputSpec, manifest: Manifest) -> None:
    """Replace nulls and NaNs of imputed columns by the training mean, rounded for integers."""
    for i, column in enumerate(spec.columns):
        if column in spec.impute:
            mean = manifest.statistics[column].mean
            lacking = (state[:, i] == NULL) | (state[:, i] == NAN)
            values[lacking, i] = mean if values.dtype.kind == "f" else round(mean)
            state[lacking, i] = 0


def _describe_faults(
    state: np.ndarray, arrays: Mapping[str, pa.Array], spec: InputSpec, faults: _Faults
) -> None:
    """Add the faults that the states of cells [rows, width] describe, column by column."""
    names, kinds = spec.columns, [array.type for array in arrays.values()]
    if len(names) != spec.width:
        names = tuple(f"{column}[{i}]" for column in arrays for i in range(spec.width))
    expected = "a number"
    if not spec.dtype.startswith("float"):
        low, high = limits(spec.dtype)
        expected = f"{spec.dtype}, an integer from {low} to {high}"
    for i in np.flatnonzero(state.any(axis=0)).tolist():
        cells, name = state[:, i], names[i]
        faults.add(_where(cells == NULL), "null", name, "null")
        faults.add(_where(cells == NAN), "not_finite", name, "NaN")
        infinite = f"infinite, or outside the range of {spec.dtype}"
        faults.add(_where(cells == INFINITE), "not_finite", name, infinite)
        kind = kinds[min(i, len(kinds) - 1)]
        kind = kind.value_type if is_list(kind) else kind
        # Messages never contain the value; it is in the payload.
        found = f"{kind} out of range" if pa.types.is_integer(kind) else f"{kind}"
        faults.add(_where(cells == WRONG), "wrong_type", name, f"expected {expected}, got {found}")


def _where(mask: np.ndarray) -> list[int]:
    rows: list[int] = np.flatnonzero(mask).tolist()
    return rows


@beam.typehints.with_input_types(pa.RecordBatch)
class ValidateDoFn(beam.DoFn):
    """A DoFn that validates source batches; bad rows go to the output `failures`."""

    def __init__(self, steps: PackagedSteps, provenance: Provenance) -> None:
        self._manifest, self._steps = steps.manifest, steps
        self._preparation: Preparation | None = None
        self._rows_at_once = rows_at_once(steps.manifest) if steps.manifest.has_steps else None
        self._provenance = provenance
        self._kind: pa.DataType | None = None
        self._names: dict[str, tuple[str, ...]] = {}

    def setup(self) -> None:
        """Load the steps, if there are any."""
        if self._manifest.has_steps:
            self._preparation = self._steps.load()

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
        """Yield the good rows of a batch, and the dead letters of the others."""
        kind = batch.schema.field(SOURCE).type
        # Looking up the columns takes longer than checking a small batch.
        if kind != self._kind:
            self._kind, self._names = kind, source_columns(self._manifest, pa.schema(list(kind)))
        rows = self._rows_at_once or batch.num_rows
        for start in range(0, batch.num_rows, rows):
            yield from self._validate(batch.slice(start, rows))

    def _validate(
        self, batch: pa.RecordBatch
    ) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
        good, bad, faults = validate(batch, self._manifest, self._names, self._preparation)
        if good.num_rows:
            yield good
        if faults:
            failures = failed_rows(
                bad, faults, stage="validate", provenance=self._provenance, failed_at=utc_now()
            )
            yield beam.pvalue.TaggedOutput("failures", failures)


@dataclass
class ValidateFeatures(beam.PTransform):
    """A transform from source batches to batches whose `inputs` fit the model, and dead letters.

    Attributes:
        manifest: The manifest of the model.
        provenance: The run and the model that dead letters name.
        steps: Where workers find the steps of the manifest; None if they need no files.
    """

    manifest: Manifest
    provenance: Provenance
    steps: PackagedSteps | None = None

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> Split:
        """Apply one DoFn."""
        steps = self.steps or PackagedSteps(self.manifest)
        return split_outputs(batches, ValidateDoFn(steps, self.provenance))
