"""The schemas of rows that are the same for every model: dead letters, the reference's rows.

Declared without Beam, so that whoever makes the tables need not load it.
"""

from __future__ import annotations

import pyarrow as pa

_TIME = pa.timestamp("us", tz="UTC")

FAILURE_SCHEMA = pa.schema(
    [
        ("failed_at", _TIME),
        ("run_id", pa.string()),
        ("pipeline", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
        ("row_id", pa.string()),
        ("payload", pa.binary()),
        ("attributes", pa.string()),
        ("model_name", pa.string()),
        ("model_version", pa.string()),
        ("model_digest", pa.string()),
        ("attempts", pa.int64()),
    ]
)

# What senders of the reference's messages put beside the features, and its type.
CARRIED = (
    ("test_id", pa.string()),
    ("message_id", pa.string()),
    ("publish_time", pa.float64()),
    ("sequence", pa.int64()),
)
WINDOW = ("window_start", "window_end")

REFERENCE_SCHEMA = pa.schema(
    [
        ("instance_id", pa.string()),
        ("anomaly_score", pa.float64()),
        ("encoded", pa.list_(pa.float64())),
        ("timestamp", _TIME),
    ]
)
REFERENCE_STREAM_SCHEMA = pa.schema(
    [
        *REFERENCE_SCHEMA,
        *((name, _TIME) for name in WINDOW),
        ("pipeline_output_time", pa.float64()),
        *CARRIED,
    ]
)
