"""The contestants of the read benchmark. They turn recorded responses into ids and a matrix.

python -m benchmarks.bigquery.decoders NAME --recording FOLDER --model FOLDER
"""

from __future__ import annotations

import argparse
import itertools
import operator
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import apache_beam.io.gcp.bigquery as beam_bigquery
import numpy as np
import pyarrow as pa
from apache_beam.io.gcp.bigquery_tools import BigQueryWrapper
from apache_beam.metrics import Metrics, MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from google.cloud.bigquery_storage_v1 import reader, types

from benchmarks.bigquery.recording import Recording, ReplayingClient, ReplayingCloud
from benchmarks.contestant import ID_COLUMN, timed
from benchmarks.row_costs import report_rows
from common.record_batch import BATCH_ROWS, INPUTS, ROW_ID, rebatch, struct_columns
from examples.transactions.data import FEATURES
from model_handlers.manifests.manifest import Manifest
from model_handlers.package import read_manifest
from transforms.bigquery.read import ReadBigQuery
from transforms.bigquery.schema import TableName
from transforms.bigquery.session import ReadStream, read_stream
from transforms.bigquery.source import BigQuerySource
from transforms.files.columns import Columns
from transforms.provenance import Provenance
from transforms.validate import ValidateFeatures, validate

# Measured on 2 cores with batches of 256, 1,000 and 10,000 dicts, in us per row up to the matrix:
# np.fromiter over the values of operator.itemgetter 0.73, 0.76, 0.75; np.array of its tuples 0.86,
# 1.01, 1.14.
BEAM_BATCH_ROWS = 1_000
OPTIONS = ("--runner=FnApiRunner", "--direct_running_mode=in_memory", "--direct_num_workers=1")
TABLE = TableName("recorded-project", "recorded", "transactions")


@dataclass(frozen=True)
class Decoding:
    """The task of a contestant.

    Attributes:
        recording: The folder of the recording.
        times: How many times to read the recording.
        manifest: The manifest of the model.
        output: The folder for the rows found, None to drop them.
    """

    recording: Path
    times: int
    manifest: Manifest
    output: Path | None

    def client(self) -> ReplayingClient:
        """Return a new client that replays the recording."""
        return ReplayingClient(Recording.load(self.recording), self.times)


def keep(output: Path | None, ids: Any, matrix: np.ndarray) -> int:
    """Write ids and their matrix to a file if there is a folder, and return the number of rows."""
    if output is not None:
        text = np.asarray(ids).astype(np.str_)
        np.savez(output / f"{uuid.uuid4().hex}.npz", ids=text, matrix=matrix)
    return len(matrix)


