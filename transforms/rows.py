"""Turn the rows of your own pipeline into record batches, and back.

Use these transforms to score a PCollection of dicts, Beam Rows or named tuples with `Predict`.
Transforms that read files or tables return record batches already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.utils.windowed_value import WindowedValue

from common.plain_json import to_json
from common.record_batch import to_rows
from model_handlers.manifests.manifest import Manifest
from transforms.dead_letters import Fault
from transforms.json_rows.decode import Decoded, decode_rows, emit
from transforms.json_rows.row_format import RowFormat
from transforms.provenance import Provenance
from transforms.row_ids import content_id
from transforms.split import Split, split_outputs


def plain_row(row: Any) -> Any:
    """Turn a dict, Beam Row or named tuple into a dict of plain Python values.

    NumPy scalars become numbers. Arrays and tuples become lists; arrays with several dimensions
    are flattened in C order. Any other value is returned unchanged.
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
    """Decode dicts, Beam Rows or named tuples; their payloads are their JSON.

    Args:
        rows: The rows.
        row_format: The columns to read. A row without an id gets one derived from its payload.

    Returns:
        The decoded rows and the faults, in the order of the rows.
    """
    values: list[Any] = []
    payloads: list[bytes] = []
    for row in map(plain_row, rows):
        try:
            payloads.append(to_json(row))
            values.append(row)
        except (TypeError, RecursionError) as error:
            payloads.append(b"")
            values.append(Fault("invalid_json", f"the row cannot be written as JSON: {error}"))
    return decode_rows(values, payloads, [content_id(p) for p in payloads], row_format)


class _BatchDoFn(beam.DoFn):
    """A DoFn that collects rows into source batches; bad rows go to the output `failures`.

    A batch holds rows of one bundle and one window.
    """

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
    """A transform from dicts, Beam Rows or named tuples to source batches, and dead letters.

    The source batches are the input of `Predict`.

    Attributes:
        manifest: The manifest of the model.
        id_column: The column that holds the row id. By default the id is derived from the
            content of the row, so equal rows have equal ids.
        keep: Additional columns to pass through, as strings.
        batch_rows: The maximum number of rows in a batch. A batch holds rows of one bundle and
            one window.
        provenance: The run and the model that dead letters name. By default the run and the
            pipeline are `unnamed`.
    """

    manifest: Manifest
    _: KW_ONLY
    id_column: str | None = None
    keep: tuple[str, ...] = ()
    batch_rows: int = 32_768
    provenance: Provenance | None = None

    def expand(self, rows: beam.PCollection[Any]) -> Split:
        """Apply one DoFn."""
        row_format = RowFormat(self.manifest, self.id_column, tuple(self.keep))
        provenance = self.provenance or Provenance.of(self.manifest)
        return split_outputs(rows, _BatchDoFn(row_format, self.batch_rows, provenance))


@dataclass
class RecordBatchesToRows(beam.PTransform):
    """A transform from record batches (predictions, dead letters or others) to one dict per row."""

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[dict[str, Any]]:
        """Apply one FlatMap."""
        return batches | beam.FlatMap(to_rows).with_output_types(dict[str, Any])
