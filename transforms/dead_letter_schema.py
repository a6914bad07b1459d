"""The columns of dead letters.

Declared without Beam, so that the programs that create the tables need not load it.
"""

from __future__ import annotations

import pyarrow as pa

FAILURE_SCHEMA = pa.schema(
    [
        ("failed_at", pa.timestamp("us", tz="UTC")),
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
