"""JSON rows to columns: messages, lines of a file, or dicts of a user's own pipeline.

Both message forms are read: named features (`{"Time": 0.0, "V1": ..}`) and, for a
model of one input, a list (`{"features": [..]}`). Reasons: `invalid_json`,
`not_an_object`, `missing_feature`, `wrong_type`; a list of another length and nulls
are left to validation. A row without its id is still a row: it gets the derived one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

import orjson
import pyarrow as pa

from model_handlers.contract import Manifest
from transforms.failures import Fault
from transforms.record_batch import PAYLOAD, ROW_ID, SOURCE
from transforms.validate import VECTOR_COLUMN


@dataclass(frozen=True)
class RowFormat:
    """What is read from a JSON row.

    features: columns of all inputs, in order; vector: whether one list may hold them.
    id_column: the row's own id, None to derive one. keep: further columns, as text.
    """

    features: tuple[str, ...]
    vector: bool
    id_column: str | None = None
    keep: tuple[str, ...] = ()

    @classmethod
    def of(cls, manifest: Manifest, id_column: str | None, keep: Sequence[str] = ()) -> RowFormat:
        """A model's manifest, the id's column and further columns -> RowFormat."""
        plain = len(manifest.inputs) == 1 and not manifest.inputs[0].is_list_column
        return cls(manifest.features, plain, id_column, tuple(keep))


@dataclass
class Decoded:
    """Rows that could be read, as a source batch, and the ones that could not."""

    batch: pa.RecordBatch | None
    failed_ids: list[str | None]
    failed_payloads: list[bytes]
    faults: list[Fault]


def decode_json(
    messages: Sequence[bytes], ids: Sequence[str] | None, row_format: RowFormat
) -> Decoded:
    """JSON messages and their derived ids -> Decoded, rows in order.

    ids: used where the format has no id_column and for rows that cannot be read;
        None derives them from the messages' bytes.
    """
    derived = ids if ids is not None else [content_id(message) for message in messages]
    rows: list[Any] = []
    for message in messages:
        try:
            rows.append(orjson.loads(message))
        except orjson.JSONDecodeError as error:
            rows.append(Fault("invalid_json", f"not JSON: {error}"))
    return decode_rows(rows, messages, derived, row_format)


def content_id(message: bytes) -> str:
    """A message -> an id derived from its bytes: the same each time, equal for equal messages."""
    return hashlib.blake2b(message, digest_size=16).hexdigest()


def decode_rows(
    rows: Sequence[Any], payloads: Sequence[bytes], ids: Sequence[str], row_format: RowFormat
) -> Decoded:
    """Decoded JSON values (or a Fault each), their bytes and derived ids -> Decoded."""
    read = _read_rows(rows, row_format)
    good = [i for i, row in enumerate(read) if not isinstance(row, Fault)]
    bad = [i for i, row in enumerate(read) if isinstance(row, Fault)]
    batch = None
    if good:
        kept = [rows[i] for i in good]
        values = [read[i] for i in good]
        batch = _to_batch(
            kept, values, [payloads[i] for i in good], [ids[i] for i in good], row_format
        )
    return Decoded(batch, [ids[i] for i in bad], [payloads[i] for i in bad], [read[i] for i in bad])


def _read_rows(rows: Sequence[Any], row_format: RowFormat) -> list[Any]:
    """Decoded rows -> the features of each (a sequence of numbers or nulls), or a Fault."""
    if len(row_format.features) > 1:
        fast = _read_fast(rows, row_format)
        if fast is not None:
            return fast
    return [_read_row(row, row_format) for row in rows]


def _read_fast(rows: Sequence[Any], row_format: RowFormat) -> list[Any] | None:
    """As _read_rows, where every row names every feature and all are floats; else None."""
    try:
        values = list(map(itemgetter(*row_format.features), rows))
    except (KeyError, TypeError):
        return None
    types = set(map(type, chain.from_iterable(values)))
    return values if types <= {float, int} else None


def _read_row(row: Any, row_format: RowFormat) -> Any:
    """One decoded row -> its features, or the Fault that it has."""
    if isinstance(row, Fault):
        return row
    if not isinstance(row, Mapping):
        return Fault("not_an_object", f"expected a JSON object, got {type(row).__name__}")
    if row_format.vector and VECTOR_COLUMN in row:
        return _read_vector(row[VECTOR_COLUMN])
    values = []
    for name in row_format.features:
        if name not in row:
            return Fault("missing_feature", f"column {name}: missing", name)
        value = row[name]
        if not _is_value(value):
            return _wrong_type(name, value)
        values.append(value)
    return values


def _read_vector(value: Any) -> Any:
    if value is None:
        return Fault("null", f"column {VECTOR_COLUMN}: expected a list, got null", VECTOR_COLUMN)
    if not isinstance(value, (list, tuple)):
        return _wrong_type(VECTOR_COLUMN, value)
    for i, item in enumerate(value):
        if not _is_value(item) or isinstance(item, list):
            return _wrong_type(f"{VECTOR_COLUMN}[{i}]", item)
    return value


def _is_value(value: Any) -> bool:
    """Whether validation can judge a value: a number, a null, or a list of such."""
    if isinstance(value, list):
        return all(_is_value(item) and not isinstance(item, list) for item in value)
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _wrong_type(column: str, value: Any) -> Fault:
    shown = str(value)[:40]
    message = f"column {column}: expected a number, got {type(value).__name__} {shown!r}"
    return Fault("wrong_type", message, column)


def _to_batch(
    rows: Sequence[Mapping[str, Any]],
    values: Sequence[Sequence[Any]],
    payloads: Sequence[bytes],
    ids: Sequence[str],
    row_format: RowFormat,
) -> pa.RecordBatch:
    """Readable rows and their features -> a source batch."""
    columns: dict[str, pa.Array] = {}
    if row_format.vector:
        columns[VECTOR_COLUMN] = _vector_column(values)
    else:
        for i, name in enumerate(row_format.features):
            columns[name] = _number_column([value[i] for value in values])
    for name in row_format.keep:
        columns[name] = pa.array([_text(row.get(name)) for row in rows], pa.string())
    if row_format.id_column is not None:
        own = [_text(row.get(row_format.id_column)) for row in rows]
        ids = [derived if text is None else text for text, derived in zip(own, ids, strict=True)]
    source = pa.StructArray.from_arrays(list(columns.values()), names=list(columns))
    return pa.record_batch(
        {
            ROW_ID: pa.array(ids, pa.string()),
            SOURCE: source,
            PAYLOAD: pa.array(payloads, pa.binary()),
        }
    )


def _vector_column(values: Sequence[Sequence[Any]]) -> pa.Array:
    """Features of each row -> a list column."""
    flat = _number_column(list(chain.from_iterable(values)))
    offsets = pa.array([0, *_running(values)], pa.int32())
    return pa.ListArray.from_arrays(offsets, flat)


def _running(values: Sequence[Sequence[Any]]) -> list[int]:
    total, ends = 0, []
    for value in values:
        total += len(value)
        ends.append(total)
    return ends


def _number_column(values: Sequence[Any]) -> pa.Array:
    """Numbers and nulls, or lists of them -> float64."""
    if any(isinstance(value, list) for value in values):
        return pa.array(
            [None if v is None else [_as_float(x) for x in v] for v in values],
            pa.list_(pa.float64()),
        )
    try:
        return pa.array(values, pa.float64())
    except (pa.ArrowInvalid, OverflowError):
        # Integers beyond 2**53, which Arrow does not round by itself.
        return pa.array([_as_float(value) for value in values], pa.float64())


def _as_float(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _text(value: Any) -> str | None:
    """A JSON value -> text as it is, anything else as JSON, null as null."""
    return value if value is None or isinstance(value, str) else orjson.dumps(value).decode()
