"""The source of a batch run, checked before the run starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from cloud.clients import Cloud
from cloud.errors import translate_errors
from common.cells import is_text
from common.errors import InputError, UsageError, one_line, suggest
from common.memory import check_memory
from model_handlers.manifest import Manifest
from pipelines.batch.config import BatchConfig, Files, Query, Table
from pipelines.batch.destinations import present_columns
from pipelines.command import say
from pipelines.config import ModelConfig
from pipelines.field_names import check_name, named_by_user
from transforms.bigquery.read import ReadBigQuery
from transforms.bigquery.schema import TableName
from transforms.bigquery.source import BigQuerySource, at_one_moment, describe_source
from transforms.encode import OutputFields, check_fields, read_type
from transforms.files.columns import Columns
from transforms.files.csv.dialect import PLAIN, Dialect
from transforms.files.first_rows import read_first_rows
from transforms.files.hive import check_keys, keys_of
from transforms.files.one_schema import Origin, one_type, parquet_origins
from transforms.files.ranges import FileFormat, file_schema, format_of, has_rows, match_inputs
from transforms.files.read import ReadFiles
from transforms.files.run_folder import RunFolder
from transforms.lakes.read import ReadLake
from transforms.lakes.table import LakeVersion, find_lake, lake_errors
from transforms.lineage import Lineage
from transforms.provenance import Provenance


@dataclass(frozen=True, kw_only=True)
class Source:
    """The source of the rows of a run.

    Attributes:
        transform: A PTransform that returns transforms.files.read.Read.
        schema: The columns, or None if each row names its own.
        names: The names of the source for the report.
        lineage: The dead letters that a replay scores, or None for other runs.
        exports: Whether reading writes files to the temp location.
        origins: For columns whose files differ in type, these types and files. None if the source
            is not files, so that a column has only one type.
        table_version: The version that is read of a Delta Lake or Iceberg table.
    """

    transform: beam.PTransform
    schema: pa.Schema | None
    names: tuple[str, ...]
    lineage: Lineage | None = None
    exports: bool = False
    origins: Mapping[str, str] | None = None
    table_version: int | None = None


def open_source(
    config: BatchConfig,
    manifest: Manifest,
    fields: OutputFields,
    *,
    provenance: Provenance,
    cloud: Cloud | None,
    folder: RunFolder | None,
) -> Source:
    """Check the source of a batch run, and return it.

    Args:
        config: The configuration of the run.
        manifest: The manifest of the model.
        fields: The fields that are written of each row.
        provenance: The run and the model.
        cloud: The Cloud that reads BigQuery. Needed only for BigQuery.
        folder: The folder of the run in the temp location, or None if there is none.

    Raises:
        InputError: If the source is missing, unreadable, empty or lacks columns.
        UsageError: If flags do not fit the source.
    """
    columns = Columns(manifest, config.id_column, fields.source)
    if isinstance(config.source, Files):
        present = present_columns(config.sinks, cloud) if fields.source else pa.schema([])
        return _open_files(
            config.source,
            columns,
            fields,
            provenance=provenance,
            model=config.model,
            present=present,
        )
    if cloud is None:
        raise TypeError(f"expected a Cloud to read {config.source}")
    return _open_bigquery(
        config.source,
        columns,
        fields,
        cloud=cloud,
        folder=folder,
        model=config.model,
    )


def _open_files(
    source: Files,
    columns: Columns,
    fields: OutputFields,
    *,
    provenance: Provenance,
    model: ModelConfig,
    present: pa.Schema,
) -> Source:
    """Return files as a source, after checking the first that has rows.

    `present` has the columns of the table that exists and is written, under names in lower case.
    """
    lake = (
        find_lake(source.patterns[0], source.table_version) if len(source.patterns) == 1 else None
    )
    if lake is not None:
        return _open_lake(lake, columns, fields, model)
    if source.table_version is not None:
        raise UsageError(
            "--table_version needs one --input_files, the folder of a Delta Lake or Iceberg table, "
            f"got {', '.join(source.patterns)}"
        )
    files = find_files(source)
    if source.dialect != PLAIN and all(kind != "csv" for _, kind in files):
        raise UsageError(
            "the --csv_* flags have no effect: no input file is CSV; remove them, or check "
            "--input_files and --input_format"
        )
    check_files(files, source.dialect, columns, fields)
    keys = key_types(files, columns.manifest, fields, present)
    schema, origins = passed_on(files, columns.manifest, fields, keys)
    transform = ReadFiles(
        patterns=source.patterns,
        columns=columns,
        provenance=provenance,
        file_format=source.file_format,
        batch_rows=model.batch_rows,
        batch_bytes=model.batch_bytes,
        dialect=source.dialect,
        conditions=source.conditions,
    )
    return Source(transform=transform, schema=schema, names=source.patterns, origins=origins)


def _open_lake(
    lake: LakeVersion, columns: Columns, fields: OutputFields, model: ModelConfig
) -> Source:
    """Return a table of Delta Lake or Apache Iceberg as a source, after checking its columns."""
    table = lake.open()
    with lake_errors(lake.place):
        schema = table.schema
        rows = any(file.rows != 0 for file in table.files())
    if not rows:
        raise InputError(f"the input is empty: {lake.place} has no rows")
    check_columns(schema, lake.place, columns, fields)
    return Source(
        transform=ReadLake(
            named=lake,
            columns=columns,
            batch_rows=model.batch_rows,
            batch_bytes=model.batch_bytes,
        ),
        schema=schema,
        names=(lake.folder.root,),
        table_version=lake.version,
    )


def find_files(source: Files) -> list[tuple[str, FileFormat]]:
    """Return the paths of the input files with their formats, sorted by path.

    Raises:
        InputError: If a pattern matches no file, or no file fulfils the conditions.
        UsageError: If the format of a file is not known, or a condition names no folder.
    """
    files = match_inputs(source.patterns, source.conditions)
    return [(file.path, source.file_format or format_of(file.path)) for file in files]


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


def _open_bigquery(
    source: Table | Query,
    columns: Columns,
    fields: OutputFields,
    *,
    cloud: Cloud,
    folder: RunFolder | None,
    model: ModelConfig,
) -> Source:
    """Return a table or a query as a source, after checking its columns."""
    if source.method == "export" and folder is None:
        raise UsageError(
            "--read_method export writes files to a bucket: pass --temp_location gs://BUCKET/FOLDER"
        )
    if isinstance(source, Table):
        table = TableName.parse(source.name, "input_table", cloud.project)
        found = BigQuerySource(
            cloud=cloud, table=table, query=None, row_restriction=source.row_restriction
        )
    else:
        query = read_text(source.sql, "input_query")
        found = BigQuerySource(cloud=cloud, table=None, query=query, max_bytes=source.max_bytes)
    columns = replace(columns, any_case=True)
    schema = columns.spelled(describe_source(found))
    check_columns(schema, found.label, columns, fields)
    found = at_one_moment(found)
    transform = ReadBigQuery(
        source=found,
        columns=columns,
        batch_rows=model.batch_rows,
        batch_bytes=model.batch_bytes,
        method=source.method,
        folder=folder,
    )
    names = (str(found.table or found.query),)
    return Source(
        transform=transform, schema=schema, names=names, exports=source.method == "export"
    )


def read_text(text: str, flag: str) -> str:
    """Return the text of a flag, which may be @ followed by the path of a file that holds it.

    Args:
        text: The value of the flag.
        flag: The name of the flag, for errors.

    Raises:
        UsageError: If the file cannot be read.
    """
    if not text.startswith("@"):
        return text
    what = f"--{flag}: {text[1:]} cannot be read"
    try:
        with translate_errors(UsageError, what), FileSystems.open(text[1:]) as handle:
            # Some editors on Windows put a byte order mark at the start of a file.
            return str(handle.read().decode("utf-8-sig"))
    except (BeamIOError, OSError, UnicodeDecodeError) as error:
        check_memory(error, what)
        raise UsageError(f"{what}: {one_line(error)}") from error
