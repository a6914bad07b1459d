"""Columns that were written as JSON give the same inputs as the original columns."""

from collections.abc import Callable
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.record_batch import INPUTS, ROW_ID
from model_handlers.manifests.manifest import FeatureStatistics, InputSpec, Manifest
from transforms.dead_letters import payloads
from transforms.json_rows.columns import column_values
from transforms.json_rows.decode import decode_json, decode_rows
from transforms.json_rows.row_format import RowFormat
from transforms.validate import validate

FLOATS = st.one_of(st.none(), st.floats(width=32), st.floats())
TEXTS = st.one_of(
    st.none(),
    st.floats().map(repr),
    st.integers(-(2**63), 2**63 - 1).map(str),
    st.sampled_from(["", " ", "abc", " 1.5 ", "1_0", "NaN", "-inf", "Infinity", "1e999", "0x1"]),
)
COLUMNS = [
    st.lists(FLOATS, min_size=5, max_size=5).map(lambda cells: pa.array(cells, pa.float64())),
    st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), min_size=5, max_size=5).map(
        lambda cells: pa.array(cells, pa.int64())
    ),
    st.lists(TEXTS, min_size=5, max_size=5).map(lambda cells: pa.array(cells, pa.string())),
    st.lists(st.one_of(st.none(), st.booleans()), min_size=5, max_size=5).map(
        lambda cells: pa.array(cells, pa.bool_())
    ),
    st.lists(st.one_of(st.none(), st.decimals(-9, 9, places=3)), min_size=5, max_size=5).map(
        lambda cells: pa.array(cells, pa.decimal128(38, 9))
    ),
]

Outcome = dict[str, tuple[float, ...] | str]


def outcomes(batch: pa.RecordBatch, manifest: Manifest) -> Outcome:
    """Return the inputs of each row of a source batch, or the reason of its fault, by id."""
    good, bad, faults = validate(batch, manifest)
    values = [
        cell if isinstance(cell, list) else [cell]
        for cell in good.column(INPUTS).field(0).to_pylist()
    ]
    found: Outcome = dict(zip(good.column(ROW_ID).to_pylist(), map(tuple, values), strict=True))
    reasons = [fault.reason for fault in faults]
    return found | dict(zip(bad.column(ROW_ID).to_pylist(), reasons, strict=True))


def replayed(batch: pa.RecordBatch, manifest: Manifest) -> Outcome:
    """Return the same after writing the rows as JSON and reading them."""
    rows = [column_values(orjson.loads(line), manifest) for line in payloads(batch)]
    ids = batch.column(ROW_ID).to_pylist()
    decoded = decode_rows(rows, [b""] * len(rows), ids, RowFormat(manifest), as_vector=True)
    found = {} if decoded.batch is None else outcomes(decoded.batch, manifest)
    faults = [fault.reason for fault in decoded.faults]
    return found | dict(zip(decoded.failed_ids, faults, strict=True))


def agree(again: Outcome, found: Outcome) -> None:
    assert again.keys() == found.keys()
    for row_id, outcome in found.items():
        if isinstance(outcome, tuple):
            # Arrow converts the decimal 0.009 to 0.009000000000000001.
            assert again[row_id] == pytest.approx(outcome, 1e-12, 0)
        else:
            # If a row has several faults, a value that is not a finite number is found first.
            assert again[row_id] in (outcome, "wrong_type", "not_finite")


def manifest_of(make: Callable[..., Manifest], dtype: str, impute: bool) -> Manifest:
    names = ("a", "b", "c")
    means = dict.fromkeys(names, "mean") if impute else {}
    spec = InputSpec("x", names, dtype=dtype, shape=(3,), impute=means)  # type: ignore[arg-type]
    statistics = dict.fromkeys(
        names, FeatureStatistics(count=9, mean=7.0, std=1.0, min=0.0, max=9.0)
    )
    return make(spec, statistics=statistics if impute else {})


