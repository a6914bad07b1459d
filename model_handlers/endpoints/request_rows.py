"""The rows of a request to an endpoint: tensors, or raw columns that the server prepares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from common.cells import is_list
from common.json_objects import json_objects
from common.record_batch import SOURCE, struct_columns
from model_handlers.endpoints.codec import EndpointCodec, tensor_columns
from model_handlers.endpoints.prediction_cache import row_keys
from model_handlers.manifests.manifest import Manifest
from model_handlers.steps.values import read_column

# Services that read JSON numbers as floats, such as Vertex AI, round larger integers.
_EXACT = 1 << 53


class EndpointRows(Protocol):
    """Rows that can be sent to an endpoint."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def instances(self, rows: slice | np.ndarray) -> bytes:
        """Return the JSON list of some of the rows."""

    def keys(self) -> list[bytes]:
        """Return a key of each row, which is the same for equal rows."""

    def take(self, rows: np.ndarray) -> EndpointRows:
        """Return some of the rows."""


@dataclass(frozen=True)
class TensorRows:
    """Rows as tensors.

    Attributes:
        arrays: One array per input, `[rows, width]` or `[rows]`.
    """

    codec: EndpointCodec
    arrays: Sequence[np.ndarray]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.arrays[0])

    def instances(self, rows: slice | np.ndarray) -> bytes:
        """Return the JSON list of some of the rows."""
        return self.codec.instances(self.arrays, rows)

    def keys(self) -> list[bytes]:
        """Return the bytes of the inputs of each row."""
        return row_keys(self.arrays)

    def take(self, rows: np.ndarray) -> TensorRows:
        """Return some of the rows."""
        return TensorRows(self.codec, [array[rows] for array in self.arrays])


@dataclass(frozen=True)
class RawRows:
    """Rows as JSON objects with the columns that a manifest declares.

    Attributes:
        texts: The JSON text of each row.
    """

    texts: Sequence[bytes]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.texts)

    def instances(self, rows: slice | np.ndarray) -> bytes:
        """Return the JSON list of some of the rows."""
        some = self.texts[rows] if isinstance(rows, slice) else self.take(rows).texts
        return b"[%b]" % b",".join(some)

    def keys(self) -> list[bytes]:
        """Return the text of each row."""
        return list(self.texts)

    def take(self, rows: np.ndarray) -> RawRows:
        """Return some of the rows."""
        return RawRows([self.texts[row] for row in rows.tolist()])

    def cells(self, row: int) -> Mapping[str, object]:
        """Return the values of a row, by column."""
        found: Mapping[str, object] = orjson.loads(self.texts[row])
        return found


def raw_rows(
    batches: Sequence[pa.RecordBatch], arrays: Sequence[np.ndarray], manifest: Manifest
) -> RawRows:
    """Return validated rows with their raw columns.

    The columns that the manifest declares are sent as values of their raw types, in which any
    source gives the same text. Inputs without steps are sent as the numbers that they are.

    Args:
        batches: Batches with the column `source`.
        arrays: The inputs of all rows, one array per input.
        manifest: The manifest of the model.
    """
    texts, start = [], 0
    for batch in batches:
        source = struct_columns(batch, SOURCE)
        columns = {
            name: _exact(read_column(source[name], raw).values)
            for name, raw in manifest.columns.items()
        }
        rows = slice(start, start + batch.num_rows)
        for array, spec in zip(arrays, manifest.inputs, strict=True):
            if not spec.chains:
                columns |= {n: _arrow(part) for n, part in tensor_columns(array[rows], spec)}
        texts.append(json_objects(pa.record_batch(columns), nulls=True))
        start = rows.stop
    return RawRows(list(chain.from_iterable(texts)))


def _exact(column: pa.Array) -> pa.Array:
    """Return a column whose numbers are text if JSON or a service could not keep all of them."""
    numbers = column.flatten() if is_list(column.type) else column
    if pa.types.is_floating(numbers.type):
        kept = pc.all(pc.is_finite(numbers)).as_py()
    elif pa.types.is_integer(numbers.type):
        ends = pc.min_max(numbers).values()
        kept = all(-_EXACT <= end <= _EXACT for end in (e.as_py() for e in ends) if end is not None)
    else:
        return column
    if kept is not False:
        return column
    return column.cast(pa.list_(pa.string()) if is_list(column.type) else pa.string())


def _arrow(array: np.ndarray) -> pa.Array:
    """Return an array [rows] or [rows, width] as a column."""
    if array.ndim == 1:
        return pa.array(array)
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])
