"""Decide one type for each column that a run passes on from files, before the first row is written.

Files of one source may differ in the type of a column: pandas writes integers with a null as
floats, and a column without values as null. The files of a result must not differ, or it could not
be read as one table. Types are promoted if no value changes by it; otherwise the run is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa

from common.arrow_values import in_microseconds, map_type, without_view
from common.cells import is_text
from common.errors import InputError
from transforms.files.hive import keys_of, with_keys
from transforms.files.parquet import open_parquet

_READERS = 16
# The most digits of an Arrow decimal.
_MOST_DIGITS = 76
# A type of these families may become one of another family.
_PROMOTED = {"integer", "null"}


class Origin(NamedTuple):
    """The type of a column, and a file in which it has this type."""

    kind: pa.DataType
    path: str


def parquet_origins(
    paths: Sequence[str], names: Sequence[str], keys: Mapping[str, pa.DataType]
) -> dict[str, list[Origin]]:
    """Return the different types of columns in Parquet files, with the first file of each type.

    Files without rows, and columns that a file lacks, are left out. Only footers are read.

    Args:
        paths: The paths of the files.
        names: The columns.
        keys: The types of the keys in paths that are not strings, by name.

    Raises:
        InputError: A file cannot be read.
    """
    found: dict[str, dict[pa.DataType, Origin]] = {name: {} for name in names}
    with ThreadPoolExecutor(_READERS) as readers:
        schemas = readers.map(lambda path: _schema_of_rows(path, keys), paths)
        for path, schema in zip(paths, schemas, strict=True):
            for name in names:
                if schema.names.count(name) == 1:
                    kind = schema.field(name).type
                    found[name].setdefault(kind, Origin(kind, path))
    return {name: list(origins.values()) for name, origins in found.items()}


def _schema_of_rows(path: str, keys: Mapping[str, pa.DataType]) -> pa.Schema:
    """Return the columns of a file and its path, or no columns if it has no rows."""
    with open_parquet(path) as parquet:
        rows = parquet.metadata.num_rows
        return with_keys(parquet.schema_arrow, keys_of(path), keys) if rows else pa.schema([])


def one_type(name: str, origins: Iterable[Origin]) -> pa.DataType:
    """Return the one type in which the values of a column are written.

    An integer of more than 53 bits, or a time finer than a microsecond, may still not fit: then
    casting it to this type fails (transforms/encode.py).

    Args:
        name: The name of the column, for the message.
        origins: The types of the column, at least one.

    Raises:
        InputError: Two files have types of which neither can become the other.
    """
    first, *others = origins
    kind, path = first
    for other in others:
        promoted = _promoted(kind, other.kind)
        if promoted is None:
            raise InputError(
                f"column {name!r} is {kind} in {path} and {other.kind} in {other.path}, but the "
                "rows of a result need one type: convert one of the files, or choose "
                "--output_fields without it"
            )
        if promoted != kind:
            kind, path = promoted, other.path
    return kind


def _promoted(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """Return the type that holds the values of two types, or None."""
    if first == second:
        return first
    pair = [map_type(_decoded(kind), without_view) for kind in (first, second)]
    schemas = [pa.schema([("", kind)]) for kind in pair]
    try:
        merged = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None
    before = set(map(_family, [*_leaves(pair[0]), *_leaves(pair[1])]))
    if before - set(map(_family, _leaves(merged))) - _PROMOTED:
        return None
    digits = max((_digits(leaf) for kind in pair for leaf in _leaves(kind)), default=0)
    merged = map_type(merged, lambda leaf: _with_digits(leaf, digits))
    units = {getattr(leaf, "unit", None) for kind in pair for leaf in _leaves(kind)} - {None}
    # Microseconds hold every time of the years 1 to 9999, nanoseconds do not.
    return map_type(merged, in_microseconds) if len(units) > 1 else merged


def _digits(kind: pa.DataType) -> int:
    """Return how many digits the integers of a type can have; 0 for other types."""
    if not pa.types.is_integer(kind):
        return 0
    return len(str((1 << kind.bit_width) - 1 >> pa.types.is_signed_integer(kind)))


def _with_digits(kind: pa.DataType, digits: int) -> pa.DataType:
    """Return a decimal type with this many digits before the point, which Arrow leaves out."""
    if not pa.types.is_decimal(kind) or kind.precision - kind.scale >= digits:
        return kind
    precision = digits + kind.scale
    if precision > _MOST_DIGITS:
        return kind
    return (
        pa.decimal128(precision, kind.scale)
        if precision <= 38
        else pa.decimal256(precision, kind.scale)
    )


def _decoded(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _leaves(kind: pa.DataType) -> list[pa.DataType]:
    """Return the types in a type that are not nested."""
    found: list[pa.DataType] = []

    def collect(leaf: pa.DataType) -> pa.DataType:
        found.append(leaf)
        return leaf

    map_type(kind, collect)
    return found


_FAMILIES = {
    "integer": pa.types.is_integer,
    "null": pa.types.is_null,
    "float": pa.types.is_floating,
    "decimal": pa.types.is_decimal,
    "text": is_text,
}


def _family(kind: pa.DataType) -> str:
    """Return the family of a type; a promotion must not change it, except from _PROMOTED."""
    return next((name for name, is_of in _FAMILIES.items() if is_of(kind)), "other")
