"""The columns that a run reads from its files, and the ids of their rows."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.cells import is_number, is_text
from common.errors import InputError, suggest
from common.record_batch import derived_ids, source_batch
from common.texts import id_column, is_binary
from model_handlers.manifests.manifest import Manifest
from model_handlers.steps.raw import RAW_TYPES
from transforms.row_ids import content_ids
from transforms.source_columns import VECTOR_COLUMN, source_columns


@dataclass(frozen=True)
class Columns:
    """The columns to read: the model's features, the id, and additional columns.

    Attributes:
        manifest: The manifest of the model.
        id_column: The column that holds the row id, or None to derive the ids.
        keep: Additional columns to pass through.
        ids_by_content: Whether ids are derived from the values of the features. It is needed for
            sources in which a row has no fixed position.
        any_case: Whether the case of names does not matter, as in BigQuery.
    """

    manifest: Manifest
    id_column: str | None = None
    keep: tuple[str, ...] = ()
    ids_by_content: bool = False
    any_case: bool = False

    @property
    def categories(self) -> list[str]:
        """The columns of text that only steps read; dictionaries of them are faster to prepare."""
        own = (*self.keep, self.id_column)
        columns = self.manifest.columns.items()
        return [name for name, raw in columns if raw == "string" and name not in own]

    def spelled(self, available: pa.Schema) -> pa.Schema:
        """Return the columns of a source, each under the name by which it is looked up.

        With `any_case`, a column whose name only differs in case from one to read gets its name.
        """
        if not self.any_case:
            return available
        inputs = (spec.name for spec in self.manifest.inputs)
        looked_up = (VECTOR_COLUMN, *inputs, *self.manifest.features, *self.keep, self.id_column)
        names = {name.lower(): name for name in looked_up if name is not None}
        return pa.schema([f.with_name(names.get(f.name.lower(), f.name)) for f in available])

    def names(self, available: pa.Schema, path: str) -> list[str]:
        """Return the columns to read from a file as the file names them, and in its order.

        Args:
            available: The columns of the file.
            path: The path of the file, for messages.

        Raises:
            InputError: A column is missing, occurs twice, or has a type that cannot be used.
        """
        own = {*self.keep, *filter(None, [self.id_column])}
        spelled = self.spelled(available)
        counts = Counter(spelled.names)
        single = pa.schema([field for field in spelled if counts[field.name] == 1])
        for name in sorted(own.union(self.manifest.features)):
            if counts[name] > 1:
                raise InputError(
                    f"{path} has {counts[name]} columns named {name!r}: expected one; rename or "
                    "remove the others"
                )
        try:
            wanted = own.union(*source_columns(self.manifest, single).values())
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        for name in sorted(wanted - set(single.names)):
            raise InputError(
                f"{path} lacks column {name!r}{suggest(name, single.names)}; it has "
                f"{', '.join(single.names[:40])}"
            )
        if self.id_column is not None:
            _check_id(path, single.field(self.id_column))
        named = zip(available.names, spelled.names, strict=True)
        return [name for name, looked_up in named if looked_up in wanted]

    def csv_types(self, names: Sequence[str]) -> dict[str, pa.DataType]:
        """Return the types with which columns of a CSV file are read.

        Features are read as numbers. Other columns are strings: those that are passed through, the
        id, and declared columns that are not numbers, which validation reads from text.
        """
        types = dict.fromkeys(names, pa.string())
        for name, raw in self.manifest.columns.items():
            if name in types and raw in ("float64", "int64"):
                types[name] = RAW_TYPES[raw]
        for spec in self.manifest.inputs:
            number = pa.float64() if spec.dtype.startswith("float") else pa.int64()
            types |= {n: number for n in spec.columns if n in types}
        return types | {n: pa.string() for n in (*self.keep, self.id_column) if n in types}

    def with_ids(self, batch: pa.RecordBatch, prefix: str, positions: np.ndarray) -> pa.RecordBatch:
        """Return a source batch of columns as they were read.

        A row whose id is null gets the derived id.

        Args:
            batch: The columns.
            prefix: The part of derived ids that stands for the file.
            positions: The position of each row in the file [rows].
        """
        if self.any_case:
            batch = batch.rename_columns(self.spelled(batch.schema).names)
        ids = None if self.id_column is None else id_column(batch.column(self.id_column))
        if ids is None or ids.null_count:
            derived = self._derived_ids(batch, prefix, positions)
            ids = derived if ids is None else pc.coalesce(ids, derived)
        return source_batch(ids, batch)

    def _derived_ids(self, batch: pa.RecordBatch, prefix: str, positions: np.ndarray) -> pa.Array:
        if not self.ids_by_content:
            return derived_ids(prefix, positions)
        names = source_columns(self.manifest, batch.schema).values()
        return content_ids([batch.column(name) for columns in names for name in columns])


def _check_id(path: str, column: pa.Field) -> None:
    """Raise InputError for a type that cannot be a row id, such as a list."""
    kind = column.type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if isinstance(value, pa.BaseExtensionType):
        value = value.storage_type
    is_simple = is_text(value) or is_number(value) or is_binary(value)
    if not (is_simple or pa.types.is_temporal(value)):
        raise InputError(
            f"{path}: id column {column.name!r}: expected text, numbers, times, UUIDs or bytes, "
            f"got {kind}: choose another --id_column"
        )


def id_prefix(path: str) -> str:
    """Return the part of derived ids that stands for a file: 12 hex digits from its path."""
    return hashlib.blake2b(path.encode(), digest_size=6).hexdigest()
