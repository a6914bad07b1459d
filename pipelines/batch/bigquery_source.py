"""A table or a query of BigQuery as the source of a run, looked at before the run starts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa
from google.cloud import bigquery

from cloud.clients import Cloud
from cloud.errors import retry, translate_errors
from common.errors import InputError
from pipelines.batch.config import Query, Table
from pipelines.batch.spread import Volume
from pipelines.command import say
from transforms.bigquery.query_table import QueryTable
from transforms.bigquery.schema import TableName, arrow_schema
from transforms.bigquery.source import (
    BigQuerySource,
    at_one_moment,
    describe_source,
    get_table,
    plan_query,
)

# About how many bytes a value takes in memory: FLOAT64 and INT64 have 8.
_VALUE_BYTES = 8
# From this size on, in bytes, a query is worth a word before it runs.
_LARGE_SCAN = 100 * 10**9


@dataclass(frozen=True, kw_only=True)
class FoundInBigQuery:
    """A source in BigQuery, as it was found.

    Attributes:
        source: The table or the query.
        schema: Its columns.
        results: The table for the result of a query, or None if no query is run.
        rows: About how many rows it has, or None if that is not known.
    """

    source: BigQuerySource
    schema: pa.Schema
    results: QueryTable | None = None
    rows: int | None = None

    def volume(self, method: str, columns: int) -> Volume:
        """Return what is known about its size.

        Args:
            method: The value of --read_method.
            columns: The number of columns that are read.
        """
        return Volume(session=method == "direct", rows=self.rows, row_bytes=columns * _VALUE_BYTES)

    def at_one_moment(self) -> FoundInBigQuery:
        """Return a table as it is now, with its rows counted; return a query unchanged."""
        source = at_one_moment(self.source)
        rows = source.rows if isinstance(source.rows, int) else self.rows
        return replace(self, source=source, rows=rows)


def find_table(table: Table, cloud: Cloud) -> FoundInBigQuery:
    """Return a table, after checking that it can be read.

    Raises:
        InputError: If the table or its row restriction cannot be read.
        UsageError: If the name is not that of a table.
    """
    name = TableName.parse(table.name, "input_table", cloud.project)
    source = BigQuerySource(
        cloud=cloud, table=name, query=None, row_restriction=table.row_restriction
    )
    schema, results = describe_source(source), None
    if table.method == "export" and table.row_restriction is not None:
        # An extract job can only export a whole table, so a query selects the rows first.
        location = get_table(source).location
        results = QueryTable.of(cloud, table.dataset, location, source.attempt)
    return FoundInBigQuery(source=source, schema=schema, results=results)


def find_query(query: Query, sql: str, cloud: Cloud) -> FoundInBigQuery:
    """Return a query, after checking it with a dry run.

    Args:
        query: The query and its limits.
        sql: The text of the query.
        cloud: The Cloud that runs it.

    Raises:
        InputError: If the query cannot be run.
        UsageError: If it would scan more bytes than --max_bytes_billed allows.
    """
    source = BigQuerySource(cloud=cloud, table=None, query=sql, max_bytes=query.max_bytes)
    plan = plan_query(source)
    if note := scan_note(plan, query.max_bytes) or empty_note(plan, cloud):
        say(note)
    schema = arrow_schema(plan.schema)
    # A query may return more rows than it scans, or fewer: this is all that is known of it.
    rows = (plan.total_bytes_processed or 0) // (_VALUE_BYTES * max(1, len(schema))) or None
    results = QueryTable.of(cloud, query.dataset, plan.location, source.attempt)
    return FoundInBigQuery(source=source, schema=schema, results=results, rows=rows)


def scan_note(plan: bigquery.QueryJob, limit: int | None) -> str:
    """Return a note on a query that scans very much, or "".

    Args:
        plan: The dry run of the query.
        limit: The number of bytes that it may scan, or None.
    """
    scanned = plan.total_bytes_processed or 0
    if scanned >= _LARGE_SCAN and limit is None:
        return (
            f"note: --input_query scans {scanned / 1e9:,.0f} GB, which BigQuery bills; "
            "--max_bytes_billed refuses queries that scan more than you expect"
        )
    return ""


def empty_note(plan: bigquery.QueryJob, cloud: Cloud) -> str:
    """Return a note on a query that reads only empty tables, or "".

    Args:
        plan: The dry run of the query.
        cloud: The Cloud that looks at the tables, if the query scans nothing.
    """
    if plan.total_bytes_processed or not plan.referenced_tables:
        return ""
    client, again = cloud.bigquery(), retry(cloud.retry_seconds)
    for name in plan.referenced_tables:
        with translate_errors(InputError, f"table {name} cannot be read"):
            table = client.get_table(name, retry=again)
        # Views and external tables have no rows of their own, and a buffer's are not counted.
        if table.table_type != "TABLE" or table.num_rows or table.streaming_buffer is not None:
            return ""
    names = ", ".join(str(name) for name in plan.referenced_tables)
    return (
        f"note: --input_query returns nothing, because it reads only {names}, without rows; "
        "--min_rows 1 fails such a run"
    )
