"""Source columns to input tensors, row by row right or wrong, column by column at speed.

Reasons: `null`, `not_finite`, `wrong_type` (text that is no number, a fraction where
an integer belongs), `wrong_width` (a list of another length). A column that is not
there at all, or of a type that is never a number, is a fault of the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model_handlers.contract import InputSpec, Manifest
from model_handlers.errors import InputError, nearest
from transforms.failures import Fault, Provenance, failed_rows, utc_now
from transforms.record_batch import INPUTS, SOURCE, struct_columns, typed

VECTOR_COLUMN = "features"


def source_columns(manifest: Manifest, available: pa.Schema) -> dict[str, tuple[str, ...]]:
    """A model and a source's columns -> input name -> the columns it is read from.

    An input is read from its named columns, or from one list column that holds the
    whole row: `features` (for a model of one input) or the input's own name.
    Raises InputError, with the nearest names, if neither is there.
    """
    return {spec.name: _columns_of(spec, manifest, available) for spec in manifest.inputs}


def _columns_of(spec: InputSpec, manifest: Manifest, available: pa.Schema) -> tuple[str, ...]:
    missing = [column for column in spec.columns if column not in available.names]
    if not missing:
        for column in spec.columns:
            _check_type(column, available.field(column).type, spec)
        return spec.columns
    vectors = [spec.name] + ([VECTOR_COLUMN] if len(manifest.inputs) == 1 else [])
    for name in vectors:
        if name in available.names and _is_list(available.field(name).type):
            return (name,)
    first = missing[0]
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    raise InputError(
        f"model {manifest.name} needs column {first!r}{more}, which the source lacks"
        f"{nearest(first, available.names)}; the source has {', '.join(available.names[:40])}"
    )


def _check_type(column: str, kind: pa.DataType, spec: InputSpec) -> None:
    if spec.is_list_column != _is_list(kind) or not (_is_list(kind) or _is_number(kind)):
        expected = f"a list of {spec.width} numbers" if spec.is_list_column else "a number"
        raise InputError(
            f"column {column!r}: expected {expected}, got {kind}: convert it in the source, or "
            "leave it out of the model's inputs"
        )


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_floating(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_null(kind)
        or _is_text(kind)
    )


class _Faults:
    """The first fault of each row, in the order in which they are found."""

    def __init__(self) -> None:
        self.by_row: dict[int, Fault] = {}

    def add(self, mask: np.ndarray, reason: str, column: str, message: str) -> None:
        for row in np.flatnonzero(mask).tolist():
            self.by_row.setdefault(row, Fault(reason, f"column {column}: {message}", column))


def validate(
    batch: pa.RecordBatch, manifest: Manifest
) -> tuple[pa.RecordBatch, pa.RecordBatch, list[Fault]]:
    """A source batch -> its good rows with `inputs`, its bad rows, and the bad rows' faults.

    Rows keep their order. Raises InputError if a column is missing or can hold no number.
    """
    columns = struct_columns(batch, SOURCE)
    names = source_columns(manifest, pa.schema([(n, c.type) for n, c in columns.items()]))
    faults = _Faults()
    tensors = []
    for spec in manifest.inputs:
        arrays = [columns[name] for name in names[spec.name]]
        vector = spec.is_list_column or names[spec.name] != spec.columns
        fill = [_imputed(spec, column, manifest) for column in spec.columns]
        build = _from_list if vector else _from_columns
        tensors.append(build(arrays, spec, fill, faults))
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


def _imputed(spec: InputSpec, column: str, manifest: Manifest) -> float | None:
    return manifest.statistics[column].mean if column in spec.impute else None


def _struct(tensors: Sequence[np.ndarray], manifest: Manifest) -> pa.StructArray:
    """Arrays [rows, width] or [rows] by input -> the column `inputs`, without a copy."""
    arrays = []
    for tensor, spec in zip(tensors, manifest.inputs, strict=True):
        flat = pa.array(tensor.reshape(-1))
        arrays.append(pa.FixedSizeListArray.from_arrays(flat, spec.width) if spec.shape else flat)
    return pa.StructArray.from_arrays(arrays, names=[spec.name for spec in manifest.inputs])


def _from_columns(
    arrays: Sequence[pa.Array], spec: InputSpec, fill: Sequence[float | None], faults: _Faults
) -> np.ndarray:
    """One column an element -> [rows, width]; faults go to `faults`."""
    matrix = np.empty((len(arrays[0]), len(arrays)), dtype=_working_dtype(spec, arrays))
    # Beyond float32 a value becomes an infinity, which is then found as one.
    with np.errstate(over="ignore"):
        for i, array in enumerate(arrays):
            if _is_text(array.type):
                matrix[:, i], no_number = _parse_text(array)
                message = f"expected a number, got text{_example(array, no_number)}"
                faults.add(no_number, "wrong_type", spec.columns[i], message)
            else:
                matrix[:, i] = _numbers(array)
    _check_values(matrix, spec, spec.columns, fill, faults, lambda i: _null_mask(arrays[i]))
    return matrix.astype(spec.dtype, copy=False)


def _from_list(
    arrays: Sequence[pa.Array], spec: InputSpec, fill: Sequence[float | None], faults: _Faults
) -> np.ndarray:
    """One list column -> [rows, width]; faults go to `faults`."""
    (array,) = arrays
    lengths = np.asarray(pc.fill_null(pc.list_value_length(array), -1))
    fits = lengths == spec.width
    names = spec.columns
    if len(names) != spec.width:
        names = tuple(f"{names[0]}[{i}]" for i in range(spec.width))
    faults.add(lengths == -1, "null", spec.name, "expected a list, got null")
    for length in np.unique(lengths[~fits & (lengths >= 0)]).tolist():
        message = f"expected {spec.width} values, got {length}"
        faults.add(lengths == length, "wrong_width", spec.name, message)
    values = (array if fits.all() else array.filter(pa.array(fits))).flatten()
    matrix = np.zeros((len(array), spec.width), dtype=_working_dtype(spec, [values]))
    nulls = np.zeros(matrix.shape, dtype=bool)
    with np.errstate(over="ignore"):
        matrix[fits] = _numbers(values).reshape(-1, spec.width)
    nulls[fits] = _null_mask(values).reshape(-1, spec.width)
    _check_values(matrix, spec, names, [*fill, *[None] * spec.width], faults, lambda i: nulls[:, i])
    return matrix.astype(spec.dtype, copy=False)


def _working_dtype(spec: InputSpec, arrays: Sequence[pa.Array]) -> str:
    """What values are gathered in: the tensor's dtype, or float64 where integers may lack."""
    if spec.dtype.startswith("float"):
        return spec.dtype
    whole = all(pa.types.is_integer(a.type) and a.null_count == 0 for a in arrays)
    return "int64" if whole else "float64"