def read_kept(output: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted ids in a folder that `keep` filled, and their rows of the matrix."""
    parts = [np.load(path) for path in sorted(output.glob("*.npz"))]
    ids = np.concatenate([part["ids"] for part in parts])
    order = np.argsort(ids, kind="stable")
    return ids[order], np.concatenate([part["matrix"] for part in parts])[order]


def matrix_of(batch: pa.RecordBatch, manifest: Manifest) -> np.ndarray:
    """Return the matrix that the handler passes to the model, without a copy."""
    (spec,) = manifest.inputs
    flat = struct_columns(batch, INPUTS)[spec.name].flatten()
    return flat.to_numpy().reshape(-1, spec.width)


def matrix_of_dicts(rows: list[dict[str, Any]]) -> np.ndarray:
    """Return Beam's rows as a matrix, float32 `[rows, 30]`.

    Raises:
        ValueError: A value is not finite.
    """
    values = itertools.chain.from_iterable(map(operator.itemgetter(*FEATURES), rows))
    matrix = np.fromiter(values, np.float32, len(rows) * len(FEATURES)).reshape(len(rows), -1)
    if not np.isfinite(matrix).all():
        raise ValueError(f"expected finite features, got others among {len(rows)} rows")
    return matrix


def millrace(task: Decoding, id_column: str | None = ID_COLUMN) -> Callable[[], int]:
    """Millrace without a runner: the work of ReadBigQuery and ValidateFeatures on each stream."""
    client = task.client()
    session = client.create_read_session()
    schema = bytes(session.arrow_schema.serialized_schema)
    columns = Columns(task.manifest, id_column, ids_by_content=True)
    no_positions = np.empty(0, np.int64)

    def run() -> int:
        rows = 0
        for stream in session.streams:
            batches = read_stream(ReadStream(stream.name, schema), client, retry_seconds=1.0)
            for batch in rebatch(batches, BATCH_ROWS):
                source = columns.with_ids(batch, "", no_positions)
                good, _, _ = validate(source, task.manifest)
                rows += keep(task.output, good.column(ROW_ID), matrix_of(good, task.manifest))
        return rows

    return run


def millrace_content_ids(task: Decoding) -> Callable[[], int]:
    """Millrace without a runner, for a table without an id column."""
    return millrace(task, id_column=None)


def beam_rows(task: Decoding) -> Callable[[], int]:
    """Beam without a runner: its sources of streams, and a matrix from its dicts."""
    client = _replay_to_beam(task)
    session = client.create_read_session()
    native = session.data_format == types.DataFormat.ARROW

    def run() -> int:
        rows = 0
        for stream in session.streams:
            source = beam_bigquery._CustomBigQueryStorageStreamSource(stream.name, native)
            every = iter(source.read(source.get_range_tracker(None, None)))
            while some := list(itertools.islice(every, BEAM_BATCH_ROWS)):
                rows += keep(task.output, [row[ID_COLUMN] for row in some], matrix_of_dicts(some))
        return rows

    return run


def _replay_to_beam(task: Decoding) -> ReplayingClient:
    """Make Beam use the recording instead of its own client, and return the replaying client."""
    client = task.client()

    class Client:
        def create_read_session(self, **_: Any) -> types.ReadSession:
            return client.create_read_session()

        def read_rows(self, name: str, retry_delay_callback: Any = None) -> Any:
            return reader.ReadRowsStream(client, name, 0, {}, retry_delay_callback)

    beam_bigquery.bq_storage.BigQueryReadClient = Client
    # Beam requests the size of the table to choose the number of streams. It also creates a client
    # for its clean-up, which has nothing to do here.
    beam_bigquery._CustomBigQueryStorageSource._get_table_size = lambda *_: 1 << 30
    BigQueryWrapper._bigquery_client = staticmethod(lambda *_: object())
    return client


def millrace_pipeline(task: Decoding) -> Callable[[], int]:
    """Millrace in a pipeline: ReadBigQuery and ValidateFeatures."""
    cloud = ReplayingCloud("recorded-project", folder=str(task.recording), times=task.times)
    source = BigQuerySource(cloud=cloud, table=TABLE)
    provenance = Provenance.of(task.manifest, "bench", "bench")

    def wire(pipeline: beam.Pipeline) -> None:
        read = pipeline | ReadBigQuery(source=source, columns=Columns(task.manifest, ID_COLUMN))
        valid = read.good | ValidateFeatures(task.manifest, provenance)
        valid.good | "Keep" >> beam.Map(_keep_batch, task.manifest, task.output)

    return lambda: _run_pipeline(wire)


def beam_pipeline(task: Decoding) -> Callable[[], int]:
    """Beam in a pipeline: ReadFromBigQuery, and a matrix from its dicts."""
    native = _replay_to_beam(task).create_read_session().data_format == types.DataFormat.ARROW

    def wire(pipeline: beam.Pipeline) -> None:
        read = beam.io.ReadFromBigQuery(
            method=beam.io.ReadFromBigQuery.Method.DIRECT_READ,
            table=f"{TABLE.project}:{TABLE.dataset}.{TABLE.table}",
            selected_fields=[ID_COLUMN, *FEATURES],
            use_native_datetime=native,
        )
        pipeline | read | "Keep" >> beam.ParDo(_KeepDicts(task.output))

    return lambda: _run_pipeline(wire)


def _run_pipeline(wire: Callable[[beam.Pipeline], None]) -> int:
    pipeline = beam.Pipeline(options=PipelineOptions(OPTIONS))
    wire(pipeline)
    result = pipeline.run()
    result.wait_until_finish()
    (rows,) = result.metrics().query(MetricsFilter().with_name("kept"))["counters"]
    return int(rows.committed)


def _count(rows: int) -> None:
    Metrics.counter("bigquery_decoders", "kept").inc(rows)


def _keep_batch(batch: pa.RecordBatch, manifest: Manifest, output: Path | None) -> None:
    _count(keep(output, batch.column(ROW_ID), matrix_of(batch, manifest)))


class _KeepDicts(beam.DoFn):
    """Collects the row dicts of a bundle into batches, and keeps them."""

    def __init__(self, output: Path | None) -> None:
        self._output = output

    def start_bundle(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def process(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == BEAM_BATCH_ROWS:
            self._flush()

    def finish_bundle(self) -> None:
        if self._rows:
            self._flush()

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        _count(keep(self._output, [row[ID_COLUMN] for row in rows], matrix_of_dicts(rows)))


CONTESTANTS = {
    function.__name__: function
    for function in (millrace, millrace_content_ids, beam_rows, millrace_pipeline, beam_pipeline)
}


def main() -> None:
    """Run the contestant and print its report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=CONTESTANTS)
    parser.add_argument("--recording", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument(
        "--times", type=int, default=1, help="how many times to read the recording (default: 1)"
    )
    parser.add_argument(
        "--output", type=Path, help="folder for ids and matrix (default: drop them)"
    )
    args = parser.parse_args()
    task = Decoding(args.recording, args.times, read_manifest(str(args.model)), args.output)
    run = CONTESTANTS[args.name](task)
    with timed() as clock:
        rows = run()
    report_rows(rows, clock)


if __name__ == "__main__":
    # Beam sends functions to its workers by module name, which must not be __main__.
    from benchmarks.bigquery.decoders import main as run_main

    run_main()
