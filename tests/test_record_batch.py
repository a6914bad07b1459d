"""The element type: what its coder must preserve, and what rebatching must not change."""

import datetime
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st

from common.record_batch import (
    VARIABLE_BYTES,
    RecordBatchCoder,
    concat_batches,
    derived_ids,
    rebatch,
    row_bytes,
    slices,
    source_batch,
    struct_columns,
    to_rows,
    typed,
)

CODER = RecordBatchCoder()

SCALARS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.float32(), st.floats(width=32, allow_nan=False)),
    (pa.bool_(), st.booleans()),
    (pa.string(), st.text(max_size=5)),
    (pa.binary(), st.binary(max_size=5)),
    (pa.null(), st.none()),
    (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["x", "y"])),
    (pa.timestamp("us", tz="UTC"), st.datetimes(timezones=st.just(datetime.UTC))),
]


def nest(
    inner: st.SearchStrategy[tuple[pa.DataType, st.SearchStrategy[Any]]],
) -> st.SearchStrategy[tuple[pa.DataType, st.SearchStrategy[Any]]]:
    plain = inner.filter(lambda pair: not pa.types.is_dictionary(pair[0]))
    lists = plain.map(lambda p: (pa.list_(p[0]), st.lists(st.none() | p[1], max_size=3)))
    fixed = plain.map(
        lambda p: (pa.list_(p[0], 2), st.lists(st.none() | p[1], min_size=2, max_size=2))
    )
    structs = plain.map(
        lambda p: (pa.struct([("u", p[0])]), st.fixed_dictionaries({"u": st.none() | p[1]}))
    )
    return lists | fixed | structs


KINDS = st.recursive(st.sampled_from(SCALARS), nest, max_leaves=3)


@st.composite
def batches(draw: st.DrawFn) -> pa.RecordBatch:
    rows = draw(st.integers(0, 6))
    arrays = {}
    for i, (kind, values) in enumerate(draw(st.lists(KINDS, min_size=1, max_size=3))):
        column = draw(st.lists(st.none() | values, min_size=rows, max_size=rows))
        arrays[f"c{i}"] = pa.array(column, kind)
    return pa.record_batch(arrays)


@given(batches(), st.data())
def test_the_coder_returns_any_batch_and_any_slice_of_it(
    batch: pa.RecordBatch, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, batch.num_rows))
    length = data.draw(st.integers(0, batch.num_rows - start))
    for value in (batch, batch.slice(start, length)):
        decoded = CODER.decode(CODER.encode(value))
        decoded.validate(full=True)
        assert decoded.schema.equals(value.schema)
        assert decoded.equals(value)


def test_a_slice_is_encoded_without_the_rows_around_it() -> None:
    values = pa.array(np.arange(300_000, dtype=np.float64))
    lists = pa.FixedSizeListArray.from_arrays(values, 30)
    rows = pa.record_batch({"number": values.slice(0, 10_000), "list": lists})
    batch = source_batch(derived_ids("r", np.arange(10_000)), rows)
    assert len(CODER.encode(batch.slice(5_000, 100))) < 40_000 < len(CODER.encode(batch)) / 50


def spy_on_encode(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    encoded: list[int] = []
    plain = RecordBatchCoder.encode

    def spy(self: RecordBatchCoder, value: pa.RecordBatch) -> bytes:
        encoded.append(value.num_rows)
        return plain(self, value)

    monkeypatch.setattr(RecordBatchCoder, "encode", spy)
    return encoded


class TwoOutputs(beam.DoFn):
    def process(self, batch: pa.RecordBatch) -> Any:
        yield batch
        yield beam.pvalue.TaggedOutput("other", batch.slice(0, 1))


@pytest.mark.parametrize("shuffle", [beam.Reshuffle, beam.GroupByKey], ids=lambda s: s.__name__)
def test_a_shuffle_uses_the_coder(
    shuffle: Callable[[], beam.PTransform], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = spy_on_encode(monkeypatch)
    batch = pa.record_batch({"a": pa.array(range(7))})
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        outputs = (
            pipeline
            | beam.Create([7])
            | beam.Map(lambda n: batch.slice(0, n)).with_output_types(pa.RecordBatch)
            | beam.ParDo(TwoOutputs()).with_outputs("other", main="main")
        )
        both = (typed(outputs.main), typed(outputs.other)) | beam.Flatten()
        assert both.element_type is pa.RecordBatch
        if shuffle is beam.Reshuffle:
            rows = both | beam.Reshuffle() | beam.Map(lambda b: b.num_rows)
        else:
            keyed = both | beam.Map(lambda b: (0, b)).with_output_types(tuple[int, pa.RecordBatch])
            rows = keyed | beam.GroupByKey() | beam.FlatMap(lambda kv: [b.num_rows for b in kv[1]])
        assert_that(rows, equal_to([7, 1]))
    assert sorted(encoded)[0] == 1
    assert sorted(encoded)[-1] == 7


def test_batches_pass_between_processes(tmp_path: Path, multi_processing: dict[str, Any]) -> None:
    options = PipelineOptions(**multi_processing)
    with beam.Pipeline(runner="FnApiRunner", options=options) as pipeline:
        batches = (
            pipeline
            | beam.Create([3, 5])
            | beam.Map(lambda n: pa.record_batch({"a": pa.array(range(n))}))
        )
        rows = typed(batches) | beam.Reshuffle() | "Read" >> beam.Map(lambda b: b.to_pydict())
        rows | "Write" >> beam.Map(
            lambda rows: (tmp_path / str(len(rows["a"]))).write_text(str(rows["a"]))
        )
    assert (tmp_path / "3").read_text() == "[0, 1, 2]"
    assert (tmp_path / "5").read_text() == "[0, 1, 2, 3, 4]"


@given(st.lists(st.lists(st.integers(0, 60), max_size=12), max_size=8), st.integers(1, 99))
def test_rebatching_by_bytes_keeps_rows_order_and_bounds(texts: list[list[int]], size: int) -> None:
    parts = [pa.record_batch({"a": pa.array(["x" * n for n in part])}) for part in texts]
    for rows in (5, 1_000):
        result = list(rebatch(parts, rows, size))
        found = [len(v) for batch in result for v in batch.column("a").to_pylist()]
        assert found == [n for part in texts for n in part]
        assert all(0 < batch.num_rows <= rows for batch in result)
        assert all(batch.num_rows == 1 or batch.nbytes <= size for batch in result)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (pa.float64(), 8),
        (pa.bool_(), 1),
        (pa.list_(pa.float32(), 500), 2_000),
        (pa.struct([("a", pa.int16()), ("b", pa.timestamp("us"))]), 10),
        (pa.dictionary(pa.int32(), pa.string()), 4),
        (pa.string(), VARIABLE_BYTES),
        (pa.list_(pa.float64()), VARIABLE_BYTES),
    ],
    ids=str,
)
def test_the_size_of_a_row_follows_from_its_type(kind: pa.DataType, size: int) -> None:
    assert row_bytes(kind) == size


