"""The contestants of the write benchmark. They write a file to load, or requests that append.

python -m benchmarks.bigquery.sinks NAME --rows 500000
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.gcp.bigquery import BigQueryDisposition, BigQueryWriteFn
from apache_beam.io.gcp.bigquery_file_loads import WriteRecordsToFile
from apache_beam.io.gcp.bigquery_tools import FileFormat
from apache_beam.transforms.window import GlobalWindows
from google.cloud.bigquery_storage_v1 import types

from benchmarks.contestant import LATENT, LATENT_OUTPUT, SCORE_OUTPUT, timed
from benchmarks.row_costs import report_rows
from cloud.clients import Cloud
from common.record_batch import OUTPUTS, ROW_ID, SOURCE, derived_ids, sized, slices, to_rows
from transforms.bigquery.append import BATCH_BYTES, conform_to_table
from transforms.bigquery.append_stream import DefaultStream
from transforms.bigquery.destination import TableDestination
from transforms.bigquery.schema import TableName, arrow_schema, table_fields
from transforms.encode import encode
from transforms.files.sink.run_folder import SCORES, RunFolder
from transforms.files.sink.stage import conform_to_files
from transforms.files.sink.writers import open_writer
from transforms.output_fields import OutputFields
from transforms.provenance import Provenance

# The value of the model's handler. Its module would import torch.
BATCH_ROWS = 32_768
SEED = 11
SCORED_AT = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, datetime.UTC)
PROVENANCE = Provenance(
    run_id="20260102T030405Z",
    pipeline="batch_local",
    model_name="pytorch-autoencoder",
    model_version="1.0.0",
    model_digest="5a" * 32,
)
FIELDS = OutputFields(score=SCORE_OUTPUT, outputs=(LATENT_OUTPUT,))
TABLE = TableName("some-project", "frameworks", "scores")
BEAM_TABLE = f"{TABLE.project}:{TABLE.dataset}.{TABLE.table}"
WRITTEN = "written.parquet"


def output_rows(rows: int) -> list[pa.RecordBatch]:
    """Return that many output rows of the example, in batches as the pipeline encodes them."""
    rng = np.random.default_rng(SEED)
    batches = []
    for part in slices(rows, BATCH_ROWS):
        count = part.stop - part.start
        latent = pa.array(rng.standard_normal(count * LATENT, np.float32))
        outputs = {
            SCORE_OUTPUT: pa.array(rng.random(count, np.float32)),
            LATENT_OUTPUT: pa.FixedSizeListArray.from_arrays(latent, LATENT),
        }
        ids = derived_ids("transaction", np.arange(part.start, part.stop))
        columns = {
            ROW_ID: ids,
            SOURCE: pa.StructArray.from_arrays([ids], ["transaction_id"]),
            OUTPUTS: pa.StructArray.from_arrays(list(outputs.values()), list(outputs)),
        }
        batches.append(encode(pa.record_batch(columns), FIELDS, PROVENANCE, SCORED_AT))
    return batches


def table_rows(batches: list[pa.RecordBatch]) -> pa.Table:
    """Return output rows in the form in which the table in BigQuery holds them."""
    schema = table_schema(batches)
    return pa.Table.from_batches([conform_to_table(batch, schema) for batch in batches], schema)


def table_schema(batches: list[pa.RecordBatch]) -> pa.Schema:
    """Return the schema of the table for output rows."""
    return arrow_schema(table_fields(batches[0].schema))


def dict_rows(batches: list[pa.RecordBatch]) -> list[dict[str, Any]]:
    """Return output rows as dicts for Beam's sinks, with times as text, which is cheapest."""
    rows = [row for batch in batches for row in to_rows(batch)]
    for row in rows:
        row["scored_at"] = row["scored_at"].isoformat()
    return rows


