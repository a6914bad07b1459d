"""Rows of a pipeline of one's own to record batches, and back.

For a PCollection of dicts, Beam Rows or named tuples that is to be scored with
`Predict`; what reads files or tables makes record batches by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.utils.windowed_value import WindowedValue

from common.record_batch import to_rows
from model_handlers.manifest import Manifest
from transforms.dead_letters import Fault
from transforms.json_rows.decode import Decoded, decode_rows, emit
from transforms.json_rows.row_format import RowFormat
from transforms.plain_json import to_json
from transforms.provenance import Provenance
from transforms.row_ids import content_id
from transforms.split import Split, split_outputs


def plain_row(row: Any) -> Any:
    """A dict, Beam Row or named tuple -> a dict of plain Python values; anything else as it is.

    NumPy scalars become numbers; arrays and tuples become lists, of more than one
    dimension row after row (C order).
    """
    if not isinstance(row, Mapping):
        as_dict = getattr(row, "_asdict", None) or getattr(row, "as_dict", None)
        if as_dict is None:
            return row
        row = as_dict()
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    if type(value) in (float, int, bool, str, type(None)):
        return value
    if hasattr(value, "tolist"):
        return (value.reshape(-1) if getattr(value, "ndim", 0) > 1 else value).tolist()
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def batch_rows(rows: Iterable[Any], row_format: RowFormat) -> Decoded:
    """Dicts, Beam Rows or named tuples -> Decoded, in order; a row's payload is its JSON.

    Ids are derived from the payloads where a row has none of its own.
    """
    values: list[Any] = []
    payloads: list[bytes] = []
    for row in map(plain_row, rows):
        try:
            payloads.append(to_json(row))
            values.append(row)
        except (TypeError, RecursionError) as error:
            payloads.append(b"")
            values.append(Fault("invalid_json", f"cannot be written as JSON: {error}"))
    return decode_rows(values, payloads, [content_id(p) for p in payloads], row_format)


class _BatchDoFn(beam.DoFn):
    """Rows -> source batches, a bundle and a window at a time; bad rows to `failures`."""

    def __init__(self, row_format: RowFormat, rows: int, provenance: Provenance) -> None:
        self._format = row_format
        self._rows = rows
        self._provenance = provenance

    def start_bundle(self) -> None:
        self._waiting: dict[Any, list[Any]] = {}

    def process(self, row: Any, window: Any = beam.DoFn.WindowParam) -> Iterator[Any]:
        waiting = self._waiting.setdefault(window, [])
        waiting.append(row)
        if len(waiting) >= self._rows:
            yield from self._outputs(self._waiting.pop(window))

    def finish_bundle(self) -> Iterator[Any]:
        for window, rows in self._waiting.items():
            for output in self._outputs(rows):
                tagged = isinstance(output, beam.pvalue.TaggedOutput)
                batch = output.value if tagged else output
                value = WindowedValue(batch, window.max_timestamp(), [window])
                yield beam.pvalue.TaggedOutput(output.tag, value) if tagged else value

    def _outputs(self, rows: list[Any]) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
        return emit(batch_rows(rows, self._format), self._provenance)


@dataclass
class RowsToRecordBatches(beam.PTransform):
    """Dicts, Beam Rows or named tuples -> source batches for `Predict`, and failure records.

    id_column: the row's own id; by default one derived from the row's content, so
        equal rows have equal ids. keep: further columns to pass on, as text.
    batch_rows: rows of a batch at most; a batch holds rows of one bundle and window.
    provenance: what failure records say of the run; of the manifest alone by default.
    """

    manifest: Manifest
    _: KW_ONLY
    id_column: str | None = None
    keep: tuple[str, ...] = ()
    batch_rows: int = 32_768
    provenance: Provenance | None = None

    def expand(self, rows: beam.PCollection[Any]) -> Split:
        """One DoFn."""
        row_format = RowFormat(self.manifest, self.id_column, tuple(self.keep))
        provenance = self.provenance or Provenance.of(self.manifest)
        return split_outputs(rows, _BatchDoFn(row_format, self.batch_rows, provenance))


@dataclass
class RecordBatchesToRows(beam.PTransform):
    """Record batches, predictions or failure records -> one dict a row."""

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[dict[str, Any]]:
        """One FlatMap."""
        return batches | beam.FlatMap(to_rows).with_output_types(dict[str, Any])
