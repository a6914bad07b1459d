"""JSON rows to columns: every message is decoded once, independently of the others."""

import json
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model_handlers.manifests.manifest import FeatureStatistics, InputSpec, Manifest
from transforms.dead_letters import Fault
from transforms.json_rows.decode import Decoded, decode_json, decode_rows
from transforms.json_rows.row_format import RowFormat
from transforms.row_ids import content_id
from transforms.validate import validate

Make = Callable[..., Any]

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.text(max_size=3)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)
NUMBER = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
NAMED = st.fixed_dictionaries(
    {"a": NUMBER, "b": NUMBER, "c": NUMBER}, optional={"id": JSON, "city": JSON, "features": JSON}
)
MIXED = st.fixed_dictionaries(
    {},
    optional={
        "a": NUMBER | JSON,
        "b": NUMBER,
        "c": NUMBER,
        "features": st.lists(NUMBER | st.none(), min_size=3, max_size=3) | JSON,
        "id": JSON,
        "city": JSON,
    },
)
MESSAGES = st.one_of(
    NAMED.map(lambda v: json.dumps(v).encode()),
    MIXED.map(lambda v: json.dumps(v).encode()),
    JSON.map(lambda v: json.dumps(v).encode()),
    st.binary(max_size=6),
    st.sampled_from(
        [
            b"",
            b"{",
            b'{"a":1e400}',
            b'{"a":NaN,"b":1,"c":1}',
            b"\xef\xbb\xbf{}",
            b"\xff",
            b"null",
            b"[" * 2000,
            b'{"a":' + b"[" * 900 + b"]" * 900 + b',"b":1,"c":1}',
            b'{"a":1,"b":1,"c":1,"city":' + b"[" * 900 + b"]" * 900 + b"}",
            b'{"a":1,"b":1,"c":1,"id":' + b"[" * 900 + b"]" * 900 + b"}",
            b'{"a":1,"a":2,"b":1,"c":1}',
            b'{"a":1,"b":1,"c":1,"id":"\\ud800"}',
        ]
    ),
)


def read(messages: list[bytes], manifest: Manifest, **fields: Any) -> Decoded:
    return decode_json(messages, None, RowFormat(manifest, **fields))


def source_of(decoded: Decoded) -> list[dict[str, Any]]:
    assert decoded.batch is not None
    rows: list[dict[str, Any]] = decoded.batch.column("source").to_pylist()
    return rows


def faults_of(decoded: Decoded) -> list[tuple[str, str | None]]:
    return [(fault.reason, fault.column) for fault in decoded.faults]


@pytest.fixture(scope="session")
def formats(make_manifest: Make) -> list[RowFormat]:
    """Formats with one input of columns, one input of a list, and several inputs of any dtype."""
    mean = FeatureStatistics(count=1, mean=0.5, std=1.0, min=0.0, max=1.0)
    several = make_manifest(
        InputSpec("x", ("a", "b"), dtype="int64", shape=(2,), impute={"a": "mean"}),
        InputSpec("l", ("features",), dtype="float32", shape=(3,)),
        InputSpec("t", ("c",), dtype="bool"),
        statistics={"a": mean},
    )
    manifests = [
        make_manifest(),
        make_manifest(InputSpec("x", ("a", "b", "c"), dtype="int32", shape=(3,))),
        make_manifest(InputSpec("l", ("a",), shape=(3,))),
        several,
    ]
    return [
        RowFormat(manifest, id_column, ("city", "a"))
        for manifest in manifests
        for id_column in (None, "id")
    ]


@given(st.lists(MESSAGES, max_size=8), st.integers(0, 7))
def test_every_message_is_good_or_bad_and_in_order(
    formats: list[RowFormat], messages: list[bytes], which: int
) -> None:
    ids = [f"m-{i}" for i in range(len(messages))]
    decoded = decode_json(messages, ids, formats[which])
    good = [] if decoded.batch is None else decoded.batch.column("payload").to_pylist()
    bad = decoded.failed_payloads
    assert len(decoded.failed_ids) == len(bad) == len(decoded.faults)
    rest = list(messages)
    for part in (good, bad):
        # Both parts keep the order of the messages, and together they hold all messages.
        places = iter(messages)
        assert all(payload in places for payload in part)
    for payload in (*good, *bad):
        rest.remove(payload)
    assert rest == []
    if decoded.batch is not None:
        kept, failed, faults = validate(decoded.batch, formats[which].manifest)
        assert kept.num_rows + failed.num_rows == len(good)
        assert len(faults) == failed.num_rows


