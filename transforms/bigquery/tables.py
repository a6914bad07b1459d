"""Tables of BigQuery: their rows counted, made if they are not there, looked at if they are."""

from __future__ import annotations

import datetime

import pyarrow as pa
from google.api_core import exceptions
from google.cloud import bigquery

from cloud.clients import Cloud
from cloud.errors import retry
from common.errors import OutputError
from transforms.bigquery.schema import TableName, drift, table_fields


def find_table(client: bigquery.Client, table: TableName, cloud: Cloud) -> bigquery.Table | None:
    """A table's name -> the table, None if it is not there."""
    try:
        return client.get_table(str(table), retry=retry(cloud.retry_seconds))
    except exceptions.NotFound:
        return None


def count_rows(
    before: bigquery.Table, after: bigquery.Table, moment: datetime.datetime | None = None
) -> int | str:
    """A table just before and just after a moment -> its rows then, or why they are not known.

    moment: by the clock of this machine, where the table is read as it was then.
    """
    if before.streaming_buffer is not None or after.streaming_buffer is not None:
        return "the table has rows in its streaming buffer, which its row count leaves out"
    if before.num_rows is None:
        return "the table has no row count"
    late = moment is not None and before.modified is not None and before.modified > moment
    if late or before.num_rows != after.num_rows:
        return "the table was written while its rows were counted"
    return int(before.num_rows)


def create_table(
    client: bigquery.Client,
    table: TableName,
    schema: pa.Schema,
    *,
    time_column: str | None,
    cluster_by: tuple[str, ...],
    cloud: Cloud,
) -> bigquery.Table:
    """A name and the schema of rows -> the table, partitioned by the day of its time column."""
    new = bigquery.Table(str(table), schema=table_fields(schema))
    if time_column is not None:
        new.time_partitioning = bigquery.TimePartitioning(field=time_column)
    new.clustering_fields = list(cluster_by) or None
    return client.create_table(new, exists_ok=True, retry=retry(cloud.retry_seconds))


def check_table(table: bigquery.Table, schema: pa.Schema, cluster_by: tuple[str, ...]) -> None:
    """A table as it is and the schema of rows -> nothing, or OutputError if they do not fit."""
    name = f"{table.project}.{table.dataset_id}.{table.table_id}"
    if table.table_type != "TABLE":
        raise OutputError(f"{name} is a {table.table_type}: expected a table")
    if difference := drift(name, table_fields(schema), table.schema):
        raise OutputError(difference)
    present = tuple(table.clustering_fields or ())
    if cluster_by and present != cluster_by:
        raise OutputError(
            f"table {name} is clustered by {', '.join(present) or 'nothing'}, not by "
            f"{', '.join(cluster_by)}: leave --cluster_by out, which is for new tables"
        )
