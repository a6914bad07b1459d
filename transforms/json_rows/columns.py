"""A row's columns that were written as JSON (transforms/dead_letters.py: to_json) -> their values.

Columns of a table or of a CSV file hold what JSON has no word for, or has another one for:
NaN, integers of any size, decimals, numbers as text. A dead letter of such a row is
read as its columns were.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

from model_handlers.manifest import InputSpec, Manifest
from transforms.validate import VECTOR_COLUMN

_TRUTHS = {"true": 1, "false": 0}


def column_values(row: Any, manifest: Manifest) -> Any:
    """A decoded JSON value and a model -> the same, its features as JSON messages have them.

    Texts that are numbers become numbers, empty ones null, truth values 0 and 1; a list
    column that holds an input becomes the input's columns.
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
    """A cell, or a list of cells -> its number; as it is where it is none."""
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
