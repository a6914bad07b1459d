"""From flags to the places of the scored rows, of the dead letters and of the report."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from cloud.clients import Cloud
from common.errors import UsageError, nearest
from pipelines.cloud_access import GCS
from pipelines.options import FailureOptions, SinkOptions
from pipelines.options.flag import Parsed
from transforms.bigquery.destination import TableDestination
from transforms.bigquery.schema import TableName
from transforms.failures import Provenance
from transforms.files.destination import Destination, FolderDestination
from transforms.files.run_folder import DEAD_LETTERS, SCORES, RunFolder
from transforms.lineage import Lineage
from transforms.row_schemas import FAILURE_SCHEMA


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run. temp: its folder in the temp location, if there is one."""

    run_id: str
    token: str
    temp: RunFolder | None

    def folder(self, root: str) -> RunFolder:
        """A root folder -> the run's in it."""
        return RunFolder(root, self.run_id, self.token)


def new_attempt(run_id: str, token: str, options: PipelineOptions) -> Attempt:
    """A run's id, the attempt's token and Beam's options -> the attempt."""
    location = options.view_as(GoogleCloudOptions).temp_location
    if not (location or "").startswith(GCS):
        return Attempt(run_id, token, None)
    # BigQuery takes two slashes in a file's address for one, and finds nothing there.
    parts = [part for part in location.removeprefix(GCS).split("/") if part]
    return Attempt(run_id, token, RunFolder(f"{GCS}{'/'.join(parts)}/millrace", run_id, token))


def writes_bigquery(parsed: Parsed) -> bool:
    """Whether the flags name a table to write. Raises UsageError for flags that do not agree."""
    sink, failures = parsed.get(SinkOptions), parsed.get(FailureOptions)
    if sink.output_table is None and (sink.cluster_by or sink.write_disposition != "append"):
        raise UsageError("--cluster_by and --write_disposition are for --output_table")
    return sink.output_table is not None or failures.dead_letter_table is not None


def open_destinations(
    parsed: Parsed,
    attempt: Attempt,
    schema: pa.Schema,
    provenance: Provenance,
    time_column: str,
    cloud: Cloud | None,
    lineage: Lineage | None = None,
) -> list[Destination]:
    """Flags, and the schema of the scored rows -> their destinations and the dead letters'.

    cloud: given where a table is written. lineage: of a replay. Raises UsageError.
    """
    sink, failures = parsed.get(SinkOptions), parsed.get(FailureOptions)
    letters = failures.dead_letter_files
    if letters is None and failures.dead_letter_table is None:
        letters = sink.output_files
    found: list[Destination] = []
    if sink.output_files is not None:
        folder = attempt.folder(sink.output_files)
        found.append(FolderDestination(SCORES, folder, sink.output_format))  # type: ignore[arg-type]
    if letters is not None:
        found.append(FolderDestination(DEAD_LETTERS, attempt.folder(letters), "jsonl"))
    if cloud is None:
        return found
    if attempt.temp is None:
        raise UsageError(
            "a table is loaded from files in a bucket: say --temp_location gs://BUCKET/FOLDER"
        )
    letter_table = failures.dead_letter_table
    if sink.output_table is not None:
        scores = _open_table(sink, schema, provenance, time_column, cloud, attempt.temp)
        scores = replace(scores, lineage=lineage)
        found.append(scores)
        if letters is None and letter_table is None:
            letter_table = f"{scores.place}_dead_letters"
    if letter_table is not None:
        table = TableName.parse(letter_table, "dead_letter_table", cloud.project)
        if any(destination.place == str(table) for destination in found):
            raise UsageError(f"--dead_letter_table {table} is --output_table: expected another")
        found.append(
            TableDestination(
                DEAD_LETTERS,
                attempt.temp,
                cloud,
                table,
                FAILURE_SCHEMA,
                provenance,
                time_column="failed_at",
                lineage=lineage,
            )
        )
    return found


def _open_table(
    sink: SinkOptions,
    schema: pa.Schema,
    provenance: Provenance,
    time_column: str,
    cloud: Cloud,
    temp: RunFolder,
) -> TableDestination:
    """Flags that name a table, and the schema of the scored rows -> their destination."""
    table = TableName.parse(sink.output_table or "", "output_table", cloud.project)
    check_cluster_by(sink.cluster_by or (), schema)
    return TableDestination(
        SCORES,
        temp,
        cloud,
        table,
        schema,
        provenance,
        sink.write_disposition,  # type: ignore[arg-type]
        time_column,
        sink.cluster_by or (),
    )


def check_cluster_by(names: tuple[str, ...], schema: pa.Schema) -> None:
    """Columns to cluster by, of the rows' schema -> nothing, or UsageError."""
    for name in names:
        if name not in schema.names:
            raise UsageError(
                f"--cluster_by: {name!r} is not written{nearest(name, schema.names)}; the columns "
                f"are {', '.join(schema.names)}"
            )
    if len(names) > 4:
        raise UsageError(f"--cluster_by: expected four columns at most, got {len(names)}")


def report_folder(destinations: list[Destination]) -> RunFolder:
    """The destinations -> the folder of the report: beside the first's files, or in temp."""
    return destinations[0].folder
