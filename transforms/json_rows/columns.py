"""Read the columns of a row that a dead letter holds as JSON (common/plain_json.py: to_json).

Columns of a table or of a Parquet file can hold values that JSON messages express differently:
booleans for numbers, and lists that hold a whole input beside other inputs. This module reads such
a dead letter with the same result as the original columns.
"""

from __future__ import annotations

from typing import Any

from model_handlers.manifests.manifest import Manifest
from transforms.source_columns import VECTOR_COLUMN


def column_values(row: Any, manifest: Manifest) -> Any:
    """Convert the features of a row to the form that they have in JSON messages.

    Booleans become 0 or 1. A list column that holds a whole input is split into the columns of the
    input.

    Args:
        row: A decoded JSON value. If it is not an object, it is returned unchanged.
        manifest: The manifest of the model.
    """
    if not isinstance(row, dict):
        return row
    row = dict(row)
    for spec in manifest.inputs:
        vector = row.get(spec.name)
        if isinstance(vector, list) and len(vector) == len(spec.columns) > 1:
            row = dict(zip(spec.columns, vector, strict=True)) | row
        for name in (*spec.columns, VECTOR_COLUMN):
            if name in row:
                row[name] = _number(row[name])
    return row


def _number(value: Any) -> Any:
    """Convert a boolean, or each boolean of a list, to a number; other values stay unchanged."""
    if isinstance(value, list):
        return [_number(item) for item in value]
    return int(value) if isinstance(value, bool) else value