@given(st.lists(MESSAGES, min_size=2, max_size=6), st.integers(0, 7))
@example([b'{"a":1,"b":2,"c":3,"features":[7,8,9]}', b'{"a":1,"b":null,"c":3}'], 0)
def test_a_message_is_read_the_same_next_to_any_other_messages(
    formats: list[RowFormat], messages: list[bytes], which: int
) -> None:
    row_format = formats[which]
    alone: list[tuple[bytes, str]] = []
    for message in messages:
        alone += verdicts(decode_json([message], None, row_format), row_format.manifest)
    together = verdicts(decode_json(messages, None, row_format), row_format.manifest)
    assert sorted(alone) == sorted(together)


def verdicts(decoded: Decoded, manifest: Manifest) -> list[tuple[bytes, str]]:
    """Validate decoded rows; return each message with its id, and its tensors or reason."""
    found = list(
        zip(
            decoded.failed_payloads,
            (f"{i} {f}" for i, f in zip(decoded.failed_ids, decoded.faults, strict=True)),
            strict=True,
        )
    )
    if decoded.batch is not None:
        good, bad, faults = validate(decoded.batch, manifest)
        found += [
            (row["payload"], str((row["row_id"], row["inputs"], row["source"].get("city"))))
            for row in good.to_pylist()
        ]
        found += [
            (row["payload"], str((row["row_id"], fault.reason, fault.column)))
            for row, fault in zip(bad.to_pylist(), faults, strict=True)
        ]
    return found


def test_both_message_forms_are_read(make_manifest: Make) -> None:
    messages = [
        b'{"c":3,"b":2.5,"a":1,"other":"x"}',
        b'{"features":[4,5,6]}',
        b'{"features":[7,8,null],"a":1}',
        b'{"features":[1,1,1],"a":1,"b":2,"c":3}',
    ]
    decoded = read(messages, make_manifest())
    assert source_of(decoded) == [
        {"a": 1.0, "b": 2.5, "c": 3.0},
        {"a": 4.0, "b": 5.0, "c": 6.0},
        {"a": 7.0, "b": 8.0, "c": None},
        {"a": 1.0, "b": 2.0, "c": 3.0},
    ]
    assert decoded.faults == []


@pytest.mark.parametrize(
    ("message", "reason", "column", "words"),
    [
        (b"{", "invalid_json", None, "not JSON"),
        (b"", "invalid_json", None, "not JSON"),
        (b"\xff\xfe", "invalid_json", None, "not JSON"),
        (b"\xef\xbb\xbf{}", "invalid_json", None, "BOM"),
        (b'{"a":1e400,"b":1,"c":1}', "invalid_json", None, "infinity"),
        (b"[1,2,3]", "not_an_object", None, "expected a JSON object, got list"),
        (b"7", "not_an_object", None, "got integer"),
        (b"null", "not_an_object", None, "got null"),
        (b"{}", "missing_feature", "a", "the row has no column a"),
        (b'{"a":1,"c":1}', "missing_feature", "b", "the row has no column b"),
        (b'{"a":"x","b":1,"c":1}', "wrong_type", "a", "expected a number, got string"),
        (b'{"a":1,"b":true,"c":1}', "wrong_type", "b", "got boolean"),
        (b'{"a":1,"b":{},"c":1}', "wrong_type", "b", "got object"),
        (b'{"a":1,"b":[1,2],"c":1}', "wrong_type", "b", "got list"),
        (b'{"a":1,"b":[[1]],"c":1}', "wrong_type", "b", "got list"),
        (b'{"features":[1,2]}', "wrong_width", "features", "expected 3 values, got 2"),
        (b'{"features":[]}', "wrong_width", "features", "expected 3 values, got 0"),
        (b'{"features":null}', "null", "features", "expected a list, got null"),
        (b'{"features":"x"}', "wrong_type", "features", "expected a list, got string"),
        (b'{"features":[1,[2],3]}', "wrong_type", "features[1]", "got list"),
        (b'{"features":[1,2,"x"]}', "wrong_type", "features[2]", "got string"),
    ],
)
def test_a_message_that_is_not_a_row_is_a_fault(
    make_manifest: Make, message: bytes, reason: str, column: str | None, words: str
) -> None:
    good = b'{"a":1,"b":1,"c":1}'
    decoded = decode_json([good, message, good], ["x", "y", "z"], RowFormat(make_manifest()))
    ((fault),) = decoded.faults
    assert (fault.reason, fault.column) == (reason, column)
    assert words in fault.message
    assert (decoded.failed_ids, decoded.failed_payloads) == (["y"], [message])
    assert decoded.batch is not None
    assert decoded.batch.column("row_id").to_pylist() == ["x", "z"]


