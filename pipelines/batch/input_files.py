"""What a batch run checks about its input files before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
from apache_beam.io.filesystem import FileMetadata

from common.cells import is_text
from common.errors import InputError, UsageError, suggest
from model_handlers.manifests.manifest import Manifest
from pipelines.command import say
from pipelines.field_names import check_name, named_by_user
from transforms.encode import read_type
from transforms.files.columns import Columns
from transforms.files.csv.dialect import Dialect
from transforms.files.first_rows import read_first_rows
from transforms.files.hive import check_keys, keys_of
from transforms.files.one_schema import Origin, one_type, parquet_origins
from transforms.files.ranges import FileFormat, file_schema, format_of, has_rows
from transforms.files.text_lines import compression_of
from transforms.output_fields import OutputFields, check_fields


def with_formats(
    files: Sequence[FileMetadata], file_format: FileFormat | None
) -> list[tuple[str, FileFormat]]:
    """Return the paths of files with their formats.

    Args:
        files: The files.
        file_format: The format of all files, or None to detect it from the suffix of each.

    Raises:
        UsageError: If the format of a file is not known.
    """
    return [(file.path, file_format or format_of(file.path)) for file in files]


def unsplit_bytes(files: Sequence[FileMetadata], *, multiline: bool) -> int:
    """Return the size of the largest text file that one worker reads alone, or 0.

    Args:
        files: The files.
        multiline: Whether quoted values of CSV files contain line breaks.
    """
    whole = (
        file.size_in_bytes
        for file in files
        if compression_of(file.path) or (multiline and file.path.endswith(".csv"))
    )
    return max(whole, default=0)


def key_types(
    files: Sequence[tuple[str, FileFormat]],
    manifest: Manifest,
    fields: OutputFields,
    present: pa.Schema,
) -> dict[str, pa.DataType]:
    """Return the types of the keys in paths that are written and are not text.

    The table that is written decides the type of a key, else the manifest.

    Args:
        files: The paths and formats of the files.
        manifest: The manifest of the model.
        fields: The fields that are written of each row.
        present: The columns of the table, under names in lower case.

    Raises:
        InputError: If a key in the path of a file cannot have its type.
    """
    used = set().union(*(keys_of(path) for path, _ in files)).intersection(fields.source)
    types = {name: read_type(name, manifest) for name in used}
    for name in (name for name in used if name.lower() in present.names):
        field = present.field(name.lower())
        # JSON is text with metadata, and Arrow reads no TIME from text.
        if not (pa.types.is_nested(field.type) or pa.types.is_time(field.type) or field.metadata):
            types[name] = field.type
    types = {name: kind for name, kind in types.items() if not pa.types.is_string(kind)}
    by_table = {name: kind for name, kind in types.items() if name not in fields.numbers}
    check_keys((path for path, _ in files), by_table, "the table that is written")
    return types


def passed_on(
    files: Sequence[tuple[str, FileFormat]],
    manifest: Manifest,
    fields: OutputFields,
    keys: Mapping[str, pa.DataType],
) -> tuple[pa.Schema | None, dict[str, str]]:
    """Return the one type of each source column that is written, from the schemas of all files.

    Args:
        files: The paths and formats of the files.
        manifest: The manifest of the model.
        fields: The fields that are written of each row.
        keys: The types of the keys in paths that are written and are not text, by name.

    Returns:
        The types, or None if all files are text, whose rows always have the same types. And, for
        columns that differ in type, their types and files as part of a message.

    Raises:
        InputError: If a file cannot be read, or two files differ in type irreconcilably.
    """
    paths = [path for path, kind in files if kind == "parquet"]
    text = next((path for path, kind in files if kind != "parquet"), None)
    if not paths:
        read = {name: keys.get(name, read_type(name, manifest)) for name in fields.source}
        return (pa.schema(read) if keys else None), {}
    types: dict[str, pa.DataType] = {}
    differ: dict[str, str] = {}
    for name, found in parquet_origins(paths if fields.source else (), fields.source, keys).items():
        texts = [] if text is None else [Origin(keys.get(name, read_type(name, manifest)), text)]
        origins = found + texts
        if name in fields.numbers:
            # The text of a feature is written as a number (transforms/encode.py).
            origins = [o._replace(kind=pa.float64()) if is_text(o.kind) else o for o in origins]
        types[name] = one_type(name, origins)
        if len(origins) > 1:
            differ[name] = " and ".join(f"{o.kind} in {o.path}" for o in origins[:3])
    return pa.schema(types), differ


def check_files(
    files: Sequence[tuple[str, FileFormat]],
    dialect: Dialect,
    columns: Columns,
    fields: OutputFields,
) -> None:
    """Check the first file that has rows, or the first rows of JSON Lines files.

    Each worker checks the columns of its own files.

    Args:
        files: The paths and formats of the files, at least one.
        dialect: How CSV files are written.
        columns: The columns that are read.
        fields: The fields that are written of each row.

    Raises:
        InputError: If no file has rows, or if columns are missing.
        UsageError: If --id_column or a field is missing.
    """
    found = next((file for file in files if has_rows(*file, dialect)), None)
    if found is None:
        first = files[0][0]
        if len(files) == 1:
            raise InputError(f"the input is empty: {first} has no rows")
        raise InputError(
            f"the input is empty: none of the {len(files):,} files has rows (the first is {first})"
        )
    schema = file_schema(*found, dialect)
    if schema is not None:
        check_columns(schema, found[0], columns, fields)
    else:
        check_first_rows([path for path, kind in files if kind == "jsonl"], columns, fields)


def check_first_rows(paths: Sequence[str], columns: Columns, fields: OutputFields) -> None:
    """Check that the first rows of JSON Lines files have the names that the flags name.

    A row may lack a field, which is then null. So a name that no row shows is refused only if it is
    the id, or if the rows have a similar one; otherwise, a line warns of it.

    Args:
        paths: The paths of the files.
        columns: The columns that are read.
        fields: The fields that are written of each row.

    Raises:
        InputError: If a file cannot be read.
        UsageError: If a name is misspelt.
    """
    wanted = named_by_user(columns.manifest, columns.id_column, fields.source)
    first = read_first_rows(paths, wanted)
    place = f"the first {first.rows:,} rows of the input"
    for name, flag in wanted.items() if first.names else ():
        if warning := check_name(name, flag, first.names, place, columns.manifest.results):
            say(warning)


def check_columns(schema: pa.Schema, place: str, columns: Columns, fields: OutputFields) -> None:
    """Raise an error with the nearest names if a source lacks columns.

    Args:
        schema: The columns of the source.
        place: The name of the source, for errors.
        columns: The columns that are read.
        fields: The fields that are written of each row.

    Raises:
        UsageError: If --id_column or a field is missing.
        InputError: If a column that the model reads is missing or has the wrong type.
    """
    id_column = columns.id_column
    if id_column is not None and id_column not in schema.names:
        raise UsageError(
            f"--id_column: {place} lacks column {id_column!r}"
            f"{suggest(id_column, schema.names)}; it has {', '.join(schema.names[:40])}"
        )
    check_fields(fields, columns.manifest, schema.names)
    columns.names(schema, place)
