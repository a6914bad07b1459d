"""ReadBigQuery: a table or a query's result as source batches, read as Arrow.

Rows come over the Storage Read API, one element a stream, and stay record batches;
a stream that breaks goes on at its offset. Or, for projects that may not use that
API, by an extract to Parquet files.
"""

from __future__ import annotations

import datetime
import math
import random
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa
from google.api_core import exceptions
from google.cloud import bigquery
from google.cloud.bigquery_storage_v1 import types

from cloud.clients import Cloud
from cloud.errors import explain, is_passing, retry, told_as
from model_handlers.errors import InputError, UsageError
from transforms.bigquery_jobs import job_id, run_job
from transforms.bigquery_schema import TableName, arrow_schema
from transforms.file_ranges import FileRange, match_files, split_file
from transforms.read_files import Columns, Read, read_range
from transforms.record_batch import rebatch, typed
from transforms.run_folder import RunFolder

ReadMethod = Literal["direct", "export"]
# Of one call: a stream that takes longer, or hangs, goes on in another at its offset.
READ_SECONDS = 600.0
_NO_POSITIONS = np.empty(0, dtype=np.int64)
_READABLE = ("TABLE", "SNAPSHOT", "CLONE")


@dataclass(frozen=True)
class BigQuerySource:
    """What is read: a table, or else a query's result.

    row_restriction: SQL of a WHERE clause, for a table. snapshot: the moment at which
    a table is read, so that whatever is read again is the same. max_bytes: a query
    that would scan more is refused. attempt: names the jobs, so that a repeated bundle
    takes their results, and no other run does.
    """

    cloud: Cloud
    table: TableName | None = None
    query: str | None = None
    row_restriction: str | None = None
    snapshot: datetime.datetime | None = None
    max_bytes: int | None = None
    attempt: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def label(self) -> str:
        """The source's name in messages."""
        return "the result of --input_query" if self.query else f"table {self.table}"


def describe(source: BigQuerySource) -> pa.Schema:
    """A source -> its columns, nothing read and nothing billed.

    Raises InputError for a table that cannot be read, a query that is wrong or scans
    more than it may, CredentialsError.
    """
    client = source.cloud.bigquery()
    if source.table is None:
        return _describe_query(client, source)
    with told_as(InputError, f"{source.label} cannot be read"):
        table = client.get_table(str(source.table), retry=retry(source.cloud.retry_seconds))
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


def _describe_query(client: bigquery.Client, source: BigQuerySource) -> pa.Schema:
    with told_as(InputError, "--input_query cannot be run"):
        job = _dry_run(client, source.cloud, source.query or "")
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
    with told_as(InputError, f"--row_restriction {source.row_restriction!r} cannot be used"):
        try:
            _dry_run(client, source.cloud, _restricted(source, ["1"]))
        except exceptions.Forbidden:
            # Reading a table does not take the right to run queries.
            return


def _restricted(source: BigQuerySource, columns: Sequence[str]) -> str:
    """A table and SQL of columns -> the query of its rows that are wanted."""
    # On a line of its own, so that a comment at its end does not reach the bracket.
    where = f"({source.row_restriction}\n)"
    return f"SELECT {', '.join(columns)} FROM `{source.table}` WHERE {where}"


def _dry_run(client: bigquery.Client, cloud: Cloud, sql: str) -> bigquery.QueryJob:
    """SQL -> a job that says what it would do and where; nothing is run."""
    config = bigquery.QueryJobConfig(dry_run=True, use_query_cache=False)
    return client.query(sql, config, retry=retry(cloud.retry_seconds), job_retry=None)


@dataclass(frozen=True)
class ReadStream:
    """One stream of a read session, and the Arrow schema of its batches, serialized."""

    name: str
    schema: bytes


def open_session(source: BigQuerySource, columns: Columns) -> list[ReadStream]:
    """A table -> the streams of a read session over the columns that are wanted.

    There is no stream where there is no row. Raises InputError.
    """
    if source.table is None:
        raise ValueError("a query is run first: open_session reads tables")
    names = columns.names(describe(replace(source, row_restriction=None)), str(source.table))
    compression = types.ArrowSerializationOptions.CompressionCodec.LZ4_FRAME
    session = types.ReadSession(
        table=source.table.path,
        data_format=types.DataFormat.ARROW,
        read_options=types.ReadSession.TableReadOptions(
            selected_fields=names,
            row_restriction=source.row_restriction or "",
            arrow_serialization_options=types.ArrowSerializationOptions(
                buffer_compression=compression
            ),
        ),
    )
    if source.snapshot is not None:
        session.table_modifiers = types.ReadSession.TableModifiers(snapshot_time=source.snapshot)
    with told_as(InputError, f"{source.label} cannot be read"):
        try:
            opened = source.cloud.bigquery_read().create_read_session(
                parent=f"projects/{source.cloud.project}",
                read_session=session,
                retry=retry(source.cloud.retry_seconds),
            )
        except exceptions.Forbidden as error:
            raise InputError(
                f"{source.label} cannot be read: {explain(error)}, or read it with --read_method "
                "export, which does without the Storage Read API"
            ) from error
    schema = bytes(opened.arrow_schema.serialized_schema)
    return [ReadStream(stream.name, schema) for stream in opened.streams]


