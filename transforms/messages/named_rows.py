"""JSON texts that name every feature to columns, in half the time that any other JSON takes.

What a row may hold is known, so msgspec reads it without a dict and judges types on the way.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import cached_property
from math import nan
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from model_handlers.numpy_json import is_bare
from transforms.json_rows.row_format import RowFormat, plain_columns, to_text
from transforms.json_rows.values import count_key_ends

# Integers beyond 64 bits are not read alike by all readers of JSON.
_ID = str | Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | float | None
_PYTHON_TYPES: dict[pa.DataType, Any] = {pa.string(): str, pa.float64(): float, pa.int64(): int}


class NamedColumns(NamedTuple):
    """What is read of rows: the source's columns, and own ids, None where a row has none.

    ids: None without an id column.
    """

    columns: dict[str, pa.Array]
    ids: Sequence[str | None] | None


class NamedRows:
    """A reader of the rows of a RowFormat."""

    def __init__(self, row_format: RowFormat) -> None:
        self._format = row_format
        self._beside = {name: _PYTHON_TYPES[kind] | None for name, kind in row_format.columns}
        own = row_format.id_column
        # Of a column of numbers, the id is the number as it came.
        has_id_apart = own is None or self._beside.get(own, str | None) == str | None
        if own is not None:
            self._beside.setdefault(own, _ID)
        # msgspec takes no names that JSON has to escape.
        are_bare = all(is_bare(name) for name in (*row_format.names, *self._beside))
        are_apart = self._beside.keys().isdisjoint(row_format.names)
        self._able = row_format.plain and has_id_apart and are_bare and are_apart
        # As Arrow has them, in half the time that it takes for a list of floats.
        self._pack = struct.Struct(f"={len(row_format.names)}d").pack

    @cached_property
    def _decode(self) -> Callable[[bytes], msgspec.Struct]:
        """JSON -> the features in order, then what is beside them. Raises MsgspecError."""
        # Columns need not be identifiers.
        names = {f"_{i}": name for i, name in enumerate(self._format.names)}
        fields: list[Any] = [(name, float | None) for name in names]
        for i, (name, kind) in enumerate(self._beside.items(), len(names)):
            names[f"_{i}"] = name
            fields.append((f"_{i}", kind, None))
        row = msgspec.defstruct("Row", fields, rename=names, forbid_unknown_fields=True, gc=False)
        return msgspec.json.Decoder(row).decode

    def read(self, bodies: Sequence[bytes]) -> NamedColumns | None:
        """JSON texts, at least one -> what plain_columns makes of them, and their ids.

        None if any text is anything but an object of all features, as numbers or nulls, of
        the columns to keep and of the id, each once.
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
        # No more ends of keys than values: then no key is there twice, and none as null.
        if count_key_ends(bodies, keys) > keys:
            return None
        own = self._format.id_column
        ids = None if own is None else list(map(to_text, kept[list(self._beside).index(own)]))
        # JSON has no NaN: what is one was null.
        values = pa.array(np.frombuffer(b"".join(packed)), from_pandas=nulls)
        columns = plain_columns(values, kept[: len(self._format.columns)], self._format)
        return None if columns is None else NamedColumns(columns, ids)
