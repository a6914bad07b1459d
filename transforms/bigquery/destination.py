"""TableDestination: a table of BigQuery for a run's rows, looked at first, and then written.

Workers stage Parquet files in the temp location; transforms/bigquery/commit.py puts them
into the table, all or none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from google.api_core import exceptions
from google.cloud import bigquery

from cloud.clients import Cloud
from cloud.errors import retry, translate_errors
from common.errors import MillraceError, OutputError
from transforms.bigquery.commit import IDENTITY, TableCommit
from transforms.bigquery.load import PIPELINE, WriteDisposition, run_table
from transforms.bigquery.schema import (
    TableName,
    arrow_schema,
    drift,
    file_type,
    table_fields,
    unfit_times,
)
from transforms.files.listing import read_listing
from transforms.files.run_folder import DEAD_LETTERS, RunFolder, StagedFile
from transforms.files.staging import check_writable, discard, discard_dead
from transforms.files.writers import OutputFormat
from transforms.lineage import Lineage
from transforms.provenance import Provenance


@dataclass(frozen=True, kw_only=True)
class TableDestination:
    """A table for the rows of a part.

    schema: of the rows, with the marks of transforms/bigquery/schema.py; the first column
    is the rows' id. folder: in the temp location. provenance: of the run, by which its rows
    are known. time_column: new tables are partitioned by its day. cluster_by: of new tables.
    lineage: of a replay.
    """

    part: str
    folder: RunFolder
    cloud: Cloud
    table: TableName
    schema: pa.Schema
    provenance: Provenance
    write_disposition: WriteDisposition = "append"
    time_column: str | None = None
    cluster_by: tuple[str, ...] = ()
    lineage: Lineage | None = None

    @property
    def name(self) -> str:
        """The part's, as a table."""
        return f"{self.part}_table"

    @property
    def output_format(self) -> OutputFormat:
        """What load jobs read by the column."""
        return "parquet"

    @property
    def place(self) -> str:
        """The table's name."""
        return str(self.table)

    def file_schema(self, rows: pa.Schema) -> pa.Schema:
        """The rows' schema -> one that loads into the table."""
        targets = arrow_schema(table_fields(self.schema))
        return pa.schema([(f.name, file_type(rows.field(f.name).type, f.type)) for f in targets])

    def check(self, rows: pa.RecordBatch) -> None:
        """Raises OutputError for a value that would fail the load of all rows."""
        for field, column in zip(rows.schema, rows.columns, strict=True):
            unfit = unfit_times(column)
            if unfit is not None and unfit.any():
                raise OutputError(
                    f"column {field.name!r} of row {rows.column(0)[int(unfit.argmax())]} cannot be "
                    f"in table {self.table}: a {field.type} finer than a microsecond, or not of "
                    "the years 1 to 9999; mend it in the source, or choose --output_fields "
                    "without it"
                )

    def prepare(self) -> None:
        """Makes the table if it is not there. Raises OutputError for what would fail the commit:

        no such dataset, no permission, columns that differ, rows where none may be, a temp
        location that cannot be written or loaded from. No table is made then.
        """
        client = self.cloud.bigquery()
        with self._table_errors():
            table = self._find(client)
            location = table.location if table else self._dataset(client).location
            self._check_bucket(location)
            check_writable(self.folder, f"--temp_location {self.folder.root}")
            self.folder.check()
            read_listing(self.folder.place)
            self._check_jobs(client, location)
            self._check(self._step(client, table or self._create(client)))
        discard_dead(self.folder)

    def targets(self, files: Sequence[StagedFile]) -> None:
        """None: load jobs take the staged files to the table."""

    def commit(self, files: Sequence[StagedFile]) -> None:
        """The files -> their rows in the table, once. Raises OutputError, BalanceError."""
        client = self.cloud.bigquery()
        with self._table_errors():
            step = self._step(client, client.get_table(str(self.table), retry=self._retry))
            step = replace(step, rows=sum(file.rows for file in files))
            if not step.is_done():
                self._check(step)
                step.load(files)
                step.place(files)

    def discard(self) -> None:
        """The attempt's table and staged files are gone, as far as that can be done at once."""
        with contextlib.suppress(MillraceError), self._table_errors():
            client, name = self.cloud.bigquery(), str(run_table(self.table, self.folder))
            client.delete_table(name, not_found_ok=True, retry=None, timeout=10.0)
        discard(self.folder)

    def _step(self, client: bigquery.Client, table: bigquery.Table) -> TableCommit:
        return TableCommit(
            client=client,
            cloud=self.cloud,
            name=self.table,
            table=table,
            schema=self.schema,
            folder=self.folder,
            provenance=self.provenance,
            keys=self._keys,
            write_disposition=self.write_disposition,
            time_column=self.time_column,
            lineage=self.lineage,
        )

    @property
    def _keys(self) -> tuple[str, ...]:
        """Columns of the rows that tell this run's from those of others."""
        # Of scores, a column of that name is the source's own.
        own = IDENTITY if self.part == DEAD_LETTERS else [k for k in IDENTITY if k != PIPELINE]
        return tuple(name for name in own if name in self.schema.names)

    def _table_errors(self) -> AbstractContextManager[None]:
        return translate_errors(OutputError, f"table {self.table} cannot be written")

    @property
    def _retry(self) -> Any:
        return retry(self.cloud.retry_seconds)

    def _find(self, client: bigquery.Client) -> bigquery.Table | None:
        try:
            return client.get_table(str(self.table), retry=self._retry)
        except exceptions.NotFound:
            return None

    def _dataset(self, client: bigquery.Client) -> bigquery.Dataset:
        return client.get_dataset(f"{self.table.project}.{self.table.dataset}", retry=self._retry)

    def _create(self, client: bigquery.Client) -> bigquery.Table:
        table = bigquery.Table(str(self.table), schema=table_fields(self.schema))
        if self.time_column is not None:
            table.time_partitioning = bigquery.TimePartitioning(field=self.time_column)
        table.clustering_fields = list(self.cluster_by) or None
        return client.create_table(table, exists_ok=True, retry=self._retry)

    def _check(self, step: TableCommit) -> None:
        """The table as it is -> nothing, or OutputError if the rows cannot be put into it."""
        table = step.table
        if table.table_type != "TABLE":
            raise OutputError(f"{self.table} is a {table.table_type}: expected a table")
        if difference := drift(str(self.table), table_fields(self.schema), table.schema):
            raise OutputError(difference)
        present = tuple(table.clustering_fields or ())
        if self.cluster_by and present != self.cluster_by:
            raise OutputError(
                f"table {self.table} is clustered by {', '.join(present) or 'nothing'}, not by "
                f"{', '.join(self.cluster_by)}: leave --cluster_by out, which is for new tables"
            )
        step.check_pipeline()
        step.replayed()
        if self.write_disposition == "empty" and table.num_rows and not step.filled_it():
            raise OutputError(
                f"table {self.table} holds {table.num_rows:,} rows: expected none, as "
                "--write_disposition empty says; write to another table, or append"
            )

    def _check_jobs(self, client: bigquery.Client, location: str) -> None:
        """Who may write a table may not run jobs for all that: a dry run finds out, for free."""
        dry = bigquery.QueryJobConfig(dry_run=True)
        client.query("SELECT 1", dry, location=location, retry=self._retry, job_retry=None)

    def _check_bucket(self, location: str) -> None:
        """A dataset's location -> nothing, or OutputError if the bucket is none to load from."""
        name = self.folder.root.removeprefix("gs://").split("/")[0]
        with translate_errors(OutputError, f"--temp_location: bucket {name} cannot be used"):
            try:
                bucket = self.cloud.storage().get_bucket(name, retry=self._retry)
            except exceptions.Forbidden:
                # Writing files does not take the right to look at the bucket.
                return
            except exceptions.NotFound as error:
                raise OutputError(
                    f"--temp_location: there is no bucket {name}: make it, or name another"
                ) from error
        if not loads_from(location, bucket.location, bucket.location_type):
            raise OutputError(
                f"--temp_location is in {bucket.location}, table {self.table} in {location}: "
                "load jobs need a bucket of the same location"
            )


def loads_from(dataset: str, bucket: str, bucket_type: str | None = None) -> bool:
    """Where a dataset and a bucket lie -> whether load jobs can go from one to the other.

    bucket_type: a bucket of a dual-region does not say which two it is in, and may do.
    Source: BigQuery's documentation, "location considerations" of batch loading.
    """
    dataset, bucket = dataset.upper(), bucket.upper()
    inside = {"EU": "EUROPE-"}.get(dataset, f"{dataset}-")
    same = dataset in ("US", bucket) or bucket.startswith(inside)
    return same or bucket_type == "dual-region"
