"""The jobs by which the rows of an attempt come into a table: loads, a copy or a query."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
from google.cloud import bigquery

from cloud.clients import Cloud
from cloud.errors import retry
from common.errors import BalanceError
from transforms.bigquery.jobs import run_job
from transforms.bigquery.placed_rows import Span, rows_of, span_labels
from transforms.bigquery.schema import (
    TableName,
    has_json,
    in_form,
    same_form,
    table_fields,
    without_json,
)
from transforms.files.run_folder import RunFolder, StagedFile
from transforms.provenance import Provenance, utc_now

WriteDisposition = Literal["append", "truncate", "empty"]

RUN_TABLE_LIFETIME = datetime.timedelta(days=1)
RUN_ID = "run_id"
PIPELINE = "pipeline"
OF_ATTEMPT, OF_PIPELINE = "millrace_attempt", "millrace_pipeline"


@dataclass(frozen=True, kw_only=True)
class TableJobs:
    """A table, and one attempt at a run that writes into it.

    keys: what of the run's identity its rows have as columns, none where nothing tells runs apart.
    rows: how many are staged. marks: labels that tell them apart where no column does.
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
        """Staged files -> labels that tell their rows from others with the same ids."""
        if self.keys or self.time_column is None:
            return {}
        return span_labels(Span.of_files(files, self.time_column), self.provenance.model_digest)

    def check_rows(self, job: Any) -> None:
        """Raises BalanceError where a job put fewer rows, or more, into the table than there are.

        What goes by a transaction is checked within it.
        """
        came = rows_of(job)
        if self.rows and came is not None and came != self.rows:
            raise BalanceError(
                f"{self.rows:,} rows were staged for table {self.name}, and job {job.job_id} put "
                f"{came:,} into it: run it again with --write_disposition truncate, or another "
                "--run_id. Please report this"
            )

    @property
    def labels(self) -> dict[str, str]:
        """Of each job of the attempt."""
        own = {OF_ATTEMPT: self.folder.token, OF_PIPELINE: self.provenance.pipeline}
        return {**own, **self.marks}

    def is_ours(self, job: Any) -> bool:
        """Whether this attempt started the job."""
        own = (OF_ATTEMPT, OF_PIPELINE)
        return all((job.labels or {}).get(name) == self.labels[name] for name in own)

    @property
    def copies(self) -> bool:
        """Whether a table of the rows' columns alone can be copied into the destination."""
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
        """SQL that every row of the table fulfils, by its partitions where it wants them filtered.

        Source: dbt's BigQuery adapter, predicate_for_avoid_require_partition_filter.
        """
        if not self.table.require_partition_filter:
            return "TRUE"
        time, integers = self.table.time_partitioning, self.table.range_partitioning
        column = integers.field if integers else (time and time.field) or "_PARTITIONTIME"
        return f"(`{column}` IS NULL OR `{column}` IS NOT NULL)"

    def make_run_table(self) -> bigquery.Table:
        """The attempt's table, made unless it is there; one to copy has the destination's form."""
        name, fields = run_table(self.name, self.folder), table_fields(self.schema)
        made = bigquery.Table(str(name), schema=list(map(without_json, fields)))
        if self.copies:
            # A copy that truncates brings its own descriptions, partitioning and filter along.
            made.schema = self.table.schema
            made.time_partitioning = self.table.time_partitioning
            made.clustering_fields = self.table.clustering_fields
            made.require_partition_filter = self.table.require_partition_filter
        made.expires = utc_now() + RUN_TABLE_LIFETIME
        return self.client.create_table(made, exists_ok=True, retry=self.retry)

    def append(self, name: str) -> Any:
        """A job's id -> the job, done, which added the attempt's rows."""
        if not self.copies:
            return self.insert(name, None)
        empty = self.write_disposition == "empty"
        return self._copy(name, "WRITE_EMPTY" if empty else "WRITE_APPEND")

    def replace_all(self, name: str) -> Any:
        """A job's id -> the job, done, which left none but the attempt's rows."""
        if not self.copies:
            return self.insert(name, "TRUE")
        return self._copy(name, "WRITE_TRUNCATE")

    def replace_own(self, name: str, replayed: Sequence[str] = ()) -> Any:
        """A job's id -> the job, done, which put the attempt's rows in the place of the run's.

        replayed: other runs whose rows go as well.
        """
        own = " AND ".join(f"{key} = @{key}" for key in self.keys)
        if replayed:
            own = f"({own} OR {RUN_ID} IN UNNEST(@replayed))"
        return self.insert(name, own, replayed)

    def runs_in_table(self, run_ids: Sequence[str]) -> list[str]:
        """Run ids -> those of which the table has rows."""
        given = bigquery.ArrayQueryParameter("runs", "STRING", list(run_ids))
        sql = (
            f"SELECT DISTINCT {RUN_ID} AS found FROM `{self.name}` "
            f"WHERE {RUN_ID} IN UNNEST(@runs) AND {self.every_row}"
        )
        config = bigquery.QueryJobConfig(query_parameters=[given])
        job = self.client.query(sql, config, location=self.table.location, retry=self.retry)
        return sorted(row.found for row in job.result(retry=self.retry))

    def _copy(self, name: str, disposition: str) -> Any:
        """A job's id -> the job, done.

        A copy costs nothing and takes seconds whatever the size, but wants two tables of
        one form, and cannot replace a part of one.
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
        """A job's id, and which rows make room -> the job, done."""
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
        """SQL that fails a transaction whose last statement has not put in all staged rows."""
        message = f"expected {self.rows} rows of run {self.folder.run_id}, got another number"
        escaped = message.replace("\\", "\\\\").replace("'", "\\'")
        return f"ASSERT @@row_count = {self.rows} AS '{escaped}'"

    def run(self, name: str, start: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A job's id, a method of the client and its arguments -> the job, done."""
        place = self.table.location
        return run_job(
            self.client,
            name,
            place,
            self.cloud,
            lambda n: start(*args, job_id=n, location=place, retry=self.retry, **kwargs),
        )

    @property
    def retry(self) -> Any:
        """How long an error of the service that passes is waited for."""
        return retry(self.cloud.retry_seconds)


def run_table(table: TableName, folder: RunFolder) -> TableName:
    """A destination and an attempt -> the attempt's own table, in the same dataset.

    Its name begins in its own way: a wildcard over the destination's must not find it.
    """
    return table.sibling(f"millrace_run_{folder.token}_{table.table[:200]}")
