"""Batches that are spread between reading and predicting, and the choice to do it."""

import datetime
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import grpc
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that
from hypothesis import given, settings
from hypothesis import strategies as st
from property_tests import examples
from read_server import Reads, messages, serving

import transforms.spread
from common.errors import InputError
from common.record_batch import typed
from model_handlers.loaded_model import LoadedModel
from model_handlers.manifests.manifest import Manifest
from model_handlers.package import read_manifest
from model_handlers.torch_model import TorchModelHandler
from model_handlers.trials.pace import rows_a_second
from pipelines.batch.pace import measure
from pipelines.batch.spread import Choice, Scorer, Volume, choose
from pipelines.workers import UNKNOWN_WORKERS, machine_cpus, worker_cpus
from transforms.bigquery.session import ReadStream, read_stream
from transforms.spread import LEAST_BYTES, MOST_BYTES, Packer, SpreadBatches


def batch(rows: int, width: int, start: int = 0) -> pa.RecordBatch:
    numbers = pa.array(range(start, start + rows), pa.int64())
    text = pa.array(["x" * width] * rows, pa.string())
    return pa.record_batch({"n": numbers, "t": text})


# The size of shuffled elements


def packed(batches: Iterable[pa.RecordBatch]) -> list[pa.RecordBatch]:
    packer = Packer()
    return [*(part for one in batches for part in packer.add(one)), *packer.flush()]


@settings(max_examples=examples(60))
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 40), st.booleans()), max_size=12),
    st.integers(1, 400),
)
def test_packed_batches_hold_the_same_rows_in_order_within_the_sizes(
    sizes: list[tuple[int, int, bool]], least: int
) -> None:
    batches, start = [], 0
    for rows, width, other in sizes:
        one = batch(rows, width, start)
        # A batch without rows separates nothing.
        batches.append(one.rename_columns(["n", "other"]) if other else one)
        start += rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transforms.spread, "LEAST_BYTES", least)
        patch.setattr(transforms.spread, "MOST_BYTES", most := 8 * least)
        found = packed(batches)
    assert [n for one in found for n in one.column("n").to_pylist()] == list(range(start))
    for one, following in zip(found, [*found[1:], None], strict=False):
        # Within a batch, the rows have about the same size.
        assert one.nbytes <= most + 60 or one.num_rows == 1
        alike = following is not None and following.schema.equals(one.schema)
        assert one.nbytes >= least or not alike


@pytest.mark.slow
def test_spread_batches_have_the_same_rows_and_the_size_that_the_model_takes() -> None:
    batches = [batch(40_000, 30, 0), *[batch(10, 30, 40_000 + 10 * i) for i in range(50)]]

    def same(found: list[pa.RecordBatch]) -> None:
        rows = [n for one in found for n in one.column("n").to_pylist()]
        assert sorted(rows) == list(range(40_500))
        assert max(one.num_rows for one in found) == 15_000

    with beam.Pipeline("FnApiRunner") as pipeline:
        source = typed(pipeline | beam.Create([None]) | beam.FlatMap(lambda _: batches))
        assert_that(source | SpreadBatches(15_000), same)
    sizes = [one.nbytes for one in packed(batches)]
    assert max(sizes) <= MOST_BYTES
    assert sum(size < LEAST_BYTES for size in sizes) <= 1


# A session that ends while a slow model scores its rows


