"""ReadBigQuery: a table or a query's result as source batches, read as Arrow.

Rows come over the Storage Read API, one element a stream, and stay record batches;
a stream that breaks goes on at its offset. Or, for projects that may not use that
API, by an extract to Parquet files.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.io.filesystem import FileMetadata
from google.api_core import exceptions
from google.cloud import bigquery
from google.cloud.bigquery_storage_v1 import types

from cloud.errors import explain, is_passing, retry, translate_errors
from common.errors import InputError
from common.record_batch import rebatch, typed
from transforms.accounts import (
    Entry,
    Settle,
    expect_rows,
    promise,
    rows_read,
    taken,
    unknown_rows,
)
from transforms.bigquery.jobs import job_id, run_job
from transforms.bigquery.schema import TableName
from transforms.bigquery.source import (
    BigQuerySource,
    describe_source,
    dry_run,
    get_table,
    restricted,
)
from transforms.bigquery.tables import count_rows
from transforms.files.ranges import match_files
from transforms.files.read import Columns, Read, read_matched
from transforms.files.run_folder import RunFolder
from transforms.provenance import Provenance

ReadMethod = Literal["direct", "export"]
# Of one call: a stream that takes longer, or hangs, goes on in another at its offset.
READ_SECONDS = 600.0
_NO_POSITIONS = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class ReadStream:
    """One stream of a read session, and the Arrow schema of its batches, serialized.

    number, of: which one it is of how many.
    """

    name: str
    schema: bytes
    number: int = 0
    of: int = 1

    @classmethod
    def all_of(cls, session: types.ReadSession) -> list[ReadStream]:
        """A session that was opened -> its streams."""
        schema, count = bytes(session.arrow_schema.serialized_schema), len(session.streams)
        return [cls(one.name, schema, i, count) for i, one in enumerate(session.streams)]


def open_session(source: BigQuerySource, columns: Columns) -> list[ReadStream]:
    """A table -> the streams of a read session over the columns that are wanted.

    There is no stream where there is no row. Raises InputError.
    """
    if source.table is None:
        raise ValueError("a query is run first: open_session reads tables")
    names = columns.names(describe_source(replace(source, row_restriction=None)), str(source.table))
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
    with translate_errors(InputError, f"{source.label} cannot be read"):
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
    return ReadStream.all_of(opened)


def promise_streams(place: str, streams: Sequence[ReadStream]) -> Entry:
    """A place and the streams of its session -> the promise of them all."""
    return promise(place, "streams", streams[0].of if streams else 0)


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


@dataclass(kw_only=True)
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
        # No row of Parquet fails to be read, so no failure record says whose it is.
        nobody = Provenance.of(self.columns.manifest)
        read = read_matched(extracted.files, self.columns, nobody, "parquet", self.batch_rows)
        counts = (read.counts, extracted.counts) | "AllCounts" >> beam.Flatten()
        return read._replace(counts=counts)

    def _to_table(self, source: BigQuerySource) -> BigQuerySource:
        """A source -> the same as a table: a query is run into a table that lasts a day."""
        if source.table is not None and (self.method == "direct" or not source.row_restriction):
            return source
        client, cloud = source.cloud.bigquery(), source.cloud
        query = source.query or ""
        if source.table is not None:
            # An extract takes whole tables.
            whole = replace(source, row_restriction=None)
            names = self.columns.names(describe_source(whole), source.label)
            query = restricted(source, [f"`{name}`" for name in names])
        config = bigquery.QueryJobConfig()
        if source.max_bytes is not None:
            config.maximum_bytes_billed = source.max_bytes
        with translate_errors(InputError, f"{source.label} cannot be read"):
            location = dry_run(client, cloud, query).location
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

    def _open(self, source: BigQuerySource) -> Iterator[ReadStream | beam.pvalue.TaggedOutput]:
        """A table -> the streams of a session, and what they hold to the output `entries`."""
        place, rows = self.source.label, source.rows
        with translate_errors(InputError, f"{place} cannot be read"):
            before = get_table(source) if rows is None else None
            streams = open_session(source, self.columns)
            if before is not None:
                rows = count_rows(before, get_table(source))
        yield from streams
        if source.row_restriction is not None:
            rows = "only reading counts the rows of --row_restriction: streams are compared"
        if isinstance(rows, int):
            said = expect_rows(place, rows, source.counted_by)
        else:
            said = unknown_rows(place, rows or "")
        for entry in (promise_streams(place, streams), said):
            yield beam.pvalue.TaggedOutput("entries", entry)

    def _read_stream(
        self, stream: ReadStream
    ) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
        """A stream -> its source batches, and that it has ended to the output `entries`."""
        cloud, place, rows = self.source.cloud, self.source.label, 0
        with translate_errors(InputError, f"{self.source.label} cannot be read further"):
            batches = read_stream(stream, cloud.bigquery_read(), cloud.retry_seconds)
            for batch in rebatch(batches, self.batch_rows):
                yield self.columns.with_ids(batch, "", _NO_POSITIONS)
                rows += batch.num_rows
        ended = taken(place, "streams", stream.number, stream.number + 1)
        for entry in (ended, rows_read(place, rows)):
            yield beam.pvalue.TaggedOutput("entries", entry)

    def _extract(self, source: BigQuerySource) -> Iterator[FileMetadata | beam.pvalue.TaggedOutput]:
        """A table -> the Parquet files that an extract job made of it, and its rows to `counts`."""
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
                    # Of this job alone: one that failed may have left files.
                    f"{folder.staged(name)}-*.parquet",
                    job_id=name,
                    location=table.location,
                    job_config=config,
                    retry=retry(cloud.retry_seconds),
                ),
            )
            rows = count_rows(table, get_table(source))
        yield from match_files(job.destination_uris)
        # Otherwise the footers alone say how many rows the job saw.
        if isinstance(rows, int):
            counted = ("rows_expected", source.counted_by), rows
            yield beam.pvalue.TaggedOutput("counts", counted)