def test_null_features_are_left_to_validation(make_manifest: Make) -> None:
    decoded = read([b'{"a":null,"b":1,"c":1}', b'{"features":[1,null,1]}'], make_manifest())
    assert decoded.faults == []
    assert decoded.batch is not None
    _, _, faults = validate(decoded.batch, make_manifest())
    assert [(f.reason, f.column) for f in faults] == [("null", "a"), ("null", "b")]


def test_a_missing_imputed_feature_is_null(make_manifest: Make) -> None:
    statistics = {"b": FeatureStatistics(count=2, mean=6.0, std=1.0, min=5.0, max=7.0)}
    spec = InputSpec("x", ("a", "b"), shape=(2,), impute={"b": "mean"})
    manifest = make_manifest(spec, statistics=statistics)
    decoded = read([b'{"a":1}', b'{"b":1}', b'{"a":2,"b":3}'], manifest)
    assert faults_of(decoded) == [("missing_feature", "a")]
    assert decoded.batch is not None
    good, _, _ = validate(decoded.batch, manifest)
    assert [row["inputs"]["x"] for row in good.to_pylist()] == [[1.0, 6.0], [2.0, 3.0]]


def test_a_list_column_needs_lists_and_a_number_column_numbers(make_manifest: Make) -> None:
    manifest = make_manifest(InputSpec("l", ("v",), shape=(2,)), InputSpec("n", ("a",)))
    messages = [
        b'{"v":[1,2],"a":3}',
        b'{"v":5,"a":3}',
        b'{"v":[1,2],"a":[4]}',
        b'{"v":[1,2],"a":[3,3]}',
        b'{"v":null,"a":null}',
        b'{"v":[1,null],"a":3}',
    ]
    decoded = read(messages, manifest)
    assert faults_of(decoded) == [("wrong_type", "v"), ("wrong_type", "a")]
    assert source_of(decoded) == [
        {"v": [1.0, 2.0], "a": 3.0},
        {"v": [1.0, 2.0], "a": 4.0},
        {"v": None, "a": None},
        {"v": [1.0, None], "a": 3.0},
    ]


def test_a_model_of_one_list_column_reads_both_forms(make_manifest: Make) -> None:
    manifest = make_manifest(InputSpec("l", ("embedding",), shape=(2,)))
    decoded = read([b'{"embedding":[1,2]}', b'{"features":[3,4]}', b'{"embedding":7}'], manifest)
    assert source_of(decoded) == [{"embedding": [1.0, 2.0]}, {"embedding": [3.0, 4.0]}]
    assert faults_of(decoded) == [("wrong_type", "embedding")]


def test_integers_of_integer_tensors_are_not_rounded(make_manifest: Make) -> None:
    big = 2**53 + 1
    for spec in (
        InputSpec("x", ("a", "b"), dtype="int64", shape=(2,)),
        InputSpec("x", ("l",), dtype="int64", shape=(2,)),
    ):
        manifest = make_manifest(spec)
        row = {"a": big, "b": 1} if len(spec.columns) > 1 else {"l": [big, 1]}
        decoded = read(
            [orjson.dumps(row), b'{"features":[2.0,3]}', b'{"features":[1.5,3]}'], manifest
        )
        alone = read([orjson.dumps(row)], manifest)
        for read_rows, expected in ((decoded, [[big, 1], [2, 3]]), (alone, [[big, 1]])):
            assert read_rows.batch is not None
            good, _, faults = validate(read_rows.batch, manifest)
            assert [row["inputs"]["x"] for row in good.to_pylist()] == expected
            assert faults == []
        assert [f.reason for f in decoded.faults] == ["wrong_type"]
        assert "expected int64, an integer from -92" in decoded.faults[0].message


def test_booleans_are_only_read_for_a_bool_tensor(make_manifest: Make) -> None:
    manifest = make_manifest(InputSpec("t", ("t",), dtype="bool"), InputSpec("x", ("a",)))
    decoded = read([b'{"t":true,"a":1}', b'{"t":0,"a":1}', b'{"t":1,"a":false}'], manifest)
    assert faults_of(decoded) == [("wrong_type", "a")]
    assert source_of(decoded) == [{"t": 1, "a": 1.0}, {"t": 0, "a": 1.0}]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "x"),
        ("", ""),
        (0, "0"),
        (False, "false"),
        (1.5, "1.5"),
        ([1, "a"], '[1,"a"]'),
        ({"u": None}, '{"u":null}'),
        (2**63, str(2**63)),
    ],
)
def test_ids_and_kept_columns_are_strings_and_falsy_values_are_kept(
    make_manifest: Make, value: Any, text: str
) -> None:
    message = orjson.dumps({"features": [1, 2, 3], "id": value, "city": value})
    decoded = decode_json(
        [message, b'{"features":[1,2,3],"id":null}'],
        ["derived", "other"],
        RowFormat(make_manifest(), "id", ("city",)),
    )
    assert decoded.batch is not None
    assert decoded.batch.column("row_id").to_pylist() == [text, "other"]
    assert [row["city"] for row in source_of(decoded)] == [text, None]
    # The type is the same in every batch, so batches can be written to one file.
    assert decoded.batch.schema.field("source").type.field("city").type == pa.string()


