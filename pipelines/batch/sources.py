"""The source of a batch run, looked at first so that what is wrong is reported at once."""

from __future__ import annotations

from dataclasses import dataclass

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from cloud.clients import Cloud
from cloud.errors import translate_errors
from common.errors import InputError, UsageError, one_line, suggest
from common.memory import check_memory
from model_handlers.manifest import Manifest
from pipelines.batch.config import BatchConfig, Files, Query, Table
from transforms.bigquery.read import ReadBigQuery
from transforms.bigquery.schema import TableName
from transforms.bigquery.source import BigQuerySource, at_one_moment, describe_source
from transforms.encode import OutputFields, check_fields
from transforms.files.ranges import FileFormat, file_schema, format_of, has_rows, match_files
from transforms.files.read import Columns, ReadFiles
from transforms.files.run_folder import RunFolder
from transforms.lineage import Lineage
from transforms.provenance import Provenance


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the rows come from.

    transform: a PTransform that returns transforms.files.read.Read. schema: the columns,
    None where each row names its own. names: for the report. lineage: of a replay. exports:
    it writes files of its own in the temp location.
    """

    transform: beam.PTransform
    schema: pa.Schema | None
    names: tuple[str, ...]
    lineage: Lineage | None = None
    exports: bool = False


def open_source(
    config: BatchConfig,
    manifest: Manifest,
    fields: OutputFields,
    *,
    provenance: Provenance,
    cloud: Cloud | None,
    folder: RunFolder | None,
) -> Source:
    """A batch run -> its source, looked at. Raises InputError, UsageError.

    cloud: given where BigQuery is read. folder: in the temp location, if there is one.
    """
    columns = Columns(manifest, config.id_column, fields.source)
    if isinstance(config.source, Files):
        return _open_files(config.source, columns, fields, provenance, config.model.batch_rows)
    if cloud is None:
        raise TypeError(f"expected a Cloud to read {config.source}")
    return _open_bigquery(
        config.source,
        columns,
        fields,
        cloud=cloud,
        folder=folder,
        batch_rows=config.model.batch_rows,
    )


def _open_files(
    source: Files, columns: Columns, fields: OutputFields, provenance: Provenance, batch_rows: int
) -> Source:
    """Files -> their source, the first with rows looked at. Raises InputError, UsageError."""
    schema = check_files(source.patterns, source.file_format, columns, fields)
    transform = ReadFiles(
        patterns=source.patterns,
        columns=columns,
        provenance=provenance,
        file_format=source.file_format,
        batch_rows=batch_rows,
    )
    return Source(transform=transform, schema=schema, names=source.patterns)


def check_files(
    patterns: tuple[str, ...],
    file_format: FileFormat | None,
    columns: Columns,
    fields: OutputFields,
) -> pa.Schema | None:
    """Input patterns -> the columns of the first file with rows, None where rows name their own.

    Raises InputError, UsageError if there are no rows, or columns are missing. Each
    worker looks at those of its own files.
    """
    files = [(file.path, file_format or format_of(file.path)) for file in match_files(patterns)]
    found = next((file for file in files if has_rows(*file)), None)
    if found is None:
        raise InputError(f"the input is empty: {files[0][0]} holds no rows, nor does any other")
    schema = file_schema(*found)
    if schema is not None:
        check_columns(schema, found[0], columns, fields)
    # Of text, the types are only known row by row.
    return schema if found[1] == "parquet" else None


def check_columns(schema: pa.Schema, place: str, columns: Columns, fields: OutputFields) -> None:
    """A source's columns -> nothing, or an error with the nearest names if some are missing."""
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
    batch_rows: int,
) -> Source:
    """A table or a query -> its source, its columns looked at. Raises InputError, UsageError."""
    if source.method == "export" and folder is None:
        raise UsageError(
            "--read_method export writes files: say --temp_location gs://BUCKET/FOLDER"
        )
    if isinstance(source, Table):
        table = TableName.parse(source.name, "input_table", cloud.project)
        found = BigQuerySource(
            cloud=cloud, table=table, query=None, row_restriction=source.row_restriction
        )
    else:
        query = read_text(source.sql, "input_query")
        found = BigQuerySource(cloud=cloud, table=None, query=query, max_bytes=source.max_bytes)
    schema = describe_source(found)
    check_columns(schema, found.label, columns, fields)
    found = at_one_moment(found)
    transform = ReadBigQuery(
        source=found, columns=columns, batch_rows=batch_rows, method=source.method, folder=folder
    )
    names = (str(found.table or found.query),)
    return Source(
        transform=transform, schema=schema, names=names, exports=source.method == "export"
    )


def read_text(text: str, flag: str) -> str:
    """A flag's text, or @ and the path of a file that holds it -> the text. Raises UsageError."""
    if not text.startswith("@"):
        return text
    what = f"--{flag}: {text[1:]} cannot be read"
    try:
        with translate_errors(UsageError, what), FileSystems.open(text[1:]) as handle:
            # Some editors on Windows mark the begin of a file as UTF-8.
            return str(handle.read().decode("utf-8-sig"))
    except (BeamIOError, OSError, UnicodeDecodeError) as error:
        check_memory(error, what)
        raise UsageError(f"{what}: {one_line(error)}") from error
