"""Read the columns of a row that a dead letter holds as JSON (transforms/plain_json.py: to_json).

Columns of a table or a CSV file can hold values that JSON cannot express, or expresses
differently: NaN, integers of any size, decimals, and numbers as strings. This module reads such
a dead letter with the same result as the original columns.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

from model_handlers.manifest import InputSpec, Manifest
from transforms.validate import VECTOR_COLUMN

_TRUTHS = {"true": 1, "false": 0}


def column_values(row: Any, manifest: Manifest) -> Any:
    """Convert the features of a row to the form that they have in JSON messages.

    Strings that spell numbers become numbers, empty strings null, and booleans 0 or 1. A list
    column that holds a whole input is split into the columns of the input.

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
                row[name] = _number(row[name], spec)
    return row


def _number(value: Any, spec: InputSpec) -> Any:
    """Convert a cell, or each cell of a list, to a number; other values stay unchanged."""
    if isinstance(value, list):
        return [_number(item, spec) for item in value]
    if isinstance(value, bool):
        return int(value)
    if not isinstance(value, str) or "_" in value:
        return value
    text = value.strip()
    if spec.dtype == "bool" and text.lower() in _TRUTHS:
        return _TRUTHS[text.lower()]
    try:
        return Decimal(text) if text else None
    except InvalidOperation:
        return value
