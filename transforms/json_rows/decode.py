"""Decode JSON rows into columns: messages, lines of a file, or dicts of a user's own pipeline.

The reasons of faults are listed in transforms/json_rows/values.py and
transforms/json_rows/row_format.py. A row without an id gets the derived one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import pyarrow as pa

from common.record_batch import PAYLOAD, ROW_ID, SOURCE
from transforms.dead_letters import Fault, failure_batch
from transforms.json_rows.row_columns import read_rows
from transforms.json_rows.row_format import RowFormat, own_id, read_plain
from transforms.json_rows.values import read_json_values
from transforms.provenance import Provenance, utc_now
from transforms.row_ids import content_id


@dataclass(kw_only=True)
class Decoded:
    """Rows that could be read, as a source batch, and rows that could not.

    Attributes:
        batch: The rows that could be read, or None if there are none.
        failed_ids: The ids of the other rows.
        failed_payloads: The original content of the other rows.
        faults: Why each of the other rows could not be read.
        good: The positions among all rows of those in `batch`, if the rows have an order.
        bad: The positions among all rows of the others, if the rows have an order.
        span: The part of a file that was read with these rows.
    """

    batch: pa.RecordBatch | None
    failed_ids: list[str]
    failed_payloads: list[bytes]
    faults: list[Fault]
    good: list[int] = field(default_factory=list)
    bad: list[int] = field(default_factory=list)
    span: tuple[int, int] | None = None

    @property
    def rows(self) -> int:
        """The number of all rows, good and bad."""
        return len(self.faults) + (0 if self.batch is None else self.batch.num_rows)


def emit(
    decoded: Decoded, provenance: Provenance
) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
    """Yield what a DoFn emits for decoded rows: their batch, and dead letters for `failures`.

    Args:
        decoded: The rows.
        provenance: The run and the model, for dead letters.
    """
    if decoded.batch is not None and decoded.batch.num_rows:
        yield decoded.batch
    if decoded.faults:
        failures = failure_batch(
            decoded.failed_ids,
            decoded.failed_payloads,
            decoded.faults,
            stage="decode",
            provenance=provenance,
            failed_at=utc_now(),
        )
        yield beam.pvalue.TaggedOutput("failures", failures)


def decode_json(
    messages: Sequence[bytes], ids: Sequence[str] | None, row_format: RowFormat
) -> Decoded:
    """Decode JSON messages, in order.

    Args:
        messages: The messages.
        ids: The ids of messages without a readable id; None derives them from the bytes.
        row_format: The columns to read.
    """
    derived = ids if ids is not None else [content_id(message) for message in messages]
    rows = read_json_values(messages, row_format.texts)
    return decode_rows(rows, messages, derived, row_format)


def source_rows(
    ids: Sequence[str], columns: Mapping[str, pa.Array], payloads: Sequence[bytes]
) -> pa.RecordBatch:
    """Return the source batch of rows.

    Args:
        ids: The id of each row.
        columns: The columns of the source by name.
        payloads: The original content of each row.
    """
    return pa.RecordBatch.from_arrays(
        [
            pa.array(ids, pa.string()),
            pa.StructArray.from_arrays(list(columns.values()), names=list(columns)),
            pa.array(payloads, pa.binary()),
        ],
        names=[ROW_ID, SOURCE, PAYLOAD],
    )


def decode_rows(
    rows: Sequence[Any],
    payloads: Sequence[bytes],
    ids: Sequence[str],
    row_format: RowFormat,
    *,
    as_vector: bool = False,
    replayed: Sequence[int] = (),
) -> Decoded:
    """Decode rows that have already been parsed.

    Args:
        rows: A JSON value or a Fault for each row.
        payloads: The original content of each row.
        ids: The derived id of each row, for rows without a readable id.
        row_format: The columns to read.
        as_vector: Whether the features may be returned as one list column, which is faster.
        replayed: The rows that keep the given id, because it was taken from a column that JSON
            writes in another form, such as a time. A given id may be the hash of a long one.
    """
    if row_format.id_column is not None:
        own = [own_id(row, row_format.id_column) for row in rows]
        for i in replayed:
            if own[i] is not None and content_id(str(own[i]).encode()) != ids[i]:
                own[i] = None
        ids = [i if text is None else text for text, i in zip(own, ids, strict=True)]
    plain = read_plain(rows, row_format) if as_vector and rows else None
    if plain is not None:
        batch = source_rows(ids, plain, payloads)
        return Decoded(
            batch=batch,
            failed_ids=[],
            failed_payloads=[],
            faults=[],
            good=list(range(len(rows))),
            bad=[],
        )
    read = read_rows(rows, row_format)
    batch = None
    if read.good:
        # The good rows can still be read the fast way.
        kept = [rows[i] for i in read.good]
        columns = (read_plain(kept, row_format) if as_vector else None) or read.columns
        batch = source_rows([ids[i] for i in read.good], columns, [payloads[i] for i in read.good])
    return Decoded(
        batch=batch,
        failed_ids=[ids[i] for i in read.faults],
        failed_payloads=[payloads[i] for i in read.faults],
        faults=list(read.faults.values()),
        good=read.good,
        bad=list(read.faults),
    )
