"""TableCommit: a run's staged files into a table of BigQuery, all of them or none, never twice.

Load jobs put the files into a table of the attempt, and one job puts that table's rows
into the destination: a copy, or a query where a copy cannot do it. Job ids are derived
from what makes a run the same again, so that whatever is repeated finds what was done:

    crash before that one job     the table of the attempt expires; a rerun starts over
    crash after it                a rerun finds it and replaces the rows of its run
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from google.cloud import bigquery

from cloud.clients import Cloud
from cloud.errors import retry
from model_handlers.errors import BalanceError, OutputError
from transforms.bigquery_jobs import done_job, job_id, run_job
from transforms.bigquery_schema import (
    TableName,
    has_json,
    in_form,
    same_form,
    table_fields,
    without_json,
)
from transforms.failures import Provenance, utc_now
from transforms.run_folder import RunFolder, StagedFile

WriteDisposition = Literal["append", "truncate", "empty"]

# BigQuery's limit of source files of one load job.
FILES_A_LOAD = 10_000
RUN_TABLE_LIFETIME = datetime.timedelta(days=1)
RUN_ID = "run_id"
PIPELINE = "pipeline"
# Of a run's provenance, what makes it the same run again. Neither the model's version nor its
# digest: the rows of a mended model take the place of the broken one's.
IDENTITY = (RUN_ID, PIPELINE, "model_name")
_OF_ATTEMPT, _OF_PIPELINE = "millrace_attempt", "millrace_pipeline"


@dataclass(frozen=True)
class TableCommit:
    """What an attempt at a run does to a table, as it found it.

    keys: those of IDENTITY that the rows have as columns, none where nothing tells runs apart.
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

    def is_done(self) -> bool:
        """Whether this very attempt's rows are in the table: the step is repeated."""
        if done_job(self.client, self._attempt_job, self.table.location, self.cloud):
            return True
        earlier = self.earlier()
        return earlier is not None and self._is_ours(earlier)

    def earlier(self) -> Any:
        """The job of any attempt that put this run's rows into the table, None if none did."""
        return done_job(self.client, self._run_job, self.table.location, self.cloud)

    def filled_it(self) -> bool:
        """Whether an earlier attempt at this run put its rows into this very table."""
        return self._is_in_table(self.earlier())

    def _is_in_table(self, earlier: Any) -> bool:
        return earlier is not None and bool(earlier.ended >= self.table.created)

    def check_pipeline(self) -> None:
        """Raises OutputError where rows of another pipeline would be taken for this run's.

        Scores have no column that tells a pipeline.
        """
        if PIPELINE in self._keys_of_job or self.write_disposition == "truncate":
            return
        earlier = self.earlier()
        other = earlier and earlier.labels.get(_OF_PIPELINE)
        if self._is_in_table(earlier) and other != self.provenance.pipeline:
            raise OutputError(
                f"table {self.name} has rows of run {self.folder.run_id} with model "
                f"{self.provenance.model_name} that {other} wrote, which could not be told from "
                "those of this run: choose another --run_id"
            )

    def load(self, files: Sequence[StagedFile]) -> None:
        """Staged files -> the attempt's table, of the destination's form if it can be copied.

        Raises BalanceError.
        """
        run_table = self._make_run_table()
        config = bigquery.LoadJobConfig(
            source_format="PARQUET",
            decimal_target_types=["NUMERIC", "BIGNUMERIC"],
            write_disposition="WRITE_APPEND",
            create_disposition="CREATE_NEVER",
            labels=self._labels,
        )
        # Without this a list would become a record of a repeated record.
        config.parquet_options = bigquery.ParquetOptions()
        config.parquet_options.enable_list_inference = True
        paths = sorted(file.path for file in files if file.rows)
        loaded = 0
        for uris in (paths[i : i + FILES_A_LOAD] for i in range(0, len(paths), FILES_A_LOAD)):
            # The time tells the table from one of the same name that has expired.
            name = job_id("load", str(run_table.reference), str(run_table.created), *uris)
            load = self.client.load_table_from_uri
            job = self._run(name, load, uris, run_table.reference, job_config=config)
            loaded += job.output_rows
        if loaded != (staged := sum(file.rows for file in files)):
            raise BalanceError(
                f"{staged:,} rows were staged for table {self.name}, and {loaded:,} loaded: "
                "nothing was put into it. Please report this"
            )

    def place(self, rows: int) -> None:
        """The attempt's table of so many rows -> its rows in the destination, in one job.

        Those of earlier attempts are gone then. Raises OutputError where that cannot be.
        """
        put = self._replace_all if self.write_disposition == "truncate" else self._append
        earlier = self.earlier() or put(self._run_job)
        if self._is_ours(earlier):
            return
        # Another attempt's rows are there: a crashed one's, or one's that runs beside this.
        if self.write_disposition == "truncate":
            self._replace_all(self._attempt_job)
        elif self.keys:
            self.check_pipeline()
            own = " AND ".join(f"{name} = @{name}" for name in self.keys)
            self._insert(self._attempt_job, own)
        elif not self._holds(earlier, rows):
            self._append(self._attempt_job)

    @property
    def _run_job(self) -> str:
        """The job that puts a run's rows into the table, whichever attempt starts it."""
        return job_id("commit", str(self.name), *self._identity)

    @property
    def _attempt_job(self) -> str:
        """The job by which this attempt puts its rows in the place of an earlier one's."""
        return job_id("replace", str(self.name), *self._identity, self.folder.token)

    @property
    def _keys_of_job(self) -> tuple[str, ...]:
        """What tells this run's job from others: what its rows tell, or all where they do not."""
        return self.keys or IDENTITY

    @property
    def _identity(self) -> list[str]:
        return [getattr(self.provenance, name) for name in self._keys_of_job]

    @property
    def _labels(self) -> dict[str, str]:
        return {_OF_ATTEMPT: self.folder.token, _OF_PIPELINE: self.provenance.pipeline}

    def _is_ours(self, job: Any) -> bool:
        return bool(job.labels == self._labels)

    @property
    def _copies(self) -> bool:
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
    def _every_row(self) -> str:
        """SQL that every row of the table fulfils, by its partitions where it wants them filtered.

        Source: dbt's BigQuery adapter, predicate_for_avoid_require_partition_filter.
        """
        if not self.table.require_partition_filter:
            return "TRUE"
        time, integers = self.table.time_partitioning, self.table.range_partitioning
        column = integers.field if integers else (time and time.field) or "_PARTITIONTIME"
        return f"(`{column}` IS NULL OR `{column}` IS NOT NULL)"

    def _make_run_table(self) -> bigquery.Table:
        name, fields = run_table(self.name, self.folder), table_fields(self.schema)
        made = bigquery.Table(str(name), schema=list(map(without_json, fields)))
        if self._copies:
            # A copy that truncates brings its own descriptions, partitioning and filter along.
            made.schema = self.table.schema
            made.time_partitioning = self.table.time_partitioning
            made.clustering_fields = self.table.clustering_fields
            made.require_partition_filter = self.table.require_partition_filter
        made.expires = utc_now() + RUN_TABLE_LIFETIME
        return self.client.create_table(made, exists_ok=True, retry=self._retry)

    def _append(self, name: str) -> Any:
        """A job's id -> the job, done, which added the attempt's rows."""
        if not self._copies:
            return self._insert(name, None)
        empty = self.write_disposition == "empty"
        return self._copy(name, "WRITE_EMPTY" if empty else "WRITE_APPEND")

    def _replace_all(self, name: str) -> Any:
        """A job's id -> the job, done, which left none but the attempt's rows."""
        if not self._copies:
            return self._insert(name, "TRUE")
        return self._copy(name, "WRITE_TRUNCATE")

    def _copy(self, name: str, disposition: str) -> Any:
        """A job's id -> the job, done.

        A copy costs nothing and takes seconds whatever the size, but wants two tables of
        one form, and cannot replace a part of one.
        """
        config = bigquery.CopyJobConfig(
            write_disposition=disposition,
            create_disposition="CREATE_NEVER",
            labels=self._labels,
        )
        source, target = str(run_table(self.name, self.folder)), str(self.name)
        return self._run(name, self.client.copy_table, source, target, job_config=config)

    def _insert(self, name: str, replacing: str | None) -> Any:
        """A job's id, and which rows make room -> the job, done."""
        present = {field.name.lower(): field for field in self.table.schema}
        fields = [present[name.lower()] for name in self.schema.names]
        columns = ", ".join(f"`{field.name}`" for field in fields)
        values = ", ".join(in_form(field, f"`{field.name}`") for field in fields)
        source = run_table(self.name, self.folder)
        sql = f"INSERT INTO `{self.name}` ({columns}) SELECT {values} FROM `{source}`"
        if self._copies:
            sql += f" WHERE {self._every_row}"
        config = bigquery.QueryJobConfig(labels=self._labels)
        if replacing is not None:
            delete = f"DELETE FROM `{self.name}` WHERE {replacing} AND {self._every_row}"
            sql = f"BEGIN TRANSACTION; {delete}; {sql}; COMMIT TRANSACTION;"
            config.query_parameters = [
                bigquery.ScalarQueryParameter(key, "STRING", getattr(self.provenance, key))
                for key in self.keys
                if f"@{key}" in replacing
            ]
        return self._run(name, self.client.query, sql, config, job_retry=None)

    def _holds(self, earlier: Any, rows: int) -> bool:
        """Whether an earlier job's rows are still in a table without a column that tells a run's.

        Raises OutputError where only some are, or not as many as now: none can be replaced.
        """
        key = self.schema.names[0]
        in_time = f"`{self.time_column}` <= @ended" if self.time_column else "TRUE"
        source = self._every_row if self._copies else "TRUE"
        sql = (
            f"SELECT COUNT(*) AS known, COUNTIF({in_time}) AS own FROM `{self.name}` "
            f"WHERE {self._every_row} AND `{key}` IN (SELECT `{key}` FROM "
            f"`{run_table(self.name, self.folder)}` WHERE {source})"
        )
        ended = bigquery.ScalarQueryParameter("ended", "TIMESTAMP", earlier.ended)
        config = bigquery.QueryJobConfig(query_parameters=[ended] if self.time_column else [])
        job = self.client.query(sql, config, location=self.table.location, retry=self._retry)
        (found,) = job.result(retry=self._retry)
        there = _rows_of(earlier)
        if found.own >= there == rows:
            return True
        if found.known == 0 or there == 0:
            return False
        raise OutputError(
            f"run {self.folder.run_id} was put into table {self.name} before, with {there:,} "
            f"rows, of which {min(found.own, there):,} are found; now it has {rows:,}, and without "
            f"a column {RUN_ID} the earlier ones cannot be replaced: choose another --run_id, or "
            "--write_disposition truncate"
        )

    def _run(self, name: str, start: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A job's id, a method of the client and its arguments -> the job, done."""
        place = self.table.location
        return run_job(
            self.client,
            name,
            place,
            self.cloud,
            lambda n: start(*args, job_id=n, location=place, retry=self._retry, **kwargs),
        )

    @property
    def _retry(self) -> Any:
        return retry(self.cloud.retry_seconds)


def run_table(table: TableName, folder: RunFolder) -> TableName:
    """A destination and an attempt -> the attempt's own table, in the same dataset.

    Its name begins in its own way: a wildcard over the destination's must not find it.
    """
    return table.sibling(f"millrace_run_{folder.token}_{table.table[:200]}")


def _rows_of(job: Any) -> int:
    """A copy or an INSERT that is done -> how many rows it put in."""
    copied = job._properties.get("statistics", {}).get("copy", {}).get("copiedRows")
    return int(copied if copied is not None else job.num_dml_affected_rows or 0)
