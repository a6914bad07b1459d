"""The destinations of the scored rows, of the dead letters and of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from cloud.clients import Cloud
from cloud.errors import translate_errors
from common.errors import OutputError, UsageError, suggest
from pipelines.batch.config import FilesSink, RunConfig, Sink, TableSink
from pipelines.cloud_access import GCS
from transforms.bigquery.destination import TableDestination
from transforms.bigquery.schema import TableName, arrow_schema
from transforms.bigquery.tables import find_table
from transforms.dead_letter_schema import FAILURE_SCHEMA
from transforms.files.sink.destination import Destination, FolderDestination
from transforms.files.sink.run_folder import DEAD_LETTERS, SCORES, RunFolder
from transforms.lineage import Lineage
from transforms.provenance import Provenance


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run.

    Attributes:
        token: A random text that distinguishes the attempts at a run.
        temp: The folder of the attempt in the temp location, or None if that is not a bucket.
    """

    run_id: str
    token: str
    temp: RunFolder | None

    def folder(self, root: str) -> RunFolder:
        """Return the folder of the run in a root folder."""
        return RunFolder(root, self.run_id, self.token)


@dataclass(frozen=True)
class RowsToWrite:
    """What is known of the output rows before the run.

    Attributes:
        schema: The columns of the rows.
        time_column: The column by which new tables are partitioned.
        provenance: The run and the model that the rows name.
    """

    schema: pa.Schema
    time_column: str
    provenance: Provenance


def new_attempt(run_id: str, token: str, options: PipelineOptions) -> Attempt:
    """Return an attempt at a run.

    Args:
        run_id: The id of the run.
        token: A random text that distinguishes the attempts at a run.
        options: Beam's options, whose temp location holds the folder of the attempt.
    """
    root = _temp_root(options.view_as(GoogleCloudOptions).temp_location)
    return Attempt(run_id, token, None if root is None else RunFolder(root, run_id, token))


def _temp_root(location: str | None) -> str | None:
    """Return the root of the runs in a temp location, or None if that is not a bucket."""
    if not (location or "").startswith(GCS):
        return None
    # BigQuery reads two slashes in the address of a file as one, and then does not find the file.
    parts = [part for part in str(location).removeprefix(GCS).split("/") if part]
    return f"{GCS}{'/'.join(parts)}/millrace"


def open_destinations(
    config: RunConfig,
    attempt: Attempt,
    rows: RowsToWrite,
    cloud: Cloud | None,
    lineage: Lineage | None = None,
) -> list[Destination]:
    """Return the destinations of the rows and of the dead letters of a run.

    Args:
        config: The configuration of the run.
        attempt: The attempt at the run.
        rows: The rows to write.
        cloud: The Cloud that writes tables. Needed only for tables.
        lineage: The dead letters that a replay scores, or None for other runs.

    Raises:
        UsageError: If a table needs a temp location, if two sinks are the same table, or if
            --cluster_by does not fit the rows.
    """
    letters = replace(rows, schema=FAILURE_SCHEMA, time_column="failed_at")
    sinks = [(SCORES, sink, rows) for sink in config.sinks]
    sinks += [(DEAD_LETTERS, sink, letters) for sink in config.letter_sinks]
    # The report goes to the first destination: next to files, if the run writes any.
    sinks.sort(key=lambda entry: isinstance(entry[1], TableSink))
    found: list[Destination] = []
    for part, sink, kind in sinks:
        if isinstance(sink, FilesSink):
            folder = attempt.folder(sink.folder)
            found.append(FolderDestination(part, folder, sink.file_format))
            continue
        table = replace(_open_table(part, sink, kind, attempt, cloud), lineage=lineage)
        if any(other.place == table.place for other in found):
            raise UsageError(
                f"--{sink.flag} and --output_table are both {table.place}: choose another table"
            )
        found.append(table)
    return found


def _open_table(
    part: str, sink: TableSink, rows: RowsToWrite, attempt: Attempt, cloud: Cloud | None
) -> TableDestination:
    """Return the destination of rows in a table. Raises UsageError."""
    if cloud is None:
        raise TypeError(f"expected a Cloud to write {sink.name}")
    if attempt.temp is None:
        raise UsageError(
            "a BigQuery table is loaded from files in a bucket: pass "
            "--temp_location gs://BUCKET/FOLDER"
        )
    table = TableName.parse(sink.name, sink.flag, cloud.project)
    return TableDestination(
        part=part,
        folder=attempt.temp,
        cloud=cloud,
        table=table,
        schema=rows.schema,
        provenance=rows.provenance,
        write_disposition=sink.disposition,
        time_column=rows.time_column,
        cluster_by=cluster_columns(sink.cluster_by, rows.schema),
    )


def present_columns(sinks: Sequence[Sink], cloud: Cloud | None) -> pa.Schema:
    """Return the columns of the existing table among sinks, by their names in lower case.

    Args:
        sinks: The sinks of the rows.
        cloud: The Cloud that looks at the table, or None if there is none.

    Raises:
        OutputError: The table cannot be read.
    """
    name = next((sink.name for sink in sinks if isinstance(sink, TableSink)), None)
    if name is None or cloud is None:
        return pa.schema([])
    with translate_errors(OutputError, f"table {name} cannot be written"):
        parsed = TableName.parse(name, "output_table", cloud.project)
        table = find_table(cloud.bigquery(), parsed, cloud)
    columns = arrow_schema(() if table is None else table.schema)
    return pa.schema([field.with_name(field.name.lower()) for field in columns])


def cluster_columns(names: tuple[str, ...], schema: pa.Schema) -> tuple[str, ...]:
    """Return the columns by which a table of the rows is clustered, as the rows spell them.

    Raises:
        UsageError: The rows lack a column, or there are too many.
    """
    spelled = {name.lower(): name for name in schema.names}
    for name in names:
        if name.lower() not in spelled:
            raise UsageError(
                f"--cluster_by: no output column {name!r}{suggest(name, schema.names)}; "
                f"choose from {', '.join(schema.names)}"
            )
    if len(names) > 4:
        raise UsageError(f"--cluster_by takes at most four columns, got {len(names)}")
    return tuple(spelled[name.lower()] for name in names)


def report_folder(destinations: list[Destination]) -> RunFolder:
    """Return the folder of the report: the folder of the first destination."""
    return destinations[0].folder


def report_place(config: RunConfig, temp_location: str) -> str | None:
    """Return where a run on Dataflow writes its report.

    Args:
        config: The configuration of the run.
        temp_location: The temp location of the job, a folder in a bucket.

    Returns:
        The path, or None if the flags do not name the run.
    """
    if config.run.run_id is None:
        return None
    sinks = (*config.sinks, *config.letter_sinks)
    folder = next((sink.folder for sink in sinks if isinstance(sink, FilesSink)), None)
    return RunFolder(folder or str(_temp_root(temp_location)), config.run.run_id, "").report