def from_dicts(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows that Beam wrote in the form in which the table holds them."""
    text = schema.set(schema.get_field_index("scored_at"), pa.field("scored_at", pa.string()))
    return pa.Table.from_pylist(rows, text).cast(schema)


@dataclass(frozen=True)
class Writing:
    """The task of a contestant.

    Attributes:
        batches: The output rows.
        folder: The folder for files.
        is_read: Whether the written rows will be read back, and must be kept until then.
    """

    batches: list[pa.RecordBatch]
    folder: Path
    is_read: bool


@dataclass(frozen=True)
class Contest:
    """A prepared contestant: `run` is measured, and `read` returns the rows that it wrote."""

    run: Callable[[], None]
    read: Callable[[], pa.Table]


def millrace_parquet(task: Writing) -> Contest:
    """Millrace in a batch run: stages Parquet for a load job."""
    schema, path = task.batches[0].schema, task.folder / "staged.parquet"
    folder = RunFolder(str(task.folder), "bench", "bench")
    destination = TableDestination(
        part=SCORES,
        folder=folder,
        cloud=Cloud(TABLE.project),
        table=TABLE,
        schema=schema,
        provenance=PROVENANCE,
    )

    def run() -> None:
        file_schema = destination.file_schema(schema)
        with path.open("wb") as handle:
            writer = open_writer(handle, file_schema, destination.output_format)
            for batch in task.batches:
                same = batch.schema.equals(file_schema)
                writer.write(batch if same else conform_to_files(batch, file_schema))
            writer.close()

    return Contest(run, lambda: pq.read_table(path).cast(table_schema(task.batches)))


def millrace_append(task: Writing) -> Contest:
    """Millrace in a streaming run: appends over the Storage Write API in requests of full size."""
    schema, service = table_schema(task.batches), _Service(task.is_read)
    stream = DefaultStream(_ServedCloud(TABLE.project, service=service), TABLE, schema)

    def run() -> None:
        for batch in task.batches:
            for part in sized(conform_to_table(batch, schema), BATCH_BYTES):
                if stream.send(part):
                    raise AssertionError("every row is accepted")
        stream.close()

    return Contest(run, lambda: service.rows(schema))


class _Service:
    """Replaces gRPC and the service: serializes each request and responds with success."""

    def __init__(self, keeps: bool) -> None:
        self._keeps = keeps
        self._sent: list[bytes] = []

    def append_rows(self, requests: Iterator[Any], **_: Any) -> _Answers:
        """Return the responses to the requests of a call."""
        return _Answers(requests, self._take)

    def _take(self, request: types.AppendRowsRequest) -> None:
        data = types.AppendRowsRequest.serialize(request)
        if self._keeps:
            self._sent.append(data)

    def rows(self, schema: pa.Schema) -> pa.Table:
        """Return the rows that were sent, as the service would read them."""
        requests = [types.AppendRowsRequest.deserialize(data) for data in self._sent]
        bodies = [request.arrow_rows.rows.serialized_record_batch for request in requests]
        return pa.Table.from_batches(
            [pa.ipc.read_record_batch(pa.py_buffer(body), schema) for body in bodies], schema
        )


class _Answers:
    """An iterator over responses that can be cancelled, like a call of gRPC."""

    def __init__(self, requests: Iterator[Any], take: Callable[[Any], None]) -> None:
        self._requests, self._take = requests, take

    def __iter__(self) -> _Answers:
        return self

    def __next__(self) -> types.AppendRowsResponse:
        self._take(next(self._requests))
        return types.AppendRowsResponse()

    def cancel(self) -> None:
        """Do nothing, because no request is pending."""


@dataclass(frozen=True)
class _ServedCloud(Cloud):
    """A `Cloud` with the Storage Write API in this process."""

    service: _Service | None = None

    def bigquery_write(self) -> Any:
        return SimpleNamespace(transport=self.service)


def beam_file_loads(task: Writing) -> Contest:
    """Beam's FILE_LOADS: writes rows to a JSON Lines file."""
    schema = table_schema(task.batches)

    def read(path: Path) -> pa.Table:
        return from_dicts([json.loads(line) for line in path.open()], schema)

    return _file_loads(task, WriteRecordsToFile(None), dict_rows(task.batches), read)


def beam_file_loads_avro(task: Writing) -> Contest:
    """Beam's FILE_LOADS with temp_file_format AVRO."""
    schema = table_schema(task.batches)
    fields = [field.to_api_repr() for field in table_fields(schema)]
    dofn = WriteRecordsToFile({"fields": fields}, file_format=FileFormat.AVRO)
    rows = [row for batch in task.batches for row in to_rows(batch)]

    def read(path: Path) -> pa.Table:
        with path.open("rb") as file:
            return pa.Table.from_pylist(list(fastavro.reader(file)), schema)

    return _file_loads(task, dofn, rows, read)


def _file_loads(
    task: Writing,
    dofn: WriteRecordsToFile,
    rows: list[dict[str, Any]],
    read: Callable[[Path], pa.Table],
) -> Contest:
    written: list[Any] = []

    def run() -> None:
        dofn.start_bundle()
        for row in rows:
            written.extend(dofn.process((BEAM_TABLE, row), str(task.folder)))
        written.extend(dofn.finish_bundle())

    def read_all() -> pa.Table:
        (file,) = [tagged.value.value for tagged in written]
        _, (path, _) = file
        return read(Path(path))

    return Contest(run, read_all)


def beam_streaming_inserts(task: Writing) -> Contest:
    """Beam's STREAMING_INSERTS in a worker that scores, where torch is imported."""
    importlib.import_module("torch")
    return _streaming_inserts(task)


def beam_streaming_inserts_no_torch(task: Writing) -> Contest:
    """Do the same in a worker without torch, because Beam sizes a row via all imported modules."""
    if "torch" in sys.modules:
        raise RuntimeError("expected a process without torch")
    return _streaming_inserts(task)


def _streaming_inserts(task: Writing) -> Contest:
    rows, inserted = dict_rows(task.batches), list[dict[str, Any]]()

    class Client:
        def insert_rows_json(self, _: str, json_rows: list[dict[str, Any]], **__: Any) -> list[Any]:
            inserted.extend(json_rows)
            return []

    # The fastest settings: the table exists, and Beam does not check it.
    dofn = BigQueryWriteFn(
        batch_size=None,
        create_disposition=BigQueryDisposition.CREATE_NEVER,
        test_client=Client(),
    )

    def run() -> None:
        window = GlobalWindows.windowed_value(None)
        dofn.start_bundle()
        for i, row in enumerate(rows):
            for _ in dofn.process((BEAM_TABLE, (row, f"insert-{i}")), window) or ():
                raise AssertionError("every row is accepted")
        list(dofn.finish_bundle())

    return Contest(run, lambda: from_dicts(inserted, table_schema(task.batches)))


CONTESTANTS: dict[str, Callable[[Writing], Contest]] = {
    function.__name__: function
    for function in (
        millrace_parquet,
        millrace_append,
        beam_file_loads,
        beam_file_loads_avro,
        beam_streaming_inserts,
        beam_streaming_inserts_no_torch,
    )
}


def main() -> None:
    """Run the contestant and print its report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=CONTESTANTS)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument(
        "--output", type=Path, help="folder for the written rows (default: drop them)"
    )
    args = parser.parse_args()
    batches = output_rows(args.rows)
    with tempfile.TemporaryDirectory() as folder:
        contest = CONTESTANTS[args.name](
            Writing(batches, Path(folder), is_read=args.output is not None)
        )
        with timed() as clock:
            contest.run()
        if args.output is not None:
            pq.write_table(contest.read(), args.output / WRITTEN)
    report_rows(args.rows, clock)


if __name__ == "__main__":
    main()
