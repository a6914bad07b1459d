"""Find rows with values that a table cannot hold, before anything is written.

A load job fails as a whole if one value does not fit, and BigQuery then names neither the row nor
the column. In a batch run such a row becomes a dead letter with its source columns, so that it can
be replayed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.cells import decoded, is_list
from common.record_batch import SOURCE
from transforms.dead_letters import Fault, failed_rows
from transforms.provenance import Provenance, utc_now
from transforms.split import Split, split_outputs

# BigQuery's dates and times lie in the years 1 to 9999. In days since 1970; the end is exclusive.
_FIRST_DAY, _END_DAY = -719_162, 2_932_897
_A_DAY = {"D": 1, "s": 86_400, "ms": 86_400_000, "us": 86_400_000_000}
_LARGEST = (1 << 63) - 1


def unfit_values(column: pa.Array) -> np.ndarray | None:
    """Return which rows have a value that BigQuery cannot hold.

    Such a value is a time that is finer than a microsecond or outside the years 1 to 9999, or an
    integer beyond INT64.

    Args:
        column: A column of any type; the values may be nested in lists and structs.

    Returns:
        bool [rows], or None if the column has no times and no uint64.
    """
    kind = column.type
    if pa.types.is_dictionary(kind) and _is_limited(kind.value_type):
        return unfit_values(decoded(column))
    if is_list(kind):
        return _rows_of(column, unfit_values(column.flatten()))
    if pa.types.is_struct(kind):
        return _any(map(unfit_values, column.flatten()))
    return _unfit(column) if _is_limited(kind) else None


def null_elements(column: pa.Array) -> np.ndarray | None:
    """Return which rows have a list with a null element, which no REPEATED column holds.

    A list that is itself null is fine: BigQuery stores it as an empty one.

    Args:
        column: A column of any type; the lists may be nested in lists and structs.

    Returns:
        bool [rows], or None if the column has no such list.
    """
    if is_list(column.type):
        inner = column.flatten()
        nulls = np.asarray(inner.is_null()) if inner.null_count else None
        return _rows_of(column, _any([nulls, null_elements(inner)]))
    if pa.types.is_struct(column.type):
        return _any(map(null_elements, column.flatten()))
    return None


def _rows_of(lists: pa.Array, elements: np.ndarray | None) -> np.ndarray | None:
    """Return which lists have one of the marked elements; None if None are given."""
    if elements is None:
        return None
    found = np.zeros(len(lists), bool)
    found[np.asarray(pc.list_parent_indices(lists))[elements]] = True
    return found


def _any(marks: Iterable[np.ndarray | None]) -> np.ndarray | None:
    """Return which rows any of the arrays marks; None if all of them are None."""
    found = [one for one in marks if one is not None]
    return np.logical_or.reduce(found) if found else None


def _is_limited(kind: pa.DataType) -> bool:
    return bool(pa.types.is_temporal(kind) or pa.types.is_uint64(kind))


def _unfit(column: pa.Array) -> np.ndarray:
    kind = column.type
    if pa.types.is_uint64(kind):
        return np.asarray(column.fill_null(0)) > _LARGEST
    numbers = np.asarray(column.view(f"int{kind.bit_width}").fill_null(0))
    unit = "D" if pa.types.is_date32(kind) else getattr(kind, "unit", "ms")
    if unit == "ns":
        return numbers % 1_000 != 0
    day = _A_DAY[unit]
    return (numbers < _FIRST_DAY * day) | (numbers >= _END_DAY * day)


def unfit_rows(columns: Mapping[str, pa.Array], table: str) -> dict[int, Fault]:
    """Return the fault of each row that a table cannot hold, by the row's index, in order.

    Args:
        columns: The columns to write, by name.
        table: The table's name.
    """
    faults: dict[int, Fault] = {}
    for name, column in columns.items():
        for unfit, message in (
            (unfit_values(column), _limits(column.type)),
            (null_elements(column), f"lists without null elements, got a {column.type} with one"),
        ):
            for row in () if unfit is None else np.flatnonzero(unfit).tolist():
                text = f"column {name}: table {table} holds {message}"
                faults.setdefault(row, Fault("refused", text, name))
    return dict(sorted(faults.items()))


def _limits(kind: pa.DataType) -> str:
    """Return which values of a type a table holds, for messages."""
    expected = "integers up to 9,223,372,036,854,775,807"
    if not pa.types.is_uint64(kind):
        expected = f"{expected}, and times of the years 1 to 9999 in whole microseconds"
    return f"{expected}, got another {kind}"


class _RefuseDoFn(beam.DoFn):
    """A DoFn that yields the rows that a table can hold; others go to the output `failures`."""

    def __init__(self, table: str, names: tuple[str, ...], provenance: Provenance) -> None:
        self._table, self._names, self._provenance = table, names, provenance

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
        source = batch.column(SOURCE)
        faults = unfit_rows({name: source.field(name) for name in self._names}, self._table)
        if not faults:
            yield batch
            return
        bad = np.array(list(faults))
        good = np.delete(np.arange(batch.num_rows), bad)
        if len(good):
            yield batch.take(pa.array(good))
        failures = failed_rows(
            batch.take(pa.array(bad)),
            list(faults.values()),
            stage="encode",
            provenance=self._provenance,
            failed_at=utc_now(),
        )
        yield beam.pvalue.TaggedOutput("failures", failures)


@dataclass
class RefuseUnfit(beam.PTransform):
    """A step between prediction and encoding that refuses rows that a table cannot hold.

    Attributes:
        table: The table's name.
        names: The source columns that are written.
        provenance: The run and the model that dead letters name.
    """

    table: str
    names: tuple[str, ...]
    provenance: Provenance

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> Split:
        """Apply one DoFn."""
        return split_outputs(batches, _RefuseDoFn(self.table, self.names, self.provenance))