def test_a_row_that_cannot_be_read_keeps_its_id(make_manifest: Make) -> None:
    decoded = decode_json(
        [b'{"id":"mine","a":"x","b":1,"c":1}', b'{"id":7}', b"[]", b"{"],
        ["d0", "d1", "d2", "d3"],
        RowFormat(make_manifest(), "id"),
    )
    assert decoded.failed_ids == ["mine", "7", "d2", "d3"]


def test_a_kept_feature_stays_a_number(make_manifest: Make) -> None:
    manifest = make_manifest(InputSpec("x", ("a",)), InputSpec("y", ("b",)))
    decoded = read([b'{"a":1.5,"b":2}'], manifest, keep=("a", "city"))
    assert source_of(decoded) == [{"a": 1.5, "b": 2.0, "city": None}]
    decoded = read([b'{"features":[1.5,2,3]}'], make_manifest(), keep=("b", "features"))
    assert source_of(decoded) == [{"a": 1.5, "b": 2.0, "c": 3.0, "features": "[1.5,2,3]"}]


def test_derived_ids_depend_on_the_content(make_manifest: Make) -> None:
    messages = [b'{"features":[1,2,3]}', b'{"features":[1,2,3]}', b'{"features":[1,2,4]}']
    ids = read(messages, make_manifest()).batch.column("row_id").to_pylist()  # type: ignore[union-attr]
    assert ids[0] == ids[1] == content_id(messages[0]) != ids[2]
    assert len(ids[0]) == 32


def test_a_row_with_a_duplicate_key_is_a_failure(make_manifest: Make) -> None:
    good = b'{"a":1,"b":1,"c":1}'
    for beside in ([], [b"{"]):
        decoded = read([good, b'{"a":1,"a":2,"b":1,"c":1}', *beside], make_manifest())
        assert source_of(decoded) == [{"a": 1.0, "b": 1.0, "c": 1.0}]
        assert decoded.faults[0] == Fault("duplicate_key", "key 'a' appears twice")


def test_decimals_of_a_database_are_numbers(make_manifest: Make) -> None:
    manifest = make_manifest(InputSpec("x", ("a", "b"), dtype="int64", shape=(2,)))
    rows = [
        {"a": Decimal(2**53 + 1), "b": Decimal("1.00")},
        {"a": Decimal("0.5"), "b": Decimal("1e30")},
        {"a": Decimal("NaN"), "b": Decimal("-Infinity")},
    ]
    decoded = decode_rows(rows, [b""] * 3, list("xyz"), RowFormat(manifest))
    assert source_of(decoded) == [{"a": 2**53 + 1, "b": 1}]
    assert faults_of(decoded) == [("wrong_type", "a"), ("not_finite", "a")]
    floats = RowFormat(make_manifest(InputSpec("x", ("a", "b"), dtype="float64", shape=(2,))))
    values = [
        [row["a"], row["b"]] for row in source_of(decode_rows(rows, [b""] * 3, list("xyz"), floats))
    ]
    np.testing.assert_array_equal(
        np.array(values), np.array([[float(2**53 + 1), 1], [0.5, 1e30], [math.nan, -math.inf]])
    )


def test_a_nan_of_an_integer_tensor_is_imputed_or_a_fault_and_rounds_no_other_row(
    make_manifest: Make,
) -> None:
    rows = [{"a": math.nan, "b": 1}, {"a": 2**53 + 1, "b": 1}]
    statistics = {"a": FeatureStatistics(count=2, mean=6.0, std=1.0, min=5.0, max=7.0)}
    plain = InputSpec("x", ("a", "b"), dtype="int64", shape=(2,))
    imputed = InputSpec("x", ("a", "b"), dtype="int64", shape=(2,), impute={"a": "mean"})
    for spec, expected in ((plain, [2**53 + 1]), (imputed, [None, 2**53 + 1])):
        manifest = make_manifest(spec, statistics=statistics)
        decoded = decode_rows(rows, [b""] * 2, ["x", "y"], RowFormat(manifest))
        assert [row["a"] for row in source_of(decoded)] == expected
        assert faults_of(decoded) == [("not_finite", "a")] * (2 - len(expected))


def test_no_messages_give_no_batch(make_manifest: Make) -> None:
    assert decode_json([], [], RowFormat(make_manifest())) == Decoded(
        batch=None, failed_ids=[], failed_payloads=[], faults=[]
    )
