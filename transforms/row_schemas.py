"""The schemas of the rows of the reference pipeline, which are the same for every model.

This module does not import Beam, so commands that create the tables do not have to load it.
"""

from __future__ import annotations

import pyarrow as pa

_TIME = pa.timestamp("us", tz="UTC")

# The fields, with their types, that senders of the reference pipeline add to the features.
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
