"""The sinks of a stream's rows and dead letters: read from flags, and checked before the start."""

from __future__ import annotations

import os

import pyarrow as pa
from google.api_core import exceptions

from cloud.clients import Cloud
from cloud.errors import lacks_role, retry, translate_errors
from common.errors import OutputError, UsageError
from pipelines.batch.destinations import cluster_columns
from pipelines.options import StreamFailureOptions, StreamSinkOptions
from pipelines.stream.graph import StreamSinks
from transforms.bigquery.schema import TableName
from transforms.bigquery.tables import (
    check_table,
    create_table,
    find_table,
    look_at_table,
)
from transforms.dead_letter_schema import FAILURE_SCHEMA
from transforms.files.sink.run_folder import DEAD_LETTERS, SCORES
from transforms.files.sink.stream_files import check_folder
from transforms.files.sink.unfinished import remove_dead
from transforms.output_fields import OutputFields


def open_sinks(
    sink: StreamSinkOptions, failures: StreamFailureOptions, cloud: Cloud
) -> tuple[StreamSinks, StreamSinks]:
    """Return the sinks of the rows, and the sinks of the dead letters.

    Args:
        sink: The flags of the sinks for rows.
        failures: The flags of the sinks for dead letters. If they name no topic and no files, dead
            letters go to a table beside the table of the rows.
        cloud: The project for tables that are named without one.

    Raises:
        UsageError: A table's name is invalid, or both tables are the same.
    """
    rows = StreamSinks(
        sink.output_topic,
        _table(sink.output_table, "output_table", cloud),
        None if sink.output_files is None else os.path.join(sink.output_files, SCORES),
        sink.file_seconds,
        sink.keep_ordering_keys,
    )
    letter_table = failures.dead_letter_table
    if not (failures.dead_letter_topic or failures.dead_letter_files):
        letter_table = letter_table or f"{rows.table}_dead_letters"
    letters = StreamSinks(
        failures.dead_letter_topic,
        _table(letter_table, "dead_letter_table", cloud),
        None
        if failures.dead_letter_files is None
        else os.path.join(failures.dead_letter_files, DEAD_LETTERS),
        sink.file_seconds,
    )
    if rows.table is not None and rows.table == letters.table:
        raise UsageError(
            f"--dead_letter_table and --output_table are both {rows.table}: choose another table"
        )
    return rows, letters


def _table(name: str | None, flag: str, cloud: Cloud) -> TableName | None:
    return None if name is None else TableName.parse(name, flag, cloud.project)


def prepare_sinks(
    rows: StreamSinks,
    letters: StreamSinks,
    schema: pa.Schema,
    *,
    fields: OutputFields,
    cluster_by: tuple[str, ...],
    cloud: Cloud,
) -> None:
    """Check every sink before the run, and create tables and folders that do not exist.

    Args:
        rows: The sinks of the rows.
        letters: The sinks of the dead letters.
        schema: The schema of the rows.
        fields: The fields that are written of each row.
        cluster_by: The columns by which a new table of rows is clustered.
        cloud: The project, the service addresses and how long to retry.

    Raises:
        OutputError: A sink cannot be written.
        UsageError: `cluster_by` names a column that cannot be used.
    """
    clusters = cluster_columns(cluster_by, schema)
    _prepare(rows, schema, fields.time_column, clusters, cloud)
    _prepare(letters, FAILURE_SCHEMA, "failed_at", (), cloud)


def look_at_tables(
    rows: StreamSinks,
    letters: StreamSinks,
    schema: pa.Schema,
    *,
    cluster_by: tuple[str, ...],
    cloud: Cloud,
) -> None:
    """Check the tables among the sinks before a dry run, and change nothing.

    Args:
        rows: The sinks of the rows.
        letters: The sinks of the dead letters.
        schema: The schema of the rows.
        cluster_by: The columns by which a new table of rows is clustered.
        cloud: The project, the service addresses and how long to retry.

    Raises:
        OutputError: A table cannot be read, or cannot hold the rows.
        UsageError: `cluster_by` names a column that cannot be used.
    """
    clusters = cluster_columns(cluster_by, schema)
    if rows.table is not None:
        look_at_table(rows.table, schema, clusters, cloud)
    if letters.table is not None:
        look_at_table(letters.table, FAILURE_SCHEMA, (), cloud)


def _prepare(
    to: StreamSinks, schema: pa.Schema, time_column: str, clusters: tuple[str, ...], cloud: Cloud
) -> None:
    if to.table is not None:
        with translate_errors(OutputError, f"table {to.table} cannot be written"):
            client = cloud.bigquery()
            table = find_table(client, to.table, cloud) or create_table(
                client, to.table, schema, time_column=time_column, cluster_by=clusters, cloud=cloud
            )
        check_table(table, schema, clusters)
    if to.topic is not None:
        with translate_errors(OutputError, f"topic {to.topic} cannot be published to"):
            _check_topic(to.topic, cloud)
    if to.folder is not None:
        check_folder(to.folder)
        remove_dead(to.folder)


def _check_topic(topic: str, cloud: Cloud) -> None:
    """Raise an error of Google's client if a topic does not exist."""
    try:
        cloud.publisher().get_topic(topic=topic, retry=retry(cloud.retry_seconds))
    except exceptions.PermissionDenied as error:
        # An account that may publish need not have the permission to look up the topic.
        if not lacks_role(error):
            raise
