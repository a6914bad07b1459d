"""From flags to a source, looked at before the run so that what is wrong is told at once."""

from __future__ import annotations

from dataclasses import dataclass

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from cloud.clients import Cloud
from cloud.errors import told_as
from common.errors import InputError, UsageError, nearest, one_line
from common.memory import check_memory
from model_handlers.manifest import Manifest
from pipelines.options import ModelOptions, SourceOptions
from pipelines.options.flag import Parsed
from transforms.bigquery.read import ReadBigQuery
from transforms.bigquery.schema import TableName
from transforms.bigquery.source import BigQuerySource, at_one_moment, describe
from transforms.encode import OutputFields, check_fields
from transforms.failures import Provenance
from transforms.files.ranges import FileFormat, file_schema, format_of, has_rows, match_files
from transforms.files.read import Columns, ReadFiles
from transforms.files.run_folder import RunFolder
from transforms.lineage import Lineage

# Flags that mean nothing to other sources.
_ONLY_FOR = {
    "input_format": {"--input_files"},
    "row_restriction": {"--input_table"},
    "read_method": {"--input_query", "--input_table"},
    "max_bytes_billed": {"--input_query"},
}


@dataclass(frozen=True)
class Source:
    """Where the rows come from.

    transform: a PTransform that returns transforms.files.read.Read. schema: the columns,
    None where each row names its own. names: for the report. lineage: of a replay.
    """

    transform: beam.PTransform
    schema: pa.Schema | None
    names: tuple[str, ...]
    lineage: Lineage | None = None


def reads_bigquery(parsed: Parsed) -> bool:
    """Whether the flags name a table or a query. Raises UsageError unless they name one source."""
    source = parsed.get(SourceOptions)
    given = [
        f"--{name}"
        for name in ("input_files", "input_table", "input_query")
        if getattr(source, name) is not None
    ]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)}: expected one source")
    for name, allowed in _ONLY_FOR.items():
        if getattr(source, name) != getattr(SourceOptions(), name) and not set(given) & allowed:
            raise UsageError(
                f"--{name} is for {' and '.join(sorted(allowed))}, not for {' '.join(given)}"
            )
    return source.input_files is None


def exports(parsed: Parsed) -> bool:
    """Whether the source writes files of its own in the temp location."""
    return parsed.get(SourceOptions).read_method == "export"


def open_files(
    parsed: Parsed, manifest: Manifest, fields: OutputFields, provenance: Provenance
) -> Source:
    """Flags -> files, the first with rows looked at. Raises InputError, UsageError."""
    source = parsed.get(SourceOptions)
    columns = Columns(manifest, source.id_column, fields.source)
    patterns = source.input_files or ()
    file_format: FileFormat | None = (
        None if source.input_format == "auto" else source.input_format  # type: ignore[assignment]
    )
    schema = check_files(patterns, file_format, columns, fields)
    batch_rows = parsed.get(ModelOptions).rows()
    transform = ReadFiles(patterns, columns, provenance, file_format, batch_rows)
    return Source(transform, schema, patterns)


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
            f"{nearest(id_column, schema.names)}; it has {', '.join(schema.names[:40])}"
        )
    check_fields(fields, columns.manifest, schema.names)
    columns.names(schema, place)


def open_bigquery(
    parsed: Parsed, manifest: Manifest, fields: OutputFields, cloud: Cloud, folder: RunFolder | None
) -> Source:
    """Flags -> a table or a query's result, its columns looked at. Raises InputError, UsageError.

    folder: in the temp location, where --temp_location names one.
    """
    options = parsed.get(SourceOptions)
    if options.read_method == "export" and folder is None:
        raise UsageError(
            "--read_method export writes files: say --temp_location gs://BUCKET/FOLDER"
        )
    table = None
    if options.input_table is not None:
        table = TableName.parse(options.input_table, "input_table", cloud.project)
    source = BigQuerySource(
        cloud,
        table,
        None if options.input_query is None else read_text(options.input_query, "input_query"),
        options.row_restriction,
        max_bytes=options.max_bytes_billed,
    )
    columns = Columns(manifest, options.id_column, fields.source)
    schema = describe(source)
    check_columns(schema, source.label, columns, fields)
    source = at_one_moment(source)
    batch_rows = parsed.get(ModelOptions).rows()
    method = options.read_method
    transform = ReadBigQuery(source, columns, batch_rows, method, folder)  # type: ignore[arg-type]
    return Source(transform, schema, (str(table or source.query),))


def read_text(text: str, flag: str) -> str:
    """A flag's text, or @ and the path of a file that holds it -> the text. Raises UsageError."""
    if not text.startswith("@"):
        return text
    what = f"--{flag}: {text[1:]} cannot be read"
    try:
        with told_as(UsageError, what), FileSystems.open(text[1:]) as handle:
            # Some editors on Windows mark the begin of a file as UTF-8.
            return str(handle.read().decode("utf-8-sig"))
    except (BeamIOError, OSError, UnicodeDecodeError) as error:
        check_memory(error, what)
        raise UsageError(f"{what}: {one_line(error)}") from error
