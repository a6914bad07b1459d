"""JSON rows to columns: messages, lines of a file, or dicts of a user's own pipeline.

Reasons are those of transforms/json_rows/values.py and transforms/json_rows/row_format.py. A row
without its id is still a row: it gets the derived one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import pyarrow as pa

from common.record_batch import PAYLOAD, ROW_ID, SOURCE
from transforms.dead_letters import Fault, failure_batch
from transforms.json_rows.row_format import RowFormat, build_columns, own_id, read_plain, read_row
from transforms.json_rows.values import read_json_values
from transforms.provenance import Provenance, utc_now
from transforms.row_ids import content_id


@dataclass(kw_only=True)
class Decoded:
    """Rows that could be read, as a source batch, and the ones that could not.

    good, bad: their places among all rows, where the rows have an order. span: the part of
    a file that has been read with them.
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
        """How many rows these are, good and bad together."""
        return len(self.faults) + (0 if self.batch is None else self.batch.num_rows)


def emit(
    decoded: Decoded, provenance: Provenance
) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
    """Decoded rows -> what a DoFn emits: their batch, and the others to its output `failures`."""
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
    """JSON messages and their derived ids -> Decoded, rows in order.

    ids: used where a row has no id of its own that can be read; None derives them
        from the messages' bytes.
    """
    derived = ids if ids is not None else [content_id(message) for message in messages]
    return decode_rows(read_json_values(messages), messages, derived, row_format)


def source_rows(
    ids: Sequence[str], columns: Mapping[str, pa.Array], payloads: Sequence[bytes]
) -> pa.RecordBatch:
    """Ids, a source's columns and the payloads of rows -> their source batch."""
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
) -> Decoded:
    """Decoded JSON values (or a Fault each), their bytes and derived ids -> Decoded.

    as_vector: the features may come out as one list column, which is faster.
    """
    if row_format.id_column is not None:
        own = [own_id(row, row_format.id_column) for row in rows]
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
    read = [read_row(row, row_format) for row in rows]
    good = [i for i, row in enumerate(read) if not isinstance(row, Fault)]
    bad = [i for i, row in enumerate(read) if isinstance(row, Fault)]
    batch = None
    if good:
        kept = [rows[i] for i in good]
        # What is wrong with other rows makes these no slower to read.
        plain = read_plain(kept, row_format) if as_vector else None
        columns = plain or build_columns([read[i] for i in good], kept, row_format)
        batch = source_rows([ids[i] for i in good], columns, [payloads[i] for i in good])
    return Decoded(
        batch=batch,
        failed_ids=[ids[i] for i in bad],
        failed_payloads=[payloads[i] for i in bad],
        faults=[read[i] for i in bad],
        good=good,
        bad=bad,
    )
