"""The columns of a source from which a model is fed, and whether their types can be used."""

from __future__ import annotations

import pyarrow as pa

from common.cells import is_list, is_number, is_text
from common.errors import InputError, suggest
from model_handlers.manifests.manifest import InputSpec, Manifest
from model_handlers.steps.raw import can_become, expected

VECTOR_COLUMN = "features"


def source_columns(manifest: Manifest, available: pa.Schema) -> dict[str, tuple[str, ...]]:
    """Return the source columns that each input of a model is read from, by the input's name.

    An input is read from its named columns, or from one list column that holds the whole row:
    the column with the input's own name, or `features` if the model has one input.

    Args:
        manifest: The manifest of the model.
        available: The columns of the source.

    Raises:
        InputError: Columns are missing (the message suggests similar names), or the type of a
            column cannot hold the numbers of the input.
    """
    return {spec.name: _columns_of(spec, manifest, available) for spec in manifest.inputs}


def _columns_of(spec: InputSpec, manifest: Manifest, available: pa.Schema) -> tuple[str, ...]:
    known = set(available.names)
    missing = [column for column in spec.sources if column not in known]
    if not missing:
        for column in spec.sources:
            if spec.chains:
                _check_raw(column, available.field(column).type, manifest.columns[column])
            else:
                _check_type(column, available.field(column).type, spec, spec.is_list_column)
        return spec.sources
    vectors = [spec.name] + ([VECTOR_COLUMN] if len(manifest.inputs) == 1 else [])
    for name in () if spec.chains else vectors:
        if name in known and is_list(available.field(name).type):
            _check_type(name, available.field(name).type, spec, True)
            return (name,)
    first = missing[0]
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    raise InputError(
        f"model {manifest.name} needs column {first!r}{more}, which the source lacks"
        f"{suggest(first, available.names)}; the source has {', '.join(available.names[:40])}"
    )


def _check_raw(column: str, kind: pa.DataType, raw: str) -> None:
    """Raise InputError unless cells of a type can be values of a declared raw type."""
    if can_become(kind, raw):
        return
    advice = "convert it in the source"
    if pa.types.is_timestamp(kind) and raw in ("timestamp", "datetime"):
        other = "datetime" if raw == "timestamp" else "timestamp"
        advice += f", or declare it as {other} when the model is packaged"
    raise InputError(f"column {column!r}: expected {expected(raw)}, got {kind}: {advice}")


def _check_type(column: str, kind: pa.DataType, spec: InputSpec, list_wanted: bool) -> None:
    """Raise InputError unless cells of a type can be what the input needs."""
    value = kind.value_type if is_list(kind) or pa.types.is_dictionary(kind) else kind
    # A list of one number is one number.
    single = is_list(kind) and getattr(kind, "list_size", 1) == 1 and not list_wanted
    if (is_list(kind) != list_wanted and not single) or not (is_number(value) or is_text(value)):
        expected = f"a list of {spec.width} numbers" if list_wanted else "a number"
        raise InputError(
            f"column {column!r}: expected {expected}, got {kind}: convert it in the source, or "
            "remove it from the model's inputs"
        )
