"""ReadBigQuery: a table or a query's result as source batches, read as Arrow.

With the Storage Read API, each stream of the read session is one element, and its rows stay record
batches. A stream that breaks is continued at its offset. A project that cannot use that API can
export the table to Parquet files instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.io.filesystem import FileMetadata
from google.cloud import bigquery

from cloud.errors import retry, translate_errors
from common.errors import InputError
from common.record_batch import BATCH_BYTES, BATCH_ROWS, rebatch, typed
from transforms.accounts import Settle, expect_rows, rows_read, taken, unknown_rows
from transforms.bigquery.jobs import job_id, run_job
from transforms.bigquery.query_table import QueryTable
from transforms.bigquery.schema import TableName
from transforms.bigquery.session import ReadStream, open_session, promise_streams, read_stream
from transforms.bigquery.source import (
    BigQuerySource,
    describe_source,
    dry_run,
    get_table,
    restricted,
)
from transforms.bigquery.tables import count_rows
from transforms.files.columns import Columns
from transforms.files.ranges import match_files
from transforms.files.read import Read, read_matched
from transforms.files.sink.run_folder import RunFolder
from transforms.provenance import Provenance

ReadMethod = Literal["direct", "export"]
_NO_POSITIONS = np.empty(0, dtype=np.int64)


def run_query(
    source: BigQuerySource, query: str, results: QueryTable | None = None
) -> BigQuerySource:
    """Run a query into a table that expires after a day, and return that table as a source.

    Args:
        source: The source of the query, with the limit of bytes that it may scan.
        query: The SQL.
        results: The table for the result, which may have any size. None leaves the result in a
            table of BigQuery's own, which has a limit of about 10 GB. Source: BigQuery's
            documentation of query results, "maximum response size".

    Raises:
        InputError: The query cannot be run.
    """
    client, cloud = source.cloud.bigquery(), source.cloud
    config = bigquery.QueryJobConfig()
    if source.max_bytes is not None:
        config.maximum_bytes_billed = source.max_bytes
    with translate_errors(InputError, f"{source.label} cannot be read"):
        dry = dry_run(client, cloud, query)
        location = dry.location
        if results is not None:
            results.create(dry.schema)
            config.destination = results.reference
            # The table is empty, unless an earlier job with this id has filled it.
            config.write_disposition = "WRITE_EMPTY"
        job = run_job(
            client,
            job_id("query", source.attempt, query),
            location,
            cloud,
            lambda name: client.query(
                query,
                config,
                job_id=name,
                location=location,
                retry=retry(cloud.retry_seconds),
                job_retry=None,
            ),
        )
    made = job.destination
    table = TableName(made.project, made.dataset_id, made.table_id)
    return replace(source, table=table, row_restriction=None, snapshot=None, rows=None)


@dataclass(kw_only=True)
class ReadBigQuery(beam.PTransform):
    """A source that reads the rows of a table or a query as source batches.

    Attributes:
        source: The table or the query.
        columns: The columns to read.
        batch_rows: The maximum number of rows in a batch.
        batch_bytes: The maximum number of bytes of a batch that has several rows.
        method: `direct` reads with the Storage Read API, `export` exports to Parquet files first.
        folder: The run's folder, in which an export stages its files. The caller deletes them
            after the pipeline.
        results: The table for the result of a query, which the caller deletes after the pipeline.
            None leaves it in a table of BigQuery's own.
        streams: The number of streams that the workers can use at the same time; 0 lets BigQuery
            choose.
    """

    source: BigQuerySource
    columns: Columns
    batch_rows: int = BATCH_ROWS
    batch_bytes: int = BATCH_BYTES
    method: ReadMethod = "direct"
    folder: RunFolder | None = None
    results: QueryTable | None = None
    streams: int = 0

    def __post_init__(self) -> None:
        self.columns = replace(self.columns, ids_by_content=True, any_case=True)

    def expand(self, pipeline: beam.Pipeline) -> Read:
        """Run the query, open a session, spread its streams and read them; no row can fail."""
        tables = (
            pipeline | "Source" >> beam.Create([self.source]) | "Query" >> beam.Map(self._to_table)
        )
        return self._export(tables) if self.method == "export" else self._direct(tables)

    def _direct(self, tables: beam.PCollection[BigQuerySource]) -> Read:
        opened = tables | "OpenSession" >> beam.ParDo(self._open).with_outputs(
            "entries", main="streams"
        )
        read = (
            opened.streams
            | "SpreadStreams" >> beam.Reshuffle()
            | "ReadStreams" >> beam.ParDo(self._read_stream).with_outputs("entries", main="good")
        )
        failures = tables.pipeline | "NoFailures" >> beam.Create([], reshuffle=False)
        entries = (opened.entries, read.entries) | "Entries" >> beam.Flatten()
        return Read(typed(read.good), typed(failures), entries | "Settle" >> Settle())

    def _export(self, tables: beam.PCollection[BigQuerySource]) -> Read:
        extracted = tables | "Extract" >> beam.ParDo(self._extract).with_outputs(
            "counts", main="files"
        )
        # Reading Parquet creates no dead letters, so this provenance is never written.
        unused = Provenance.of(self.columns.manifest)
        read = read_matched(
            extracted.files,
            self.columns,
            unused,
            "parquet",
            batch_rows=self.batch_rows,
            batch_bytes=self.batch_bytes,
            hive=False,
        )
        counts = (read.counts, extracted.counts) | "AllCounts" >> beam.Flatten()
        return read._replace(counts=counts)

    def _to_table(self, source: BigQuerySource) -> BigQuerySource:
        """Return the source as a table; a query is run into a table that expires after a day."""
        if source.table is not None and (self.method == "direct" or not source.row_restriction):
            return source
        query = source.query or ""
        if source.table is not None:
            # An extract job can only export a whole table.
            whole = replace(source, row_restriction=None)
            names = self.columns.names(describe_source(whole), source.label)
            query = restricted(source, [f"`{name}`" for name in names])
        return run_query(source, query, self.results)

    def _open(self, source: BigQuerySource) -> Iterator[ReadStream | beam.pvalue.TaggedOutput]:
        """Yield the streams of a session; what is expected of them goes to `entries`."""
        place, rows = self.source.label, source.rows
        with translate_errors(InputError, f"{place} cannot be read"):
            before = get_table(source) if rows is None else None
            streams = open_session(source, self.columns, self.streams)
            if before is not None:
                rows = count_rows(before, get_table(source))
        yield from streams
        if source.row_restriction is not None:
            rows = (
                "rows that match --row_restriction are not counted before the read, so streams "
                "are compared"
            )
        if isinstance(rows, int):
            said = expect_rows(place, rows, source.counted_by)
        else:
            said = unknown_rows(place, rows or "")
        for entry in (promise_streams(place, streams), said):
            yield beam.pvalue.TaggedOutput("entries", entry)

    def _read_stream(
        self, stream: ReadStream
    ) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
        """Yield the source batches of a stream; what was read goes to the output `entries`."""
        cloud, place, rows = self.source.cloud, self.source.label, 0
        with translate_errors(InputError, f"reading {self.source.label} failed part-way"):
            batches = read_stream(stream, cloud.bigquery_read(), cloud.retry_seconds)
            for batch in rebatch(batches, self.batch_rows, self.batch_bytes):
                yield self.columns.with_ids(batch, "", _NO_POSITIONS)
                rows += batch.num_rows
        ended = taken(place, "streams", stream.number, stream.number + 1)
        for entry in (ended, rows_read(place, rows)):
            yield beam.pvalue.TaggedOutput("entries", entry)

    def _extract(self, source: BigQuerySource) -> Iterator[FileMetadata | beam.pvalue.TaggedOutput]:
        """Yield the Parquet files of an extract job; the table's row count goes to `counts`."""
        folder, cloud, client = self.folder, source.cloud, source.cloud.bigquery()
        if folder is None:
            raise ValueError("method 'export' needs a folder")
        config = bigquery.ExtractJobConfig(destination_format="PARQUET", compression="SNAPPY")
        with translate_errors(InputError, f"{source.label} cannot be exported to {folder.staging}"):
            table = get_table(source)
            if table.streaming_buffer is not None:
                # Source: BigQuery's documentation of streaming, "data availability".
                raise InputError(
                    f"{source.label} has about {table.streaming_buffer.estimated_rows or 0:,} rows "
                    "in its streaming buffer, which an export leaves out: read it with "
                    "--read_method direct, or wait until they are stored (up to 90 minutes)"
                )
            if not table.num_rows:
                yield beam.pvalue.TaggedOutput("counts", (("rows_expected", source.counted_by), 0))
                return
            job = run_job(
                client,
                job_id("extract", source.attempt, str(source.table)),
                table.location,
                cloud,
                lambda name: client.extract_table(
                    table.reference,
                    # Use the job's own names: a job that failed may have left files.
                    f"{folder.staged(name)}-*.parquet",
                    job_id=name,
                    location=table.location,
                    job_config=config,
                    retry=retry(cloud.retry_seconds),
                ),
            )
            rows = count_rows(table, get_table(source))
        yield from match_files(job.destination_uris)
        # If the count is not known, only the footers say how many rows the job exported.
        if isinstance(rows, int):
            counted = ("rows_expected", source.counted_by), rows
            yield beam.pvalue.TaggedOutput("counts", counted)
