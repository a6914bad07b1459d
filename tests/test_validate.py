"""Validation splits a batch into good and bad rows, and checks each row independently."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st
from raw_model import ROWS, write_raw_package

from common.errors import InputError
from common.record_batch import INPUTS, concat_batches, source_batch, struct_columns
from model_handlers import preparation
from model_handlers.manifests.manifest import FeatureStatistics, InputSpec, Manifest
from model_handlers.packaged_steps import PackagedSteps
from model_handlers.torch_model import TorchModelHandler
from transforms.dead_letters import Fault
from transforms.provenance import Provenance
from transforms.source_columns import source_columns
from transforms.validate import ValidateDoFn, ValidateFeatures, validate

Make = Callable[..., Any]

# One cell in eight can be any value, so most tables have both good and bad rows.
NUMBER = st.floats(-1e30, 1e30)
ANY = st.one_of(st.none(), st.floats(width=64), st.sampled_from([1e300, -1e39]))
CELL = st.integers(0, 7).flatmap(lambda n: NUMBER if n else ANY)
TEXT_CELL = st.integers(0, 7).flatmap(
    lambda n: NUMBER.map(str) if n else st.sampled_from([None, "", " ", "x", "1,5", "nan", "1e40"])
)
VECTOR = st.integers(0, 7).flatmap(
    lambda n: st.lists(CELL, min_size=3, max_size=3) if n else st.none() | st.lists(ANY, max_size=5)
)


def inputs_of(batch: pa.RecordBatch) -> dict[str, list[Any]]:
    return {name: column.to_pylist() for name, column in struct_columns(batch, INPUTS).items()}


def judge_cell(value: Any) -> str | None:
    """Return the reason why a cell does not fit a float32 tensor, or None."""
    if value is None or not str(value).strip():
        return "null"
    try:
        number = float(value)
    except ValueError:
        return "wrong_type"
    with np.errstate(over="ignore"):
        return None if np.isfinite(np.float32(number)) else "not_finite"


def judge_row(row: dict[str, Any]) -> tuple[str, str] | None:
    """Return the reason and the column of the first fault of a row for the model below."""
    for column in ("a", "b"):
        if reason := judge_cell(row[column]):
            return reason, column
    if row["v"] is None:
        return "null", "v"
    if len(row["v"]) != 3:
        return "wrong_width", "v"
    for i, item in enumerate(row["v"]):
        if reason := judge_cell(item):
            return reason, f"v[{i}]"
    return None


@pytest.fixture(scope="session")
def two_inputs(make_manifest: Make) -> Manifest:
    manifest: Manifest = make_manifest(
        InputSpec("pair", ("a", "b"), shape=(2,)), InputSpec("v", ("v",), shape=(3,))
    )
    return manifest


@given(
    st.lists(st.fixed_dictionaries({"a": CELL, "b": TEXT_CELL, "v": VECTOR}), max_size=12),
    st.integers(0, 3),
    st.sampled_from([pa.list_(pa.float64()), pa.large_list(pa.float64())]),
    st.booleans(),
)
def test_every_row_is_good_or_bad_as_a_plain_loop_says(
    two_inputs: Manifest,
    rows: list[dict[str, Any]],
    start: int,
    list_type: pa.DataType,
    encoded: bool,
) -> None:
    text = pa.array([row["b"] for row in rows], pa.string())
    columns = pa.record_batch(
        {
            "other": pa.array([[i] for i in range(len(rows))], pa.list_(pa.int64())),
            "b": text.dictionary_encode() if encoded else text,
            "v": pa.array([row["v"] for row in rows], list_type),
            "a": pa.array([row["a"] for row in rows], pa.float64()),
        }
    )
    ids = pa.array([str(i) for i in range(len(rows))], pa.string())
    whole = source_batch(ids, columns)
    before = whole.to_pylist()
    batch, rows = whole.slice(start), rows[start:]
    good, bad, faults = validate(batch, two_inputs)

    verdicts = [judge_row(row) for row in rows]
    all_ids = batch.column("row_id").to_pylist()
    assert good.column("row_id").to_pylist() == [
        i for i, verdict in zip(all_ids, verdicts, strict=True) if verdict is None
    ]
    assert bad.column("row_id").to_pylist() == [
        i for i, verdict in zip(all_ids, verdicts, strict=True) if verdict is not None
    ]
    assert [(fault.reason, fault.column) for fault in faults] == [v for v in verdicts if v]
    assert all(f"column {fault.column}: " in fault.message for fault in faults)

    passed = [row for row, verdict in zip(rows, verdicts, strict=True) if verdict is None]
    found = struct_columns(good, INPUTS)
    assert found["pair"].type == two_inputs.inputs[0].arrow_type
    pairs = np.array([[float(row["a"]), float(row["b"])] for row in passed], np.float64)
    np.testing.assert_array_equal(
        found["pair"].flatten().to_numpy().reshape(-1, 2), pairs.astype(np.float32).reshape(-1, 2)
    )
    lists = np.array([row["v"] for row in passed], np.float64).astype(np.float32)
    np.testing.assert_array_equal(found["v"].flatten().to_numpy(), lists.reshape(-1))
    assert good.select(["row_id", "source"]).equals(
        concat_batches([batch.slice(i, 1) for i, v in enumerate(verdicts) if v is None])
        if passed
        else batch.slice(0, 0)
    )
    assert str(whole.to_pylist()) == str(before)


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.list_(pa.float32(), 1)])
def test_the_source_is_not_modified(make_manifest: Make, kind: pa.DataType) -> None:
    values = pa.array([1.0, np.nan, np.inf, 4.0, None], pa.float32())
    is_list = pa.types.is_fixed_size_list(kind)
    column = pa.FixedSizeListArray.from_arrays(values, 1) if is_list else values.cast(kind)
    spec = InputSpec("x", ("a",), impute={"a": "mean"})
    mean = FeatureStatistics(count=1, mean=9.0, std=1.0, min=1.0, max=1.0)
    manifest = make_manifest(
        InputSpec("features", ("a",), shape=(1,)) if is_list else spec, statistics={"a": mean}
    )
    batch = source_batch(
        pa.array(list("vwxyz")), pa.record_batch({"features" if is_list else "a": column})
    )
    copy = str(batch.to_pylist())
    validate(batch, manifest)
    assert str(batch.to_pylist()) == copy


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
@pytest.mark.parametrize("rows", [65_536, 65_537, 140_000])
def test_a_batch_of_any_length_keeps_each_number_in_its_place(
    make_manifest: Make, rows: int, kind: pa.DataType
) -> None:
    manifest = make_manifest(InputSpec("x", ("a", "b"), shape=(2,)))
    numbers = np.arange(2.0 * rows).reshape(rows, 2)
    columns = {name: pa.array(numbers[:, i], kind) for i, name in enumerate("ab")}
    ids = pa.array(np.arange(rows)).cast(pa.string())
    good, _, faults = validate(source_batch(ids, pa.record_batch(columns)), manifest)
    values = good.column(INPUTS).field("x").flatten().to_numpy()
    assert not faults
    assert np.array_equal(values.reshape(rows, 2), numbers)


def test_one_list_may_hold_all_features(make_manifest: Make, make_source: Make) -> None:
    vectors = [[1, 2, 3], [1, 2], None, [4, None, 6], [7, 8, 9]]
    for name in ("features", "x"):
        good, bad, faults = validate(make_source({name: vectors}), make_manifest())
        assert inputs_of(good) == {"x": [[1.0, 2.0, 3.0], [7.0, 8.0, 9.0]]}
        assert [(f.reason, f.column) for f in faults] == [
            ("wrong_width", name),
            ("null", name),
            ("null", "b"),
        ]
        assert faults[0].message == f"column {name}: expected 3 values, got 2"
        assert bad.column("row_id").to_pylist() == ["r-1", "r-2", "r-3"]


def test_named_columns_take_precedence_over_a_list_of_all_features(
    make_manifest: Make, make_source: Make
) -> None:
    source = make_source({"a": [1], "b": [2], "c": [3], "features": [[7, 8, 9]]})
    assert inputs_of(validate(source, make_manifest())[0]) == {"x": [[1.0, 2.0, 3.0]]}


@pytest.mark.parametrize(
    "vectors",
    [
        pa.array([[1, 2, 3], None, [4, 5, 6]], pa.list_(pa.int32(), 3)),
        pa.array([[0, 0, 0], [1, 2, 3], None, [4, 5, 6]], pa.list_(pa.int32(), 3)).slice(1),
        pa.array([[1, 2, 3], None, [4, 5, 6]], pa.large_list(pa.uint8())),
        pa.array([[1, 2, 3], None, [4, 5, 6]], pa.list_(pa.float16())),
        pa.array([[9], [1, 2, 3], None, [4, 5, 6]]).slice(1),
    ],
    ids=lambda a: f"{a.type} at {a.offset}",
)
def test_lists_of_any_layout_are_read(make_manifest: Make, vectors: pa.Array) -> None:
    source = source_batch(pa.array(["x", "y", "z"]), pa.record_batch({"features": vectors}))
    good, _, faults = validate(source, make_manifest())
    assert inputs_of(good) == {"x": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]}
    assert [fault.reason for fault in faults] == ["null"]


def test_a_list_column_may_have_no_row_that_fits(make_manifest: Make, make_source: Make) -> None:
    source = make_source({"features": pa.array([[], None, []])})
    good, bad, faults = validate(source, make_manifest())
    assert (good.num_rows, bad.num_rows) == (0, 3)
    assert [fault.reason for fault in faults] == ["wrong_width", "null", "wrong_width"]
    assert good.schema.field(INPUTS).type == pa.struct([("x", pa.list_(pa.float32(), 3))])


def test_integer_tensors_only_accept_integers(make_manifest: Make, make_source: Make) -> None:
    manifest = make_manifest(
        InputSpec("x", ("a", "b"), dtype="int8", shape=(2,)), InputSpec("t", ("c",), dtype="bool")
    )
    source = make_source(
        {
            "a": [1, 127, 128, None, 5, 5, 5],
            "b": [1.0, -128.0, 0.0, 0.0, 0.5, float("nan"), 1.0],
            "c": [True, False, True, True, True, True, None],
        }
    )
    good, _, faults = validate(source, manifest)
    assert inputs_of(good) == {"x": [[1, 1], [127, -128]], "t": [True, False]}
    assert good.column(INPUTS).type.field("t").type == pa.bool_()
    assert [(f.reason, f.column) for f in faults] == [
        ("wrong_type", "a"),
        ("null", "a"),
        ("wrong_type", "b"),
        ("not_finite", "b"),
        ("null", "c"),
    ]
    assert (
        faults[0].message
        == "column a: expected int8, an integer from -128 to 127, got int64 out of range"
    )


def test_a_list_for_an_integer_tensor_is_not_rounded(
    make_manifest: Make, make_source: Make
) -> None:
    manifest = make_manifest(InputSpec("x", ("ids",), dtype="int64", shape=(2,)))
    source = make_source({"ids": [[2**53 + 1, 1], [1, None], [3, 4]]})
    good, _, (fault,) = validate(source, manifest)
    assert inputs_of(good) == {"x": [[2**53 + 1, 1], [3, 4]]}
    assert (fault.reason, fault.column) == ("null", "ids[1]")


@pytest.mark.parametrize(("dtype", "mean"), [("float32", 2.5), ("int64", 2)])
def test_null_and_nan_in_imputed_columns_become_the_training_mean(
    make_manifest: Make, make_source: Make, dtype: Any, mean: float
) -> None:
    statistics = {
        "a": FeatureStatistics(
            count=9, mean=2.4 if dtype == "int64" else 2.5, std=1.0, min=0.0, max=5.0
        )
    }
    manifest = make_manifest(
        InputSpec("x", ("a", "b"), dtype=dtype, shape=(2,), impute={"a": "mean"}),
        statistics=statistics,
    )
    source = make_source({"a": ["1", "", "nan", "inf", "x", None], "b": [1, 2, 3, 4, 5, None]})
    good, _, faults = validate(source, manifest)
    assert inputs_of(good) == {"x": [[1, 1], [mean, 2], [mean, 3]]}
    assert [(f.reason, f.column) for f in faults] == [
        ("not_finite", "a"),
        ("wrong_type", "a"),
        ("null", "b"),
    ]
    assert faults[1].message.endswith("got string")
    vectors = make_source({"features": [[None, 7.0], [1.0, None]]})
    good, _, (fault,) = validate(vectors, manifest)
    assert inputs_of(good) == {"x": [[mean, 7]]}
    assert (fault.reason, fault.column) == ("null", "b")


def test_one_number_per_row_needs_no_list(make_manifest: Make, make_source: Make) -> None:
    source = make_source({"a": [1.5, None], "b": [[1.0], [2.0]]})
    manifest = make_manifest(InputSpec("s", ("a",)), InputSpec("l", ("a",), shape=(1,)))
    good, _, (fault,) = validate(source, manifest)
    assert inputs_of(good) == {"s": [1.5], "l": [[1.5]]}
    assert fault.column == "a"


def test_faults_of_a_list_name_the_column_that_was_read(
    make_manifest: Make, make_source: Make
) -> None:
    manifest = make_manifest(InputSpec("items", ("basket",), shape=(2,)))
    for column in ("basket", "items", "features"):
        source = make_source({column: [[1.0, 2.0], None, [1.0], [1.0, None], [np.inf, 1.0]]})
        _, _, faults = validate(source, manifest)
        assert [(fault.reason, fault.column) for fault in faults] == [
            ("null", column),
            ("wrong_width", column),
            ("null", f"{column}[1]"),
            ("not_finite", f"{column}[0]"),
        ]


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.list_(pa.float64(), 1), pa.large_list(pa.int8())]
)
@pytest.mark.parametrize("width", [1, 2])
def test_a_list_of_one_number_is_one_number(
    make_manifest: Make, make_source: Make, kind: pa.DataType, width: int
) -> None:
    mean = FeatureStatistics(count=1, mean=9.0, std=1.0, min=1.0, max=1.0)
    spec = InputSpec("x", ("a", "b")[:width], shape=(width,), impute={"a": "mean"})
    fits = [[1], None, [None], [4]]
    source = make_source({"a": pa.array(fits, kind), "b": [5, 6, 7, 8]})
    good, _, faults = validate(source, make_manifest(spec, statistics={"a": mean}))
    rows = [[1, 5], [9, 6], [9, 7], [4, 8]]
    assert inputs_of(good) == {"x": [row[:width] for row in rows]}
    assert not faults
    good, _, faults = validate(source, make_manifest(InputSpec("s", ("a",))))
    assert inputs_of(good) == {"s": [1, 4]}
    assert [(fault.reason, fault.column) for fault in faults] == [("null", "a"), ("null", "a")]


def test_a_list_of_several_numbers_is_not_one_number(
    make_manifest: Make, make_source: Make
) -> None:
    source = make_source({"a": [["1"], ["2", "3"], []]})
    good, _, faults = validate(source, make_manifest(InputSpec("s", ("a",))))
    assert inputs_of(good) == {"s": [1.0]}
    assert [fault.message for fault in faults] == [
        "column a: expected 1 value, got 2",
        "column a: expected 1 value, got 0",
    ]


def test_the_first_fault_of_a_row_is_reported(make_manifest: Make, make_source: Make) -> None:
    source = make_source({"a": [None], "b": ["x"], "c": [np.nan]})
    assert validate(source, make_manifest())[2] == [Fault("null", "column a: null", "a")]


def test_no_rows_have_no_faults(make_manifest: Make, make_source: Make) -> None:
    source = make_source({"a": [1], "b": ["x"], "c": [None]}).slice(1)
    good, bad, faults = validate(source, make_manifest())
    assert (good.num_rows, bad.num_rows, faults) == (0, 0, [])
    assert good.schema.names == ["row_id", "source", "inputs"]


def test_a_missing_column_is_reported_with_similar_names(
    make_manifest: Make, make_source: Make
) -> None:
    manifest = make_manifest(InputSpec("x", ("Amount", "Time"), shape=(2,)))
    with pytest.raises(
        InputError, match=r"'Amount', which .*did you mean 'Amout.*source has Amout, Time"
    ):
        validate(make_source({"Amout": [1], "Time": [1]}), manifest)
    with pytest.raises(InputError, match="'Amount' and 1 more"):
        validate(make_source({"id": [1]}), manifest)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([0], pa.timestamp("us")),
        pa.array([0], pa.date32()),
        pa.array([b"1"]),
        pa.array([{"u": 1}]),
        pa.array([[1.0, 2.0]], pa.list_(pa.float64(), 2)),
        pa.array([[b"1"]]),
        pa.array([b"1"]).dictionary_encode(),
    ],
    ids=lambda a: str(a.type),
)
def test_a_type_that_is_never_a_number_is_an_error_of_the_source(
    make_manifest: Make, column: pa.Array
) -> None:
    source = source_batch(pa.array(["x"]), pa.record_batch({"a": column, "b": [1], "c": [1]}))
    with pytest.raises(InputError, match=r"column 'a': expected a number, got .*convert it"):
        validate(source, make_manifest())


@pytest.mark.parametrize("items", [[b"1"], [[1]], [{"u": 1}]], ids=["bytes", "lists", "objects"])
def test_a_list_of_something_else_is_an_error_of_the_source(
    make_manifest: Make, make_source: Make, items: list[Any]
) -> None:
    with pytest.raises(InputError, match="column 'features': expected a list of 3 numbers, got"):
        validate(make_source({"features": [items]}), make_manifest())


def test_the_columns_to_read_are_found_in_a_schema(make_manifest: Make) -> None:
    floats = pa.schema([(name, pa.float64()) for name in "zcab"])
    assert source_columns(make_manifest(), floats) == {"x": ("a", "b", "c")}
    vector = pa.schema([("features", pa.list_(pa.float64()))])
    assert source_columns(make_manifest(), vector) == {"x": ("features",)}


def test_the_transform_returns_each_row_once(
    make_manifest: Make, make_source: Make, provenance: Provenance
) -> None:
    batches = [
        make_source({"a": [1, 2], "b": [1, None], "c": [1, 2]}),
        make_source({"a": [None], "b": [1], "c": [1]}),
        make_source({"a": [5], "b": [1], "c": [1]}),
    ]
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        source = pipeline | beam.Create(batches)
        validated = source | ValidateFeatures(make_manifest(), provenance)
        good = validated.good | "Good" >> beam.Map(lambda b: b.column("row_id").to_pylist())
        bad = validated.failures | "Bad" >> beam.FlatMap(
            lambda b: [(r["stage"], r["reason"], r["row_id"], r["payload"]) for r in b.to_pylist()]
        )
        assert_that(good, equal_to([["r-0"], ["r-0"]]), "good")
        assert_that(
            bad,
            equal_to(
                [
                    ("validate", "null", "r-1", b'{"a":2,"b":null,"c":2}'),
                    ("validate", "null", "r-0", b'{"a":null,"b":1,"c":1}'),
                ]
            ),
            "bad",
        )


def test_wide_rows_are_prepared_in_parts(
    tmp_path: Path, provenance: Provenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_raw_package(tmp_path)
    row_bytes = 8 * sum(spec.width for spec in manifest.inputs)
    monkeypatch.setattr(preparation, "_BYTES_AT_ONCE", 2 * row_bytes)
    assert preparation.rows_at_once(manifest) == 2
    assert TorchModelHandler(str(tmp_path), manifest, batch_rows=5).batch_rows == 2
    steps = PackagedSteps(manifest, str(tmp_path))
    rows = [row for row in ROWS if row["id"] != "text"]
    columns = {name: pa.array([row.get(name) for row in rows]) for name in manifest.columns}
    batch = source_batch(pa.array(map(str, range(len(rows)))), pa.record_batch(columns))
    do_fn = ValidateDoFn(steps, provenance)
    do_fn.setup()
    parts = list(do_fn.process(batch))
    good = [part for part in parts if isinstance(part, pa.RecordBatch)]
    bad = [part.value for part in parts if not isinstance(part, pa.RecordBatch)]
    assert max(part.num_rows for part in good) == 2
    whole, refused, _ = validate(batch, manifest, preparation=steps.load())
    assert concat_batches(good).equals(whole)
    assert sum(part.num_rows for part in bad) == refused.num_rows > 0