@given(st.tuples(*[st.one_of(COLUMNS)] * 3), st.sampled_from(["float32", "float64"]), st.booleans())
def test_columns_of_any_type_give_the_same_inputs_through_json(
    make_manifest: Callable[..., Manifest],
    make_source: Callable[..., pa.RecordBatch],
    columns: tuple[pa.Array, ...],
    dtype: str,
    impute: bool,
) -> None:
    manifest = manifest_of(make_manifest, dtype, impute)
    batch = make_source(dict(zip("abc", columns, strict=True)))
    agree(replayed(batch, manifest), outcomes(batch, manifest))


WHOLE = [
    COLUMNS[1],
    COLUMNS[3],
    st.lists(
        st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1).map(str), st.just("abc")),
        min_size=5,
        max_size=5,
    ).map(lambda cells: pa.array(cells, pa.string())),
]


@given(st.tuples(*[st.one_of(WHOLE)] * 3), st.sampled_from(["int64", "int8", "bool"]))
def test_integer_columns_give_the_same_inputs_through_json(
    make_manifest: Callable[..., Manifest],
    make_source: Callable[..., pa.RecordBatch],
    columns: tuple[pa.Array, ...],
    dtype: str,
) -> None:
    manifest = manifest_of(make_manifest, dtype, False)
    batch = make_source(dict(zip("abc", columns, strict=True)))
    agree(replayed(batch, manifest), outcomes(batch, manifest))


@given(
    st.lists(st.lists(FLOATS, min_size=3, max_size=3), min_size=1),
    st.sampled_from(["x", "features"]),
)
def test_a_list_column_is_also_read_under_the_name_of_its_input(
    make_manifest: Callable[..., Manifest],
    make_source: Callable[..., pa.RecordBatch],
    rows: list[list[Any]],
    name: str,
) -> None:
    manifest = manifest_of(make_manifest, "float32", True)
    batch = make_source({name: pa.array(rows, pa.list_(pa.float64()))})
    assert replayed(batch, manifest) == outcomes(batch, manifest)


@pytest.mark.parametrize("row", [None, 3, "text", [1.0], [[]]], ids=repr)
def test_a_value_that_is_not_a_row_is_unchanged(
    make_manifest: Callable[..., Manifest], row: Any
) -> None:
    assert column_values(row, make_manifest()) is row


def test_other_values_are_unchanged(make_manifest: Callable[..., Manifest]) -> None:
    row = {"a": "1", "b": "NaN", "c": True, "note": True, "x": "y"}
    read = column_values(row, make_manifest())
    assert read == {"a": "1", "b": "NaN", "c": 1, "note": True, "x": "y"}
    assert row["c"] is True


@given(
    st.lists(st.one_of(st.none(), TEXTS, st.text(max_size=4)), min_size=3, max_size=3),
    st.sampled_from(["float32", "float64", "int64", "int8", "bool"]),
    st.booleans(),
    st.booleans(),
)
@example(["12345678901234567", "9007199254740993", "0"], "int64", False, False)
@example(["true", "false", " 1 "], "bool", False, False)
def test_the_text_of_a_number_is_one_in_columns_lists_and_messages(
    make_manifest: Callable[..., Manifest],
    make_source: Callable[..., pa.RecordBatch],
    cells: list[str | None],
    dtype: str,
    impute: bool,
    from_a_list: bool,
) -> None:
    manifest = manifest_of(make_manifest, dtype, impute)
    if from_a_list:
        batch = make_source({"features": pa.array([cells], pa.list_(pa.string()))})
        row: dict[str, Any] = {"features": cells}
    else:
        row = dict(zip("abc", cells, strict=True))
        batch = make_source({name: pa.array([cell], pa.string()) for name, cell in row.items()})
    decoded = decode_json([orjson.dumps(row)], ["r-0"], RowFormat(manifest))
    read = {} if decoded.batch is None else outcomes(decoded.batch, manifest)
    faults = [fault.reason for fault in decoded.faults]
    agree(
        read | dict(zip(decoded.failed_ids, faults, strict=True)),
        outcomes(batch, manifest),
    )