def read_stream(stream: ReadStream, client: Any, retry_seconds: float) -> Iterator[pa.RecordBatch]:
    """A stream -> its batches, each once, in order.

    A connection that breaks is made again at the first row that has not arrived, until
    retry_seconds have passed since it broke without a row. Raises GoogleAPICallError.
    """
    schema = pa.ipc.read_schema(pa.py_buffer(stream.schema))
    offset, delay, broken_at = 0, 0.1, math.inf
    while True:
        try:
            for response in client.read_rows(
                read_stream=stream.name, offset=offset, retry=None, timeout=READ_SECONDS
            ):
                # The bare message: proto-plus would copy the rows twice, and hold the first
                # copy while they are worked on.
                bare = types.ReadRowsResponse.pb(response)
                rows, body = bare.row_count, bare.arrow_record_batch.serialized_record_batch
                del response, bare
                # A response without rows only says how far the stream is.
                if rows:
                    yield pa.ipc.read_record_batch(pa.py_buffer(body), schema)
                    offset += rows
                    delay, broken_at = 0.1, math.inf
            return
        except exceptions.GoogleAPICallError as error:
            broken_at = min(broken_at, now := time.monotonic())
            if not is_passing(error) or now - broken_at > retry_seconds:
                raise
            time.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, 10.0)


@dataclass
class ReadBigQuery(beam.PTransform):
    """Nothing -> source batches of a table's or a query's rows.

    columns: what is read of each row. folder: the run's staging folder, for an export;
    whoever runs the pipeline has it discarded afterwards.
    """

    source: BigQuerySource
    columns: Columns
    batch_rows: int = 32_768
    method: ReadMethod = "direct"
    folder: RunFolder | None = None

    def __post_init__(self) -> None:
        self.columns = replace(self.columns, ids_by_content=True)

    def expand(self, pipeline: beam.Pipeline) -> Read:
        """run the query -> open a session -> spread the streams -> read. Nothing fails by row."""
        tables = (
            pipeline | "Source" >> beam.Create([self.source]) | "Query" >> beam.Map(self._to_table)
        )
        good = self._export(tables) if self.method == "export" else self._direct(tables)
        failures = pipeline | "NoFailures" >> beam.Create([], reshuffle=False)
        return Read(typed(good), typed(failures))

    def _direct(self, tables: beam.PCollection[BigQuerySource]) -> beam.PCollection[pa.RecordBatch]:
        return (
            tables
            | "OpenSession" >> beam.FlatMap(open_session, self.columns)
            | "SpreadStreams" >> beam.Reshuffle()
            | "ReadStreams" >> beam.ParDo(self._read_stream)
        )

    def _export(self, tables: beam.PCollection[BigQuerySource]) -> beam.PCollection[pa.RecordBatch]:
        return (
            tables
            | "Extract" >> beam.FlatMap(self._extract)
            | "SpreadFiles" >> beam.Reshuffle()
            | "ReadFiles" >> beam.ParDo(self._read_range)
        )

    def _to_table(self, source: BigQuerySource) -> BigQuerySource:
        """A source -> the same as a table: a query is run into a table that lasts a day."""
        if source.table is not None and (self.method == "direct" or not source.row_restriction):
            return source
        client, cloud = source.cloud.bigquery(), source.cloud
        query = source.query or ""
        if source.table is not None:
            # An extract takes whole tables.
            whole = replace(source, row_restriction=None)
            names = self.columns.names(describe(whole), source.label)
            query = _restricted(source, [f"`{name}`" for name in names])
        config = bigquery.QueryJobConfig()
        if source.max_bytes is not None:
            config.maximum_bytes_billed = source.max_bytes
        with told_as(InputError, f"{source.label} cannot be read"):
            location = _dry_run(client, cloud, query).location
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
        return replace(source, table=table, row_restriction=None, snapshot=None)

    def _read_stream(self, stream: ReadStream) -> Iterator[pa.RecordBatch]:
        cloud = self.source.cloud
        with told_as(InputError, f"{self.source.label} cannot be read further"):
            batches = read_stream(stream, cloud.bigquery_read(), cloud.retry_seconds)
            for batch in rebatch(batches, self.batch_rows):
                yield self.columns.with_ids(batch, "", _NO_POSITIONS)

    def _extract(self, source: BigQuerySource) -> Iterator[FileRange]:
        """A table -> the ranges of the Parquet files that an extract job made of it."""
        folder, cloud, client = self.folder, source.cloud, source.cloud.bigquery()
        if folder is None:
            raise ValueError("method 'export' needs a folder")
        config = bigquery.ExtractJobConfig(destination_format="PARQUET", compression="SNAPPY")
        with told_as(InputError, f"{source.label} cannot be exported to {folder.staging}"):
            table = client.get_table(str(source.table), retry=retry(cloud.retry_seconds))
            if table.streaming_buffer is not None:
                # Source: BigQuery's documentation of streaming, "data availability".
                raise InputError(
                    f"{source.label} has about {table.streaming_buffer.estimated_rows or 0:,} rows "
                    "in its streaming buffer, which an export leaves out: read it with "
                    "--read_method direct, or wait until they are stored (up to 90 minutes)"
                )
            if not table.num_rows:
                return
            job = run_job(
                client,
                job_id("extract", source.attempt, str(source.table)),
                table.location,
                cloud,
                lambda name: client.extract_table(
                    table.reference,
                    # Of this job alone: one that failed may have left files.
                    f"{folder.staged(name)}-*.parquet",
                    job_id=name,
                    location=table.location,
                    job_config=config,
                    retry=retry(cloud.retry_seconds),
                ),
            )
        for file in match_files(job.destination_uris):
            yield from split_file(file, "parquet")

    def _read_range(self, part: FileRange) -> Iterator[pa.RecordBatch]:
        for decoded in read_range(part, self.columns, self.batch_rows):
            if decoded.batch is not None:
                yield decoded.batch
