"""TableDestination: a BigQuery table that a run checks at its start and writes at its end.

Workers stage Parquet files in the temp location. transforms/bigquery/commit.py puts their rows
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
from cloud.errors import lacks_role, retry, translate_errors
from common.errors import MillraceError, OutputError
from transforms.bigquery.commit import IDENTITY, TableCommit
from transforms.bigquery.schema import (
    TableName,
    arrow_schema,
    file_type,
    table_fields,
)
from transforms.bigquery.tables import check_table, look_at_table
from transforms.bigquery.write_jobs import PIPELINE, WriteDisposition, run_table
from transforms.files.sink.listing import read_listing
from transforms.files.sink.run_folder import DEAD_LETTERS, RunFolder, StagedFile
from transforms.files.sink.staging import check_writable, discard, discard_dead
from transforms.files.sink.writers import OutputFormat
from transforms.lineage import Lineage
from transforms.provenance import Provenance


@dataclass(frozen=True, kw_only=True)
class TableDestination:
    """A table for one part of a run's output.

    Attributes:
        part: The part: `scores` or `dead_letters`.
        folder: The run's folder in the temp location.
        cloud: Makes the clients, and limits retries.
        table: The table's name.
        schema: The schema of the rows, with the metadata of transforms/bigquery/schema.py. The
            first column is the row id.
        provenance: The run and the model, by which the run's rows are recognized.
        write_disposition: `append` to the table's rows, `truncate` them, or require an `empty`
            table.
        time_column: The column by whose day a new table is partitioned, if any.
        cluster_by: The columns by which a new table is clustered.
        lineage: The dead letters that the run replays; None unless the run is a replay.
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
        """The name of the part, followed by `_table`."""
        return f"{self.part}_table"

    @property
    def output_format(self) -> OutputFormat:
        """The format of the staged files: Parquet, which load jobs read by column."""
        return "parquet"

    @property
    def timed_by(self) -> str | None:
        """The time column if no other column identifies the run's rows."""
        return None if self._keys else self.time_column

    @property
    def place(self) -> str:
        """The full name of the table."""
        return str(self.table)

    def file_schema(self, rows: pa.Schema) -> pa.Schema:
        """Return the schema of staged files of the rows, which can be loaded into the table."""
        targets = arrow_schema(table_fields(self.schema))
        return pa.schema([(f.name, file_type(rows.field(f.name).type, f.type)) for f in targets])

    def look(self) -> None:
        """Check the table if it exists, and change nothing.

        Raises:
            OutputError: The table cannot be read, or cannot hold the rows.
        """
        look_at_table(self.table, self.schema, self.cluster_by, self.cloud)

    def prepare(self) -> None:
        """Check that the commit can succeed, and create the table if it does not exist.

        Raises:
            OutputError: The dataset does not exist, a permission is missing, the table's columns
                differ, the table has rows that must not be there, or the temp location cannot be
                written or loaded from. In that case, no table has been created.
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
        """Return None: the staged files are not moved, because load jobs read them."""

    def commit(self, files: Sequence[StagedFile]) -> None:
        """Put the rows of the staged files into the table, once.

        Raises:
            OutputError: The table cannot be written, or rows in it cannot be replaced.
            BalanceError: The table received a different number of rows than were staged.
        """
        client = self.cloud.bigquery()
        with self._table_errors():
            step = self._step(client, client.get_table(str(self.table), retry=self._retry))
            step = replace(step, rows=sum(file.rows for file in files))
            if not step.is_done():
                self._check(step)
                step.load(files)
                step.place(files)

    def discard(self) -> None:
        """Delete the attempt's table and staged files; try once, and ignore errors."""
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
        """The columns that distinguish this run's rows from rows of other runs."""
        # In the scores, a column named `pipeline` is a column of the source.
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
        """Raise OutputError if the run's rows cannot be put into the table."""
        table = step.table
        check_table(table, self.schema, self.cluster_by)
        step.check_pipeline()
        step.replayed()
        if self.write_disposition == "empty" and table.num_rows and not step.filled_it():
            raise OutputError(
                f"table {self.table} has {table.num_rows:,} rows, but --write_disposition empty "
                "expects none: write to another table, or use --write_disposition append"
            )

    def _check_jobs(self, client: bigquery.Client, location: str) -> None:
        """Check with a dry run, which is free, that the account may run jobs.

        The permission to write a table does not include it.
        """
        dry = bigquery.QueryJobConfig(dry_run=True)
        client.query("SELECT 1", dry, location=location, retry=self._retry, job_retry=None)

    def _check_bucket(self, location: str) -> None:
        """Raise OutputError if a dataset in this location cannot load from the temp bucket."""
        name = self.folder.root.removeprefix("gs://").split("/")[0]
        with translate_errors(OutputError, f"--temp_location: bucket {name} cannot be used"):
            try:
                bucket = self.cloud.storage().get_bucket(name, retry=self._retry)
            except exceptions.Forbidden as error:
                # An account may write files without the permission to describe the bucket.
                if lacks_role(error):
                    return
                raise
            except exceptions.NotFound as error:
                raise OutputError(
                    f"--temp_location: bucket {name} does not exist: create it, or choose another"
                ) from error
        if not loads_from(location, bucket.location, bucket.location_type):
            raise OutputError(
                f"--temp_location is in {bucket.location}, table {self.table} in {location}: "
                "load jobs need a bucket in the same location"
            )


def loads_from(dataset: str, bucket: str, bucket_type: str | None = None) -> bool:
    """Return whether load jobs can read a bucket into a dataset, by their locations.

    Source: BigQuery's documentation, "location considerations" of batch loading.

    Args:
        dataset: The location of the dataset.
        bucket: The location of the bucket.
        bucket_type: The bucket's location type. A dual-region bucket is always accepted, because
            it does not say in which two regions it is.
    """
    dataset, bucket = dataset.upper(), bucket.upper()
    inside = {"EU": "EUROPE-"}.get(dataset, f"{dataset}-")
    same = dataset in ("US", bucket) or bucket.startswith(inside)
    return same or bucket_type == "dual-region"
