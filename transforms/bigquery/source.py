"""A BigQuery table or query as the source of a run, checked before the run."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
from google.api_core import exceptions
from google.cloud import bigquery

from cloud.clients import Cloud
from cloud.errors import lacks_role, retry, translate_errors
from common.errors import InputError, UsageError
from transforms.accounts import QUERY_ROWS, TABLE_ROWS
from transforms.bigquery.schema import TableName, arrow_schema
from transforms.bigquery.tables import count_rows
from transforms.provenance import utc_now

_READABLE = ("TABLE", "SNAPSHOT", "CLONE")


@dataclass(frozen=True, kw_only=True)
class BigQuerySource:
    """A source in BigQuery: a table, or the result of a query.

    Attributes:
        cloud: Makes the clients, and limits retries.
        table: The table, or None if there is a query.
        query: The SQL of the query, or None if there is a table.
        row_restriction: The SQL condition of a WHERE clause, for a table.
        snapshot: The time as of which a table is read. With it, reading again returns the same
            rows.
        max_bytes: The number of bytes that a query may scan.
        attempt: Part of the job ids: a repeated bundle uses the results of its attempt's jobs,
            and another run does not.
        rows: The number of rows in the whole table at the snapshot, or the reason why it is not
            known. If None, the rows are counted when the table is read.
        flag: The flag that has the query, for messages.
    """

    cloud: Cloud
    table: TableName | None = None
    query: str | None = None
    row_restriction: str | None = None
    snapshot: datetime.datetime | None = None
    max_bytes: int | None = None
    attempt: str = field(default_factory=lambda: uuid.uuid4().hex)
    rows: int | str | None = None
    flag: str = "--input_query"

    @property
    def label(self) -> str:
        """The name of the source in messages."""
        return f"the result of {self.flag}" if self.query else f"table {self.table}"

    @property
    def counted_by(self) -> str:
        """The origin of the row count, for the report."""
        return QUERY_ROWS if self.query else TABLE_ROWS


def describe_source(source: BigQuerySource) -> pa.Schema:
    """Return the columns of a source; nothing is read or billed.

    Raises:
        InputError: The table cannot be read, or the query cannot be run.
        UsageError: The query would scan more than `max_bytes`.
        CredentialsError: There are no valid credentials.
    """
    client = source.cloud.bigquery()
    if source.table is None:
        return arrow_schema(plan_query(source).schema)
    with translate_errors(InputError, f"{source.label} cannot be read"):
        table = get_table(source)
    if table.table_type not in _READABLE:
        kind = str(table.table_type).lower().replace("_", " ")
        article = "an" if kind[0] in "aeiou" else "a"
        raise InputError(
            f"{source.table} is {article} {kind}, not a table: read it with --input_query "
            f'"SELECT * FROM `{source.table}`"'
        )
    if source.row_restriction is not None:
        _check_restriction(client, source)
    return arrow_schema(table.schema)


def get_table(source: BigQuerySource) -> bigquery.Table:
    """Return the table of a source as it is now.

    Raises:
        GoogleAPICallError: The request failed.
    """
    client, again = source.cloud.bigquery(), retry(source.cloud.retry_seconds)
    return client.get_table(str(source.table), retry=again)


def at_one_moment(source: BigQuerySource) -> BigQuerySource:
    """Return a table source with the present moment as its snapshot, and its rows counted.

    A query is returned unchanged.

    Raises:
        InputError: The table cannot be read.
    """
    if source.table is None:
        return source
    with translate_errors(InputError, f"{source.label} cannot be read"):
        before, now, after = get_table(source), utc_now(), get_table(source)
    return replace(source, snapshot=now, rows=count_rows(before, after, now))


def plan_query(source: BigQuerySource) -> bigquery.QueryJob:
    """Return the dry run of a query, which names its columns, its location and what it scans.

    Raises:
        InputError: The query cannot be run, or is not one SELECT.
        UsageError: The query would scan more than `max_bytes`.
        CredentialsError: There are no valid credentials.
    """
    with translate_errors(InputError, f"{source.flag} cannot be run"):
        job = dry_run(source.cloud.bigquery(), source.cloud, source.query or "")
    if job.statement_type != "SELECT":
        # The dry run of another statement may return columns too, of the table that it changes.
        raise InputError(
            f"{source.flag}: expected one SELECT, got {job.statement_type or 'no statement'}"
        )
    scanned = job.total_bytes_processed or 0
    if source.max_bytes is not None and scanned > source.max_bytes:
        raise UsageError(
            f"{source.flag} would scan {scanned:,} bytes, more than --max_bytes_billed "
            f"{source.max_bytes:,}: select fewer columns or partitions, or raise the limit"
        )
    return job


def _check_restriction(client: bigquery.Client, source: BigQuerySource) -> None:
    """Check a row restriction with a dry run, which is free."""
    with translate_errors(
        InputError, f"--row_restriction {source.row_restriction!r} cannot be used"
    ):
        try:
            dry_run(client, source.cloud, restricted(source, ["1"]))
        except exceptions.Forbidden as error:
            # An account may read a table without the permission to run queries.
            if not lacks_role(error):
                raise


def restricted(source: BigQuerySource, columns: Sequence[str]) -> str:
    """Return the query of a table's rows that meet the row restriction.

    Args:
        source: A table with a row restriction.
        columns: The SQL of each column to select.
    """
    # The bracket is on its own line, in case the restriction ends with a comment.
    where = f"({source.row_restriction}\n)"
    return f"SELECT {', '.join(columns)} FROM `{source.table}` WHERE {where}"


def dry_run(client: bigquery.Client, cloud: Cloud, sql: str) -> bigquery.QueryJob:
    """Return the job of a dry run, which says what a query would do and where; nothing is run.

    Args:
        client: The client of the project that would run the query.
        cloud: Limits retries.
        sql: The query.

    Raises:
        GoogleAPICallError: The query is invalid, or the account may not run it.
    """
    config = bigquery.QueryJobConfig(dry_run=True, use_query_cache=False)
    return client.query(sql, config, retry=retry(cloud.retry_seconds), job_retry=None)
