"""Dead letters: rows that could not be scored, with the reason and their original content.

All stages, pipelines and sinks use one schema, so dead letters can be counted, read and replayed
wherever they were written.
"""

from __future__ import annotations

import base64
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import orjson
import pyarrow as pa

from common.plain_json import to_json
from common.record_batch import MESSAGE, PAYLOAD, ROW_ID, SOURCE, to_rows
from transforms.dead_letter_schema import FAILURE_SCHEMA
from transforms.provenance import Provenance

_LINE = orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z

Stage = Literal["decode", "validate", "infer", "encode", "write"]
# The reasons of all stages. docs/reference/dead-letter-reasons.md explains each of them.
REASONS = (
    "duplicate_key",
    "empty_message",
    "endpoint_failed",
    "endpoint_refused",
    "function_error",
    "invalid_arrow",
    "invalid_avro",
    "invalid_csv",
    "invalid_gzip",
    "invalid_json",
    "missing_feature",
    "model_error",
    "no_time_zone",
    "not_an_object",
    "not_finite",
    "not_finite_score",
    "null",
    "out_of_range",
    "refused",
    "too_large",
    "too_long",
    "unknown_encoding",
    "unknown_value",
    "wrong_schema",
    "wrong_type",
    "wrong_width",
)


@dataclass(frozen=True)
class Fault:
    """Why one row failed.

    Attributes:
        reason: A stable code, one of REASONS.
        message: The explanation for the user.
        column: The column that caused the failure, or None.
    """

    reason: str
    message: str
    column: str | None = None


def failure_batch(
    row_ids: Sequence[str | None],
    payloads: Sequence[bytes],
    faults: Sequence[Fault],
    *,
    stage: Stage,
    provenance: Provenance,
    failed_at: datetime.datetime,
    messages: pa.StructArray | None = None,
) -> pa.RecordBatch:
    """Return the dead letters of failed rows, as a batch of FAILURE_SCHEMA.

    Args:
        row_ids: The id of each row.
        payloads: The original content of each row.
        faults: Why each row failed.
        stage: The stage in which the rows failed.
        provenance: The run and the model.
        failed_at: When the rows failed.
        messages: The column MESSAGE of the rows, if they arrived as messages.
    """
    rows = len(faults)
    attributes: list[dict[str, Any]] = [
        {"column": fault.column} if fault.column else {} for fault in faults
    ]
    attempts = [1] * rows
    if messages is not None:
        described = describe_messages(messages)
        attributes = [
            {**one, "message": other} for one, other in zip(attributes, described, strict=True)
        ]
        attempts = messages.field("attempts").to_pylist()
    constant = {"failed_at": failed_at, "stage": stage, **asdict(provenance)}
    varying = {
        "reason": [fault.reason for fault in faults],
        "message": [fault.message for fault in faults],
        "row_id": list(row_ids),
        "payload": list(payloads),
        "attributes": [orjson.dumps(one).decode() for one in attributes],
        "attempts": attempts,
    }
    arrays = [
        pa.array(varying[f.name], f.type)
        if f.name in varying
        else pa.repeat(pa.scalar(constant[f.name], f.type), rows)
        for f in FAILURE_SCHEMA
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=FAILURE_SCHEMA)


def failed_rows(
    rows: pa.RecordBatch,
    faults: Sequence[Fault],
    *,
    stage: Stage,
    provenance: Provenance,
    failed_at: datetime.datetime,
) -> pa.RecordBatch:
    """Return the dead letters of a batch in which every row failed, as a batch of FAILURE_SCHEMA.

    Args:
        rows: A source batch that contains only failed rows.
        faults: Why each row failed.
        stage: The stage in which the rows failed.
        provenance: The run and the model.
        failed_at: When the rows failed.
    """
    return failure_batch(
        rows.column(ROW_ID).to_pylist(),
        payloads(rows),
        faults,
        stage=stage,
        provenance=provenance,
        failed_at=failed_at,
        messages=rows.column(MESSAGE) if MESSAGE in rows.schema.names else None,
    )


def describe_messages(messages: pa.StructArray) -> list[dict[str, Any]]:
    """Return what the attributes of a dead letter record about each message of a column MESSAGE."""
    described = []
    for row in messages.to_pylist():
        attributes = {"id": row["message_id"], "event_time": row["event_time"].isoformat()}
        if row["ordering_key"]:
            attributes["ordering_key"] = row["ordering_key"]
        if row["attributes"]:
            attributes["attributes"] = orjson.loads(row["attributes"])
        described.append(attributes)
    return described


def payloads(rows: pa.RecordBatch) -> list[bytes]:
    """Return the original content of each row: its message, or its source columns as JSON."""
    if PAYLOAD in rows.schema.names:
        return list(rows.column(PAYLOAD).to_pylist())
    return [to_json(row[SOURCE]) for row in to_rows(rows.select([SOURCE]))]


def to_letter_line(letter: Mapping[str, Any]) -> bytes:
    """Write a dead letter as one line of JSON.

    A payload that is UTF-8 is written as text, so that people can read it. Any other payload
    becomes base64, under the name `payload_base64`.

    Args:
        letter: The values of FAILURE_SCHEMA by name.
    """
    payload = letter["payload"]
    if payload is None:
        return orjson.dumps(letter, option=_LINE)
    try:
        own = {"payload": payload.decode()}
    except UnicodeDecodeError:
        own = {"payload_base64": base64.b64encode(payload).decode()}
    others = {name: value for name, value in letter.items() if name != "payload"}
    return orjson.dumps(others | own, option=_LINE)
