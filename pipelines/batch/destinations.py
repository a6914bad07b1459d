"""The places of the scored rows, of the dead letters and of the report."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from cloud.clients import Cloud
from common.errors import UsageError, suggest
from pipelines.batch.config import FilesSink, RunConfig, TableSink
from pipelines.cloud_access import GCS
from transforms.bigquery.destination import TableDestination
from transforms.bigquery.schema import TableName
from transforms.dead_letter_schema import FAILURE_SCHEMA
from transforms.files.destination import Destination, FolderDestination
from transforms.files.run_folder import DEAD_LETTERS, SCORES, RunFolder
from transforms.lineage import Lineage
from transforms.provenance import Provenance


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run. temp: its folder in the temp location, if there is one."""

    run_id: str
    token: str
    temp: RunFolder | None

    def folder(self, root: str) -> RunFolder:
        """A root folder -> the run's in it."""
        return RunFolder(root, self.run_id, self.token)


@dataclass(frozen=True)
class RowsToWrite:
    """What is known of rows before the run. time_column: by which new tables are partitioned."""

    schema: pa.Schema
    time_column: str
    provenance: Provenance


def new_attempt(run_id: str, token: str, options: PipelineOptions) -> Attempt:
    """A run's id, the attempt's token and Beam's options -> the attempt."""
    location = options.view_as(GoogleCloudOptions).temp_location
    if not (location or "").startswith(GCS):
        return Attempt(run_id, token, None)
    # BigQuery takes two slashes in a file's address for one, and finds nothing there.
    parts = [part for part in location.removeprefix(GCS).split("/") if part]
    return Attempt(run_id, token, RunFolder(f"{GCS}{'/'.join(parts)}/millrace", run_id, token))


def open_destinations(
    config: RunConfig,
    attempt: Attempt,
    rows: RowsToWrite,
    cloud: Cloud | None,
    lineage: Lineage | None = None,
) -> list[Destination]:
    """A run, its attempt and its rows -> the destinations of these and of its dead letters.

    cloud: given where a table is written. lineage: of a replay. Raises UsageError.
    """
    letters = replace(rows, schema=FAILURE_SCHEMA, time_column="failed_at")
    sinks = [(SCORES, sink, rows) for sink in config.sinks]
    sinks += [(DEAD_LETTERS, sink, letters) for sink in config.letter_sinks]
    # The report goes where the first of them goes: beside files, where there are any.
    sinks.sort(key=lambda entry: isinstance(entry[1], TableSink))
    found: list[Destination] = []
    for part, sink, kind in sinks:
        if isinstance(sink, FilesSink):
            folder = attempt.folder(sink.folder)
            found.append(FolderDestination(part, folder, sink.file_format))
            continue
        table = replace(_open_table(part, sink, kind, attempt, cloud), lineage=lineage)
        if any(other.place == table.place for other in found):
            raise UsageError(f"--{sink.flag} {table.place} is --output_table: expected another")
        found.append(table)
    return found


def _open_table(
    part: str, sink: TableSink, rows: RowsToWrite, attempt: Attempt, cloud: Cloud | None
) -> TableDestination:
    """A table by name, and the rows for it -> their destination. Raises UsageError."""
    if cloud is None:
        raise TypeError(f"expected a Cloud to write {sink.name}")
    if attempt.temp is None:
        raise UsageError(
            "a table is loaded from files in a bucket: say --temp_location gs://BUCKET/FOLDER"
        )
    table = TableName.parse(sink.name, sink.flag, cloud.project)
    check_cluster_by(sink.cluster_by, rows.schema)
    return TableDestination(
        part=part,
        folder=attempt.temp,
        cloud=cloud,
        table=table,
        schema=rows.schema,
        provenance=rows.provenance,
        write_disposition=sink.disposition,
        time_column=rows.time_column,
        cluster_by=sink.cluster_by,
    )


def check_cluster_by(names: tuple[str, ...], schema: pa.Schema) -> None:
    """Columns to cluster by, of the rows' schema -> nothing, or UsageError."""
    for name in names:
        if name not in schema.names:
            raise UsageError(
                f"--cluster_by: {name!r} is not written{suggest(name, schema.names)}; the columns "
                f"are {', '.join(schema.names)}"
            )
    if len(names) > 4:
        raise UsageError(f"--cluster_by: expected four columns at most, got {len(names)}")


def report_folder(destinations: list[Destination]) -> RunFolder:
    """The destinations -> the folder of the report: beside the first's files, or in temp."""
    return destinations[0].folder