@given(st.lists(st.integers(0, 12), max_size=8), st.integers(1, 9), st.integers(0, 7))
def test_rebatching_keeps_rows_order_and_bounds(
    sizes: list[int], rows: int, change_at: int
) -> None:
    parts, start = [], 0
    for i, size in enumerate(sizes):
        kind = pa.int64() if i < change_at else pa.float64()
        parts.append(pa.record_batch({"a": pa.array(range(start, start + size), kind)}))
        start += size
    result = list(rebatch(parts, rows))
    assert [v for batch in result for v in batch.column("a").to_pylist()] == list(range(start))
    assert all(0 < batch.num_rows <= rows for batch in result)
    if change_at >= len(sizes) and all(size < rows for size in sizes):
        # Adjacent batches are joined as long as they fit.
        assert all(a.num_rows + b.num_rows > rows for a, b in pairwise(result))


def test_rebatching_does_not_copy_a_batch_that_fits() -> None:
    batch = pa.record_batch({"a": pa.array(range(5))})
    (same,) = rebatch([batch], 5)
    assert same.column("a").buffers()[1].address == batch.column("a").buffers()[1].address
    assert concat_batches([batch]) is batch


def test_batches_with_different_dictionaries_can_be_joined() -> None:
    parts = [pa.record_batch({"a": pa.array([v]).dictionary_encode()}) for v in "xyx"]
    (whole,) = rebatch(parts, 10)
    assert whole.column("a").to_pylist() == ["x", "y", "x"]


@given(st.integers(0, 50), st.integers(1, 9))
def test_slices_cover_all_rows_in_order(rows: int, size: int) -> None:
    parts = list(slices(rows, size))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(rows))
    assert all(part.stop - part.start <= size for part in parts)


@given(st.lists(st.integers(0, 2**62), unique=True))
def test_derived_ids_differ_if_positions_differ(positions: list[int]) -> None:
    ids = derived_ids("f", np.array(positions, dtype=np.int64))
    assert ids.type == pa.string()
    assert ids.to_pylist() == [f"f-{position}" for position in positions]


def test_columns_of_a_sliced_struct_are_sliced_too() -> None:
    rows = pa.record_batch({"a": [1, 2, 3], "b": [[1], [2], None]})
    batch = source_batch(pa.array(["x", "y", "z"]), rows, pa.array([b"1", b"2", b"3"]))
    columns = struct_columns(batch.slice(1), "source")
    assert {name: column.to_pylist() for name, column in columns.items()} == {
        "a": [2, 3],
        "b": [[2], None],
    }
    assert batch.schema.names == ["row_id", "source", "payload"]


def test_rows_of_nanosecond_times_are_cut_to_microseconds() -> None:
    inner = pa.array([{"d": [1_999]}], pa.struct([("d", pa.list_(pa.duration("ns")))]))
    batch = pa.record_batch(
        {
            "t": pa.array([1_999], pa.timestamp("ns", "UTC")),
            "c": pa.array([1_999], pa.time64("ns")),
            "s": inner,
            "n": pa.array([5]),
        }
    )
    assert to_rows(batch) == [
        {
            "t": datetime.datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=datetime.UTC),
            "c": datetime.time(0, 0, 0, 1),
            "s": {"d": [datetime.timedelta(microseconds=1)]},
            "n": 5,
        }
    ]
