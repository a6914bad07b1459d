"""JSON texts that name every feature to columns, in half the time that any other JSON takes.

What a row may hold is known, so msgspec reads it without a dict and judges types on the way.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import cached_property
from math import nan
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from model_handlers.numpy_json import is_bare
from transforms.row_format import RowFormat, plain_columns

_PYTHON_TYPES: dict[pa.DataType, Any] = {pa.string(): str, pa.float64(): float, pa.int64(): int}


class NamedRows:
    """A reader of the rows of a RowFormat."""

    def __init__(self, row_format: RowFormat) -> None:
        self._format = row_format
        names = (*row_format.names, *dict(row_format.columns))
        # msgspec takes no names that JSON has to escape.
        self._able = row_format.plain and all(is_bare(name) for name in names)
        # As Arrow has them, in half the time that it takes for a list of floats.
        self._pack = struct.Struct(f"={len(row_format.names)}d").pack

    @cached_property
    def _decode(self) -> Callable[[bytes], msgspec.Struct]:
        """JSON -> the features in order, then the columns. Raises MsgspecError."""
        # Columns need not be identifiers.
        names = {f"_{i}": name for i, name in enumerate(self._format.names)}
        fields: list[Any] = [(name, float | None) for name in names]
        for i, (name, kind) in enumerate(self._format.columns, len(names)):
            names[f"_{i}"] = name
            fields.append((f"_{i}", _PYTHON_TYPES[kind] | None, None))
        row = msgspec.defstruct("Row", fields, rename=names, forbid_unknown_fields=True, gc=False)
        return msgspec.json.Decoder(row).decode

    def read(self, bodies: Sequence[bytes]) -> dict[str, pa.Array] | None:
        """JSON texts, at least one -> the source's columns as plain_columns makes them.

        None if any text is anything but an object of all features, as numbers or nulls, and
        of the columns to keep, each once.
        """
        if not self._able:
            return None
        width, rows, nulls = len(self._format.names), len(bodies), False
        packed, rest = [], []
        try:
            # Row by row: values that live on until all are read no longer fit into the caches.
            for body in bodies:
                row = msgspec.structs.astuple(self._decode(body))
                try:
                    packed.append(self._pack(*row[:width]))
                except struct.error:
                    packed.append(
                        self._pack(*(nan if cell is None else cell for cell in row[:width]))
                    )
                    nulls = True
                rest.append(row[width:])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        kept = list(zip(*rest, strict=True))
        keys = rows * width + sum(rows - cells.count(None) for cells in kept)
        # No more colons than keys: then none is there twice, and none as null.
        if count_colons(bodies) != keys:
            return None
        # JSON has no NaN: what is one was null.
        values = pa.array(np.frombuffer(b"".join(packed)), from_pandas=nulls)
        return plain_columns(values, kept, self._format)


def count_colons(bodies: Sequence[bytes]) -> int:
    """Texts -> how many colons are in them."""
    return int(np.count_nonzero(np.frombuffer(b"".join(bodies), np.uint8) == ord(":")))
