"""The source of a batch run, checked before the run starts."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from cloud.clients import Cloud
from cloud.errors import translate_errors
from common.errors import InputError, UsageError, one_line
from common.memory import check_memory
from model_handlers.manifests.manifest import Manifest
from pipelines.batch.bigquery_source import find_query, find_table
from pipelines.batch.config import BatchConfig, Files, Query, Table
from pipelines.batch.destinations import present_columns
from pipelines.batch.input_files import (
    check_columns,
    check_files,
    key_types,
    passed_on,
    unsplit_bytes,
    with_formats,
)
from pipelines.batch.spread import Volume
from pipelines.config import ModelConfig
from transforms.bigquery.query_table import QueryTable
from transforms.bigquery.read import ReadBigQuery
from transforms.files.columns import Columns
from transforms.files.csv.dialect import PLAIN
from transforms.files.ranges import FileFormat, match_inputs
from transforms.files.read import ReadFiles
from transforms.files.sink.run_folder import RunFolder
from transforms.lakes.read import ReadLake
from transforms.lakes.table import LakeVersion, find_lake, lake_errors
from transforms.lineage import Lineage
from transforms.output_fields import OutputFields
from transforms.provenance import Provenance

# Streams of a read session for each CPU of the workers, so that all are busy until the end.
STREAMS_A_CPU = 4


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
        results: The table of the result of a query, which is deleted after the run.
        volume: What is known about the size of the source.
        spread: Whether a shuffle separates reading from predicting.
    """

    transform: beam.PTransform
    schema: pa.Schema | None
    names: tuple[str, ...]
    lineage: Lineage | None = None
    exports: bool = False
    origins: Mapping[str, str] | None = None
    table_version: int | None = None
    results: QueryTable | None = None
    volume: Volume = field(default_factory=Volume)
    spread: bool = False


def open_source(
    config: BatchConfig,
    manifest: Manifest,
    fields: OutputFields,
    *,
    provenance: Provenance,
    cloud: Cloud | None,
    folder: RunFolder | None,
    cpus: int,
) -> Source:
    """Check the source of a batch run, and return it.

    Args:
        config: The configuration of the run.
        manifest: The manifest of the model.
        fields: The fields that are written of each row.
        provenance: The run and the model.
        cloud: The Cloud that reads BigQuery. Needed only for BigQuery.
        folder: The folder of the run in the temp location, or None if there is none.
        cpus: About how many CPUs the workers have together.

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
            range_rows=config.range_rows,
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
        cpus=cpus,
    )


def _open_files(
    source: Files,
    columns: Columns,
    fields: OutputFields,
    *,
    provenance: Provenance,
    model: ModelConfig,
    range_rows: int | None,
    present: pa.Schema,
) -> Source:
    """Return files as a source, after checking the first that has rows.

    `present` has the columns of the table that exists and is written, under names in lower case.
    """
    lake = (
        find_lake(source.patterns[0], source.table_version) if len(source.patterns) == 1 else None
    )
    if lake is not None:
        _check_ranges(source, "a Delta Lake or Iceberg table is read file by file")
        return _open_lake(lake, columns, fields, model)
    if source.table_version is not None:
        raise UsageError(
            "--table_version needs one --input_files, the folder of a Delta Lake or Iceberg table, "
            f"got {', '.join(source.patterns)}"
        )
    matched = match_inputs(source.patterns, source.conditions)
    files = with_formats(matched, source.file_format)
    _check_kinds(source, {kind for _, kind in files})
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
        range_rows=range_rows,
    )
    return Source(
        transform=transform,
        schema=schema,
        names=source.patterns,
        origins=origins,
        volume=Volume(unsplit=unsplit_bytes(matched, multiline=source.dialect.multiline)),
    )


def _check_kinds(source: Files, kinds: Set[FileFormat]) -> None:
    """Raise UsageError if there are flags that have no effect on files of these formats."""
    if source.dialect != PLAIN and "csv" not in kinds:
        raise UsageError(
            "the --csv_* flags have no effect: no input file is CSV; remove them, or check "
            "--input_files and --input_format"
        )
    if "parquet" not in kinds:
        _check_ranges(source, "no input file is Parquet")


def _check_ranges(source: Files, why: str) -> None:
    """Raise UsageError if --range_rows is given, which has no effect for a reason."""
    if source.range_rows is not None:
        raise UsageError(f"--range_rows has no effect: {why}; leave it out")


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


def _open_bigquery(
    source: Table | Query,
    columns: Columns,
    fields: OutputFields,
    *,
    cloud: Cloud,
    folder: RunFolder | None,
    model: ModelConfig,
    cpus: int,
) -> Source:
    """Return a table or a query as a source, after checking its columns."""
    if source.method == "export" and folder is None:
        raise UsageError(
            "--read_method export writes files to a bucket: pass --temp_location gs://BUCKET/FOLDER"
        )
    if isinstance(source, Table):
        found = find_table(source, cloud)
    else:
        found = find_query(source, read_text(source.sql, "input_query"), cloud)
    columns = replace(columns, any_case=True)
    schema = columns.spelled(found.schema)
    check_columns(schema, found.source.label, columns, fields)
    found = found.at_one_moment()
    transform = ReadBigQuery(
        source=found.source,
        columns=columns,
        batch_rows=model.batch_rows,
        batch_bytes=model.batch_bytes,
        method=source.method,
        folder=folder,
        results=found.results,
        streams=STREAMS_A_CPU * cpus,
    )
    return Source(
        transform=transform,
        schema=schema,
        names=(str(found.source.table or found.source.query),),
        exports=source.method == "export",
        results=found.results,
        volume=found.volume(source.method, len(columns.names(schema, found.source.label))),
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