def _numbers(array: pa.Array) -> np.ndarray:
    """A column of any numeric type -> its values, NaN for null."""
    if pa.types.is_decimal(array.type) or pa.types.is_null(array.type):
        array = array.cast(pa.float64())
    elif pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    return array.to_numpy(zero_copy_only=False)


def _null_mask(array: pa.Array) -> np.ndarray:
    return array.is_null().to_numpy(zero_copy_only=False)


def _parse_text(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """A column of text -> its numbers (0 where there is none), and where it is no number.

    An empty text is a null.
    """
    array = pc.utf8_trim_whitespace(array)
    array = pc.if_else(pc.equal(array, ""), None, array)
    try:
        return _numbers(array.cast(pa.float64())), np.zeros(len(array), dtype=bool)
    except pa.ArrowInvalid:
        parsed = [_parse_number(text) for text in array.to_pylist()]
    no_number = np.array([value is None for value in parsed])
    return np.array([0.0 if value is None else value for value in parsed]), no_number


def _parse_number(text: str | None) -> float | None:
    """One text -> its number, NaN for null, None if it is no number."""
    if text is None:
        return float("nan")
    try:
        # float() takes 1_000 as well, which is no number in any data format.
        return None if "_" in text else float(text)
    except ValueError:
        return None


def _example(array: pa.Array, mask: np.ndarray) -> str:
    """The first masked text, shortened, for a message; empty if none is masked."""
    rows = np.flatnonzero(mask)
    return f", for instance {array[int(rows[0])].as_py()[:40]!r}" if len(rows) else ""


def _check_values(
    matrix: np.ndarray,
    spec: InputSpec,
    names: Sequence[str],
    fill: Sequence[float | None],
    faults: _Faults,
    null_mask: Callable[[int], np.ndarray],
) -> None:
    """[rows, width] as gathered -> imputed in place, what is wrong added to `faults`."""
    if matrix.dtype.kind == "f":
        for i, mean in enumerate(fill):
            if mean is not None:
                np.copyto(matrix[:, i], mean, where=np.isnan(matrix[:, i]))
        finite = np.isfinite(matrix)
        if not finite.all():
            for i in np.flatnonzero(~finite.all(axis=0)).tolist():
                nulls = null_mask(i)
                faults.add(nulls & ~finite[:, i], "null", names[i], "null")
                message = f"NaN or infinity, or beyond {spec.dtype}"
                faults.add(~nulls & ~finite[:, i], "not_finite", names[i], message)
            # What a cast of these would give is undefined; the rows are dropped anyway.
            matrix[~finite] = 0
    if not spec.dtype.startswith("float"):
        _check_integers(matrix, spec, names, faults)


def _check_integers(
    matrix: np.ndarray, spec: InputSpec, names: Sequence[str], faults: _Faults
) -> None:
    """[rows, width] of numbers for an integer tensor -> what does not fit added to `faults`."""
    low, high = (
        (0, 1) if spec.dtype == "bool" else (np.iinfo(spec.dtype).min, np.iinfo(spec.dtype).max)
    )
    fits = (matrix >= low) & (matrix <= high) & (matrix == np.trunc(matrix))
    for i in np.flatnonzero(~fits.all(axis=0)).tolist():
        message = f"expected {spec.dtype}, an integer from {low} to {high}"
        faults.add(~fits[:, i], "wrong_type", names[i], message)
    matrix[~fits] = 0


@beam.typehints.with_input_types(pa.RecordBatch)
class _ValidateDoFn(beam.DoFn):
    """Source batches -> validated batches; bad rows go to the output `failures`."""

    def __init__(self, manifest: Manifest, provenance: Provenance) -> None:
        self._manifest = manifest
        self._provenance = provenance

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
        good, bad, faults = validate(batch, self._manifest)
        if good.num_rows:
            yield good
        if faults:
            failures = failed_rows(
                bad, faults, stage="validate", provenance=self._provenance, failed_at=utc_now()
            )
            yield beam.pvalue.TaggedOutput("failures", failures)


class Validated(NamedTuple):
    """What ValidateFeatures returns: batches with `inputs`, and failure records."""

    good: beam.PCollection[pa.RecordBatch]
    failures: beam.PCollection[pa.RecordBatch]


@dataclass
class ValidateFeatures(beam.PTransform):
    """Source batches -> batches whose `inputs` fit the model, and failure records."""

    manifest: Manifest
    provenance: Provenance

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> Validated:
        """Wires one DoFn with two outputs."""
        outputs = batches | beam.ParDo(_ValidateDoFn(self.manifest, self.provenance)).with_outputs(
            "failures", main="good"
        )
        return Validated(typed(outputs.good), typed(outputs.failures))