@pytest.fixture
def streams(tmp_path: Path) -> Iterator[tuple[Reads, ReadStream, Any]]:
    """A server of 12 rows that sends 3 rows a call, one of its streams, and a client."""
    table = pa.table({"n": pa.array(range(12), pa.int64())})
    broken = (1, grpc.StatusCode.UNAVAILABLE)
    reads = Reads(table, breaks=[broken] * 4, ended=tmp_path / "ended")
    with serving(reads) as cloud:
        yield reads, ReadStream("s/0", messages(table[:0], 1)[0], remedy="do so"), cloud


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.slow
def test_a_session_that_ends_while_the_model_scores_loses_only_a_run_that_is_not_spread(
    spread: bool, streams: tuple[Reads, ReadStream, Any]
) -> None:
    reads, stream, cloud = streams
    # Beam works with copies of what a function refers to.
    ended = reads.ended or pytest.fail("there is no file")

    def read(_: None) -> Iterator[pa.RecordBatch]:
        yield from read_stream(stream, cloud.bigquery_read(), 20.0)

    def score(one: pa.RecordBatch) -> int:
        # The model is so slow that the session ends before it has scored its first batch.
        ended.touch()
        return int(one.num_rows)

    def run() -> None:
        with beam.Pipeline("FnApiRunner") as pipeline:
            found = typed(pipeline | beam.Create([None]) | beam.FlatMap(read))
            found = found | SpreadBatches(100) if spread else found
            total = found | beam.Map(score) | beam.CombineGlobally(sum)
            assert_that(total, lambda sums: sums == [12] or pytest.fail(f"got {sums}"))

    if spread:
        run()
    else:
        with pytest.raises(Exception, match="session of BigQuery expired, when 3 rows of stream 1"):
            run()
    assert ended.exists()


@pytest.mark.parametrize(
    ("seconds", "rows"), [(-60, None), (3_600, 12)], ids=["before a call", "in time"]
)
def test_a_session_that_has_expired_is_reported_without_a_call(
    seconds: int, rows: int | None, streams: tuple[Reads, ReadStream, Any]
) -> None:
    reads, stream, cloud = streams
    reads.expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    opened = cloud.bigquery_read().create_read_session(request={"parent": "projects/p"})
    (stream,) = ReadStream.all_of(opened, "add --spread_batches yes")
    found = read_stream(stream, cloud.bigquery_read(), 20.0)
    if rows is not None:
        assert sum(one.num_rows for one in found) == rows
        return
    with pytest.raises(InputError) as raised:
        list(found)
    when = f"{reads.expires:%Y-%m-%d %H:%M} UTC"
    assert f"expired at {when}, when 0 rows of stream 1 of 1 were read" in str(raised.value)
    assert str(raised.value).endswith(": add --spread_batches yes")
    assert reads.offsets == []


def test_a_session_that_ends_within_a_stream_is_final_whatever_the_error_says(
    streams: tuple[Reads, ReadStream, Any], no_waits: list[float]
) -> None:
    reads, stream, cloud = streams
    batches = read_stream(stream, cloud.bigquery_read(), math.inf)
    assert next(batches).num_rows == 3
    (reads.ended or pytest.fail("there is no file")).touch()
    with pytest.raises(InputError, match=r"when 3 rows of stream 1 of 1 were read: do so$"):
        list(batches)
    assert reads.offsets == [0, 3]


# The choice


def scorer(**changes: Any) -> Scorer:
    def never() -> float:
        raise AssertionError("the model is measured")

    return Scorer(**{"cpus": 4, "in_process": False, "slow": None, "pace": never} | changes)


LARGE = Volume(session=True, rows=10**8, row_bytes=248)


