"""BigQuery tables: finding, creating and checking them, and counting their rows."""

from __future__ import annotations

import datetime

import pyarrow as pa
from google.api_core import exceptions
from google.cloud import bigquery

from cloud.clients import Cloud
from cloud.errors import retry, translate_errors
from common.errors import OutputError
from transforms.bigquery.schema import TableName, drift, same_names, table_fields


def find_table(client: bigquery.Client, table: TableName, cloud: Cloud) -> bigquery.Table | None:
    """Return a table, or None if it does not exist."""
    try:
        return client.get_table(str(table), retry=retry(cloud.retry_seconds))
    except exceptions.NotFound:
        return None


def count_rows(
    before: bigquery.Table, after: bigquery.Table, moment: datetime.datetime | None = None
) -> int | str:
    """Return the number of rows in a table at a moment, or the reason why it is not known.

    Args:
        before: The table just before the moment.
        after: The table just after it.
        moment: The moment by this machine's clock, if the table is read as of then.
    """
    if before.streaming_buffer is not None or after.streaming_buffer is not None:
        return "the table has rows in its streaming buffer, which its row count leaves out"
    if before.num_rows is None:
        return "the table has no row count"
    late = moment is not None and before.modified is not None and before.modified > moment
    if late or before.num_rows != after.num_rows:
        return "the table was written to while its rows were counted"
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
    """Create a table, unless it exists, and return it.

    Args:
        client: The client to use.
        table: The table's name.
        schema: The schema of the rows.
        time_column: The column by whose day the table is partitioned, if any.
        cluster_by: The columns by which the table is clustered.
        cloud: Limits retries.
    """
    new = bigquery.Table(str(table), schema=table_fields(schema))
    if time_column is not None:
        new.time_partitioning = bigquery.TimePartitioning(field=time_column)
    new.clustering_fields = list(cluster_by) or None
    return client.create_table(new, exists_ok=True, retry=retry(cloud.retry_seconds))


def look_at_table(
    table: TableName, schema: pa.Schema, cluster_by: tuple[str, ...], cloud: Cloud
) -> None:
    """Check a table before a run, and change nothing. A table that does not exist is fine.

    Args:
        table: The table's name.
        schema: The schema of the rows.
        cluster_by: The columns by which the table must be clustered; empty to accept any.
        cloud: The clients of Google Cloud.

    Raises:
        OutputError: The table cannot be read, or cannot hold the rows.
    """
    with translate_errors(OutputError, f"table {table} cannot be written"):
        found = find_table(cloud.bigquery(), table, cloud)
    if found is not None:
        check_table(found, schema, cluster_by)


def check_table(table: bigquery.Table, schema: pa.Schema, cluster_by: tuple[str, ...]) -> None:
    """Raise OutputError unless a table can hold rows of a schema.

    Args:
        table: The table as it is.
        schema: The schema of the rows.
        cluster_by: The columns by which the table must be clustered; empty to accept any.

    Raises:
        OutputError: The table is a view or the like, or its columns or its clustering differ.
    """
    name = f"{table.project}.{table.dataset_id}.{table.table_id}"
    if table.table_type != "TABLE":
        raise OutputError(f"{name} is a {table.table_type}: expected a table")
    if difference := drift(name, table_fields(schema), table.schema):
        raise OutputError(difference)
    present = tuple(table.clustering_fields or ())
    if cluster_by and not same_names(present, cluster_by):
        raise OutputError(
            f"table {name} is clustered by {', '.join(present) or 'nothing'}, not by "
            f"{', '.join(cluster_by)}: leave out --cluster_by, which applies only to new "
            "tables"
        )
