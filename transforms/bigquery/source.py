"""What is read of BigQuery: a table or a query, looked at before the run."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
from google.api_core import exceptions
from google.cloud import bigquery

from cloud.clients import Cloud
from cloud.errors import retry, translate_errors
from common.errors import InputError, UsageError
from transforms.accounts import QUERY_ROWS, TABLE_ROWS
from transforms.bigquery.schema import TableName, arrow_schema
from transforms.bigquery.tables import count_rows
from transforms.provenance import utc_now

_READABLE = ("TABLE", "SNAPSHOT", "CLONE")


@dataclass(frozen=True, kw_only=True)
class BigQuerySource:
    """What is read: a table, or else a query's result.

    row_restriction: SQL of a WHERE clause, for a table. snapshot: the moment at which
    a table is read, so that whatever is read again is the same. max_bytes: a query
    that would scan more is refused. attempt: names the jobs, so that a repeated bundle
    takes their results, and no other run does. rows: of the whole table at the snapshot, or
    why they are not known; None: they are counted when it is read.
    """

    cloud: Cloud
    table: TableName | None = None
    query: str | None = None
    row_restriction: str | None = None
    snapshot: datetime.datetime | None = None
    max_bytes: int | None = None
    attempt: str = field(default_factory=lambda: uuid.uuid4().hex)
    rows: int | str | None = None

    @property
    def label(self) -> str:
        """The source's name in messages."""
        return "the result of --input_query" if self.query else f"table {self.table}"

    @property
    def counted_by(self) -> str:
        """Who counts its rows, for the report."""
        return QUERY_ROWS if self.query else TABLE_ROWS


def describe_source(source: BigQuerySource) -> pa.Schema:
    """A source -> its columns, nothing read and nothing billed.

    Raises InputError for a table that cannot be read, a query that is wrong or scans
    more than it may, CredentialsError.
    """
    client = source.cloud.bigquery()
    if source.table is None:
        return _describe_query(client, source)
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
    """A source that is a table -> the table as it is now. Raises GoogleAPICallError."""
    client, again = source.cloud.bigquery(), retry(source.cloud.retry_seconds)
    return client.get_table(str(source.table), retry=again)


def at_one_moment(source: BigQuerySource) -> BigQuerySource:
    """A source -> the same, a table as it is now, and its rows counted. Raises InputError."""
    if source.table is None:
        return source
    with translate_errors(InputError, f"{source.label} cannot be read"):
        before, now, after = get_table(source), utc_now(), get_table(source)
    return replace(source, snapshot=now, rows=count_rows(before, after, now))


def _describe_query(client: bigquery.Client, source: BigQuerySource) -> pa.Schema:
    with translate_errors(InputError, "--input_query cannot be run"):
        job = dry_run(client, source.cloud, source.query or "")
    if job.statement_type != "SELECT":
        # A dry run of others may answer with columns as well: those of the table they change.
        raise InputError(
            f"--input_query: expected one SELECT, got {job.statement_type or 'no statement'}"
        )
    scanned = job.total_bytes_processed or 0
    if source.max_bytes is not None and scanned > source.max_bytes:
        raise UsageError(
            f"--input_query would scan {scanned:,} bytes, more than --max_bytes_billed "
            f"{source.max_bytes:,}: select fewer columns or partitions, or allow more"
        )
    return arrow_schema(job.schema)


def _check_restriction(client: bigquery.Client, source: BigQuerySource) -> None:
    """A dry run finds what is wrong with a restriction before the run, and costs nothing."""
    with translate_errors(
        InputError, f"--row_restriction {source.row_restriction!r} cannot be used"
    ):
        try:
            dry_run(client, source.cloud, restricted(source, ["1"]))
        except exceptions.Forbidden:
            # Reading a table does not take the right to run queries.
            return


def restricted(source: BigQuerySource, columns: Sequence[str]) -> str:
    """A table and SQL of columns -> the query of its rows that are wanted."""
    # On a line of its own, so that a comment at its end does not reach the bracket.
    where = f"({source.row_restriction}\n)"
    return f"SELECT {', '.join(columns)} FROM `{source.table}` WHERE {where}"


def dry_run(client: bigquery.Client, cloud: Cloud, sql: str) -> bigquery.QueryJob:
    """SQL -> a job that says what it would do and where; nothing is run."""
    config = bigquery.QueryJobConfig(dry_run=True, use_query_cache=False)
    return client.query(sql, config, retry=retry(cloud.retry_seconds), job_retry=None)