@pytest.mark.parametrize(
    ("volume", "found", "spread", "why"),
    [
        (LARGE, scorer(slow="an endpoint"), True, "an endpoint scores the rows"),
        (LARGE, scorer(slow="a GPU"), True, "a GPU scores"),
        (LARGE, scorer(pace=lambda: 500.0), True, "100,000,000 rows at 500 rows a second on 4"),
        (LARGE, scorer(pace=lambda: 2e4), False, "on 4 CPUs take 21 minutes"),
        (LARGE, scorer(pace=lambda: 5e5), False, ""),
        (LARGE, scorer(pace=lambda: None), True, "the pace of the model is not known"),
        (Volume(session=True), scorer(), True, "the number of rows is not known"),
        (Volume(session=True, rows=43_200), scorer(slow="an endpoint"), False, ""),
        (LARGE, scorer(in_process=True, slow="an endpoint"), False, "held in memory"),
        (LARGE, scorer(in_process=True, pace=lambda: 500.0), False, "--read_method export"),
        (
            Volume(session=True, rows=10**6, row_bytes=248),
            scorer(in_process=True, pace=lambda: 20.0),
            True,
            "3.5 hours",
        ),
        (Volume(session=True), scorer(in_process=True), False, ""),
        (Volume(rows=10**9, row_bytes=248), scorer(), False, ""),
        (Volume(unsplit=1 << 30), scorer(), True, "one worker alone reads a text file of 1,074 MB"),
        (Volume(unsplit=1 << 20), scorer(), False, ""),
        (Volume(unsplit=1 << 30), scorer(in_process=True), False, ""),
    ],
)
def test_auto_spreads_what_would_outlive_its_session_and_says_why(
    volume: Volume, found: Scorer, spread: bool, why: str
) -> None:
    choice = choose("auto", volume, found)
    assert choice.spread == spread
    assert why in choice.why
    assert bool(choice.why) == bool(why)


@pytest.mark.parametrize("volume", [LARGE, Volume(), Volume(unsplit=1 << 40)])
def test_a_flag_decides_without_a_measurement(volume: Volume) -> None:
    assert choose("yes", volume, scorer()) == Choice(True)
    assert choose("no", volume, scorer()) == Choice(False)


@pytest.mark.parametrize(
    ("machine", "cpus"),
    [
        ("n1-standard-4", 4),
        ("e2-highmem-16", 16),
        ("n2-custom-6-8192", 6),
        ("custom-2-4096-ext", 2),
        ("c3-standard-22-lssd", 22),
        ("e2-medium", 1),
        (None, 1),
    ],
)
def test_the_cpus_of_a_machine_are_in_its_name(machine: str | None, cpus: int) -> None:
    assert machine_cpus(machine) == cpus


@pytest.mark.parametrize(
    ("flags", "cpus"),
    [
        (["--runner=DataflowRunner", "--max_num_workers=30", "--machine_type=n1-standard-2"], 60),
        (["--runner=DataflowRunner", "--num_workers=3"], 3),
        (["--runner=DataflowRunner"], UNKNOWN_WORKERS),
        (["--runner=FnApiRunner", "--direct_num_workers=5"], 5),
    ],
)
def test_the_cpus_of_a_run_follow_its_flags(flags: list[str], cpus: int) -> None:
    assert worker_cpus(PipelineOptions(flags)) == cpus


@pytest.mark.parametrize("golden", [True, False])
def test_the_pace_of_a_model_is_measured_in_batches_of_at_most_batch_rows(
    golden: bool, example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(str(example / "model"))
    model = TorchModelHandler(str(example / "model"), manifest, batch_rows=300).load_model()
    if not golden:
        model.manifest = replace(model.manifest, golden=None)
    rows: list[int] = []
    whole = LoadedModel.forward

    def note(self: LoadedModel, arrays: list[np.ndarray], part: slice) -> list[np.ndarray]:
        rows.append(part.stop)
        assert all(len(array) == part.stop for array in arrays)
        return whole(self, arrays, part)

    monkeypatch.setattr(LoadedModel, "forward", note)
    assert rows_a_second(model) > 0
    assert rows == sorted(rows)
    assert rows[-1] == 300


def test_a_model_that_is_large_or_cannot_be_loaded_here_is_not_measured(
    tiny_package: tuple[str, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = TorchModelHandler(*tiny_package)
    assert (measure(handler) or 0) > 0
    monkeypatch.setattr("pipelines.batch.pace.MEASURED_BYTES", 10)
    assert measure(handler) is None
    monkeypatch.undo()
    other = TorchModelHandler(tiny_package[0], tiny_package[1], device="cuda:99")
    assert measure(other) is None
