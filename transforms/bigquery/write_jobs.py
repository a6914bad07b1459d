"""The jobs that write the rows of an attempt to a table: loads, a copy or a query."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
from google.cloud import bigquery

from cloud.clients import Cloud
from cloud.errors import retry
from common.errors import BalanceError
from transforms.bigquery.jobs import Begin, run_jobs
from transforms.bigquery.placed_rows import Span, rows_of, span_labels
from transforms.bigquery.schema import (
    TableName,
    has_json,
    in_form,
    same_form,
    table_fields,
    without_json,
)
from transforms.files.sink.run_folder import RunFolder, StagedFile
from transforms.provenance import Provenance, utc_now

WriteDisposition = Literal["append", "truncate", "empty"]

RUN_TABLE_LIFETIME = datetime.timedelta(days=1)
RUN_ID = "run_id"
PIPELINE = "pipeline"
OF_ATTEMPT, OF_PIPELINE = "millrace_attempt", "millrace_pipeline"


@dataclass(frozen=True, kw_only=True)
class TableJobs:
    """One attempt at a run, and the table that it writes to.

    Attributes:
        name: The table's name.
        table: The table as it was when the attempt looked at it.
        schema: The schema of the rows.
        folder: The run's folder in the temp location.
        provenance: The run and the model.
        keys: The columns of the rows that identify the run; empty if no column does.
        write_disposition: What happens to rows that are in the table already.
        time_column: The column that says when a row was scored, if any.
        rows: The number of staged rows.
        marks: Labels that identify the rows if no column does.
    """

    client: bigquery.Client
    cloud: Cloud
    name: TableName
    table: bigquery.Table
    schema: pa.Schema
    folder: RunFolder
    provenance: Provenance
    keys: tuple[str, ...]
    write_disposition: WriteDisposition
    time_column: str | None
    rows: int = 0
    marks: Mapping[str, str] = field(default_factory=dict)

    def marks_of(self, files: Sequence[StagedFile]) -> dict[str, str]:
        """Return labels that distinguish the rows of staged files from others with the same ids.

        There are none if key columns distinguish them, or if there is no time column.
        """
        if self.keys or self.time_column is None:
            return {}
        return span_labels(Span.of_files(files), self.provenance.model_digest)

    def check_rows(self, job: Any) -> None:
        """Raise BalanceError if a job wrote a different number of rows than were staged.

        A transaction checks the number itself.
        """
        came = rows_of(job)
        if self.rows and came is not None and came != self.rows:
            raise BalanceError(
                f"{self.rows:,} rows were staged for table {self.name}, but job {job.job_id} wrote "
                f"{came:,}: run again with another --run_id, or replace all rows of the table with "
                "--write_disposition truncate; please report this"
            )

    @property
    def labels(self) -> dict[str, str]:
        """The labels of every job of the attempt."""
        own = {OF_ATTEMPT: self.folder.token, OF_PIPELINE: self.provenance.pipeline}
        return {**own, **self.marks}

    def is_ours(self, job: Any) -> bool:
        """Return whether this attempt started the job."""
        own = (OF_ATTEMPT, OF_PIPELINE)
        return all((job.labels or {}).get(name) == self.labels[name] for name in own)

    @property
    def copies(self) -> bool:
        """Whether a table with only the rows' columns can be copied into the destination."""
        fields, table = table_fields(self.schema), self.table
        partitioned = table.time_partitioning
        return (
            len(fields) == len(table.schema)
            and all(map(same_form, fields, table.schema))
            and not any(map(has_json, fields))
            and table.range_partitioning is None
            and (partitioned is None or partitioned.field is not None)
        )

    @property
    def every_row(self) -> str:
        """An SQL condition that every row of the table meets.

        It names the partition column if the table requires a partition filter. Source: dbt's
        BigQuery adapter, predicate_for_avoid_require_partition_filter.
        """
        if not self.table.require_partition_filter:
            return "TRUE"
        time, integers = self.table.time_partitioning, self.table.range_partitioning
        column = integers.field if integers else (time and time.field) or "_PARTITIONTIME"
        return f"(`{column}` IS NULL OR `{column}` IS NOT NULL)"

    def make_run_table(self) -> bigquery.Table:
        """Return the attempt's table, and create it if it does not exist.

        If the table can be copied, it has the schema and the partitions of the destination.
        """
        name, fields = run_table(self.name, self.folder), table_fields(self.schema)
        made = bigquery.Table(str(name), schema=list(map(without_json, fields)))
        if self.copies:
            # A copy that truncates also replaces the descriptions, partitions and filter rule.
            made.schema = self.table.schema
            made.time_partitioning = self.table.time_partitioning
            made.clustering_fields = self.table.clustering_fields
            made.require_partition_filter = self.table.require_partition_filter
        made.expires = utc_now() + RUN_TABLE_LIFETIME
        return self.client.create_table(made, exists_ok=True, retry=self.retry)

    def append(self, name: str) -> Any:
        """Run the job that adds the attempt's rows to the table, and return it.

        Args:
            name: The job's id, without a number.
        """
        if not self.copies:
            return self.insert(name, None)
        empty = self.write_disposition == "empty"
        return self._copy(name, "WRITE_EMPTY" if empty else "WRITE_APPEND")

    def replace_all(self, name: str) -> Any:
        """Run the job that replaces all rows of the table with the attempt's, and return it.

        Args:
            name: The job's id, without a number.
        """
        if not self.copies:
            return self.insert(name, "TRUE")
        return self._copy(name, "WRITE_TRUNCATE")

    def replace_own(self, name: str, replayed: Sequence[str] = ()) -> Any:
        """Run the job that replaces the run's rows with the attempt's, and return it.

        Args:
            name: The job's id, without a number.
            replayed: Other runs whose rows are deleted too.
        """
        own = " AND ".join(f"{key} = @{key}" for key in self.keys)
        if replayed:
            own = f"({own} OR {RUN_ID} IN UNNEST(@replayed))"
        return self.insert(name, own, replayed)

    def runs_in_table(self, run_ids: Sequence[str]) -> list[str]:
        """Return the given run ids of which the table has rows, sorted."""
        given = bigquery.ArrayQueryParameter("runs", "STRING", list(run_ids))
        sql = (
            f"SELECT DISTINCT {RUN_ID} AS found FROM `{self.name}` "
            f"WHERE {RUN_ID} IN UNNEST(@runs) AND {self.every_row}"
        )
        config = bigquery.QueryJobConfig(query_parameters=[given])
        job = self.client.query(sql, config, location=self.table.location, retry=self.retry)
        return sorted(row.found for row in job.result(retry=self.retry))

    def _copy(self, name: str, disposition: str) -> Any:
        """Run a copy job and return it.

        A copy is free and takes seconds at any size. But both tables need the same schema and
        partitions, and a copy cannot replace some rows of a table.
        """
        config = bigquery.CopyJobConfig(
            write_disposition=disposition,
            create_disposition="CREATE_NEVER",
            labels=self.labels,
        )
        source, target = str(run_table(self.name, self.folder)), str(self.name)
        job = self.run(name, self.client.copy_table, source, target, job_config=config)
        if self.is_ours(job):
            self.check_rows(job)
        return job

    def insert(self, name: str, replacing: str | None, replayed: Sequence[str] = ()) -> Any:
        """Run a query job that inserts the attempt's rows into the table, and return it.

        Args:
            name: The job's id, without a number.
            replacing: An SQL condition of the rows to delete in the same transaction; None to
                only insert.
            replayed: The run ids to which the condition refers as `@replayed`.
        """
        present = {field.name.lower(): field for field in self.table.schema}
        fields = [present[name.lower()] for name in self.schema.names]
        columns = ", ".join(f"`{field.name}`" for field in fields)
        values = ", ".join(in_form(field, f"`{field.name}`") for field in fields)
        source = run_table(self.name, self.folder)
        sql = f"INSERT INTO `{self.name}` ({columns}) SELECT {values} FROM `{source}`"
        if self.copies:
            sql += f" WHERE {self.every_row}"
        config = bigquery.QueryJobConfig(labels=self.labels)
        if replacing is not None:
            delete = f"DELETE FROM `{self.name}` WHERE {replacing} AND {self.every_row}"
            counted = f"{sql}; {self._count_check}"
            sql = f"BEGIN TRANSACTION; {delete}; {counted}; COMMIT TRANSACTION;"
            config.query_parameters = [
                bigquery.ScalarQueryParameter(key, "STRING", getattr(self.provenance, key))
                for key in self.keys
                if f"@{key}" in replacing
            ]
            if replayed:
                runs = bigquery.ArrayQueryParameter("replayed", "STRING", list(replayed))
                config.query_parameters = [*config.query_parameters, runs]
        job = self.run(name, self.client.query, sql, config, job_retry=None)
        if self.is_ours(job):
            self.check_rows(job)
        return job

    @property
    def _count_check(self) -> str:
        """SQL that fails a transaction unless its last statement inserted all staged rows."""
        message = f"expected {self.rows} rows of run {self.folder.run_id}, got a different number"
        escaped = message.replace("\\", "\\\\").replace("'", "\\'")
        return f"ASSERT @@row_count = {self.rows} AS '{escaped}'"

    def run(self, name: str, start: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a job to its end and return it.

        Args:
            name: The job's id, without a number.
            start: The client's method that starts the job.
            args: Positional arguments of that method.
            kwargs: Keyword arguments of that method, without the id, the location and the retry.
        """
        return self.run_all({name: functools.partial(start, *args, **kwargs)})[0]

    def run_all(self, starts: Mapping[str, Callable[..., Any]]) -> list[Any]:
        """Start jobs, wait until all have ended, and return them.

        Args:
            starts: The client's methods that start the jobs, with all arguments but the id, the
                location and the retry, by the jobs' ids without a number.
        """
        place = self.table.location

        def begin(start: Callable[..., Any]) -> Begin:
            return lambda name: start(job_id=name, location=place, retry=self.retry)

        begins = {name: begin(start) for name, start in starts.items()}
        return run_jobs(self.client, place, self.cloud, begins)

    @property
    def retry(self) -> Any:
        """The retry of transient errors, for up to `retry_seconds`."""
        return retry(self.cloud.retry_seconds)


def run_table(table: TableName, folder: RunFolder) -> TableName:
    """Return the name of the attempt's own table, which is in the dataset of the destination.

    The name has a prefix of its own, because a wildcard over the destination's name must not
    match it.
    """
    return table.sibling(f"millrace_run_{folder.token}_{table.table[:200]}")
