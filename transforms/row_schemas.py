"""The schemas of output rows, for commands that create the tables.

Those of the reference pipeline are the same for every model. The default ones follow from the
model. This module does not import Beam, so that these commands do not have to load it.
"""

from __future__ import annotations

import pyarrow as pa

from model_handlers.manifests.manifest import Manifest

_TIME = pa.timestamp("us", tz="UTC")

# The fields, with their types, that senders of the reference pipeline add to the features.
CARRIED = (
    ("test_id", pa.string()),
    ("message_id", pa.string()),
    ("publish_time", pa.float64()),
    ("sequence", pa.int64()),
)
WINDOW = ("window_start", "window_end")
SCORE = "score"
LINEAGE = ("model_name", "model_version", "model_digest", "run_id", "scored_at")
# The times that a stream with --row_timings adds: when the message was decoded, and when the rows
# went to the model of the worker, or to an endpoint.
DECODED_AT, PREDICT_STARTED_AT, REQUESTED_AT = "decoded_at", "predict_started_at", "requested_at"

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


def default_schema(manifest: Manifest, *, stream: bool = False) -> pa.Schema:
    """Return the schema of the rows that are written if no flag chooses their fields.

    Args:
        manifest: The manifest of the model.
        stream: Whether rows arrive as messages. A stream with `--window_seconds` also writes
            WINDOW, and one with `--row_timings` further times.
    """
    score, kinds = manifest.score_output, manifest.results
    chosen = manifest.output_fields or tuple(name for name in kinds if name != score)
    message = (("event_time", _TIME), ("received_at", _TIME), *CARRIED) if stream else ()
    return pa.schema(
        [
            ("row_id", pa.string()),
            *(((SCORE, kinds[score]),) if score is not None else ()),
            *((name, kinds[name]) for name in chosen if not name == score == SCORE),
            *((name, pa.string()) for name in LINEAGE[:-1]),
            (LINEAGE[-1], _TIME),
            *message,
        ]
    )
