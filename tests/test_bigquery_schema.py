"""Names, types and schemas: which Arrow columns become which table columns, and which do not."""

import re
from typing import Any

import pyarrow as pa
import pytest
from google.cloud.bigquery import SchemaField

from common.errors import OutputError, UsageError
from examples.local_cloud import LocalCloud
from transforms.bigquery.schema import (
    JSON_METADATA,
    TableName,
    arrow_schema,
    drift,
    file_type,
    has_json,
    in_form,
    same_form,
    table_fields,
    without_json,
)
from transforms.dead_letter_schema import FAILURE_SCHEMA

JSON = pa.field("j", pa.string(), metadata=JSON_METADATA)


def column(kind: pa.DataType) -> SchemaField:
    """Return the table column for an Arrow type."""
    (found,) = table_fields(pa.schema([("c", kind)]))
    return found


def test_only_the_error_for_an_input_table_suggests_a_query() -> None:
    text = "my-project.data.t$20240101"
    expected = re.escape(
        "--output_table: expected project.dataset.table, of letters, digits and _, "
        "got 'my-project.data.t$20240101'"
    )
    with pytest.raises(UsageError, match=f"^{expected}$"):
        TableName.parse(text, "output_table")
    with pytest.raises(UsageError, match="use --input_query to read a partition or a wildcard"):
        TableName.parse(text, "input_table")


KINDS = [
    (pa.int64(), "INTEGER"),
    (pa.uint8(), "INTEGER"),
    (pa.float16(), "FLOAT"),
    (pa.float32(), "FLOAT"),
    (pa.float64(), "FLOAT"),
    (pa.bool_(), "BOOLEAN"),
    (pa.string(), "STRING"),
    (pa.large_string(), "STRING"),
    (pa.string_view(), "STRING"),
    (pa.null(), "STRING"),
    (pa.dictionary(pa.int8(), pa.string()), "STRING"),
    (pa.dictionary(pa.int8(), pa.int64()), "INTEGER"),
    (pa.binary(), "BYTES"),
    (pa.large_binary(), "BYTES"),
    (pa.binary_view(), "BYTES"),
    (pa.binary(16), "BYTES"),
    (pa.date32(), "DATE"),
    (pa.date64(), "DATE"),
    (pa.time32("s"), "TIME"),
    (pa.time64("ns"), "TIME"),
    (pa.timestamp("ns"), "DATETIME"),
    (pa.timestamp("ms", "Europe/Berlin"), "TIMESTAMP"),
    (pa.decimal128(38, 9), "NUMERIC"),
    (pa.decimal128(29, 0), "NUMERIC"),
    (pa.decimal128(30, 0), "BIGNUMERIC"),
    (pa.decimal128(12, 10), "BIGNUMERIC"),
    (pa.decimal256(76, 38), "BIGNUMERIC"),
]


@pytest.mark.parametrize(("kind", "name"), KINDS, ids=str)
def test_types_of_columns_plain_in_lists_and_in_structs(kind: pa.DataType, name: str) -> None:
    assert (column(kind).field_type, column(kind).mode) == (name, "NULLABLE")
    for many in (pa.list_(kind), pa.large_list(kind), pa.list_(kind, 3)):
        assert (column(many).field_type, column(many).mode) == (name, "REPEATED")
    struct = column(pa.struct([("inner", kind), ("many", pa.list_(kind))]))
    assert (struct.field_type, struct.mode) == ("RECORD", "NULLABLE")
    assert [(f.name, f.field_type, f.mode) for f in struct.fields] == [
        ("inner", name, "NULLABLE"),
        ("many", name, "REPEATED"),
    ]


def test_json_columns_stay_json_by_their_metadata() -> None:
    schema = pa.schema(
        [JSON, pa.field("many", pa.list_(JSON)), pa.field("s", pa.struct([JSON, ("n", pa.int8())]))]
    )
    plain, many, struct = table_fields(schema)
    assert [f.field_type for f in (plain, many, struct.fields[0])] == ["JSON"] * 3
    assert all(map(has_json, (plain, many, struct)))
    assert arrow_schema([plain, many]).equals(
        pa.schema([JSON, pa.field("many", pa.list_(JSON.with_name("item")))]), check_metadata=True
    )
    for found in map(without_json, (plain, many, struct)):
        assert not has_json(found)
    assert [f.field_type for f in without_json(struct).fields] == ["STRING", "INTEGER"]
    assert without_json(many).mode == "REPEATED"


@pytest.mark.parametrize(
    ("schema", "parts"),
    [
        (pa.schema([("c", pa.list_(pa.list_(pa.int8())))]), ["'c'", "lists of lists"]),
        (pa.schema([("c", pa.list_(pa.list_(pa.int8(), 2), 2))]), ["'c'", "lists of lists"]),
        (pa.schema([("c", pa.duration("s"))]), ["'c'", "duration", "no type"]),
        (pa.schema([("c", pa.map_(pa.string(), pa.int8()))]), ["'c'", "map", "no type"]),
        (pa.schema([("c", pa.decimal256(76, 10))]), ["'c'", "decimal256(76, 10)", "no type"]),
        (pa.schema([("c", pa.decimal256(50, 40))]), ["'c'", "no type"]),
        (pa.schema([("c", pa.struct([]))]), ["'c'", "without fields"]),
        (pa.schema([("a.b", pa.int8())]), ["'a.b'", "letters, digits, spaces and any of _-&"]),
        (pa.schema([("", pa.int8())]), ["''", "letters, digits, spaces"]),
        (pa.schema([("_Partition_x", pa.int8())]), ["'_Partition_x'", "BigQuery reserves"]),
        (pa.schema([("x" * 301, pa.int8())]), ["cannot be in a BigQuery table"]),
        (pa.schema([("a", pa.int8()), ("A", pa.int8())]), ["'a' and 'A'", "the same name"]),
        (pa.schema([("a", pa.int8()), ("a", pa.int8())]), ["'a' and 'a'", "the same name"]),
        (pa.schema([("c", pa.struct([("d/e", pa.int8())]))]), ["field 'd/e' of column 'c'"]),
        (
            pa.schema([("c", pa.list_(pa.struct([("d", pa.int8()), ("D", pa.int8())])))]),
            ["fields 'd' and 'D' of column 'c'", "the same name"],
        ),
    ],
)
def test_columns_that_a_table_cannot_hold_are_reported(schema: pa.Schema, parts: list[str]) -> None:
    with pytest.raises(OutputError) as caught:
        table_fields(schema)
    assert "--output_fields" in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["Größe in cm", "1st", "利率", "a-b", "x" * 300, "50% & more"])
def test_names_in_any_language_and_with_spaces_are_columns(name: str) -> None:
    schema = pa.schema([(name, pa.int8()), ("s", pa.struct([(name, pa.int8())]))])
    plain, struct = table_fields(schema)
    assert [plain.name, struct.fields[0].name] == [name, name]


def test_a_type_that_only_bigquery_has_cannot_be_passed_through() -> None:
    schema = arrow_schema([SchemaField("place", "GEOGRAPHY")])
    with pytest.raises(OutputError, match=r"'place' is GEOGRAPHY.*STRING in --input_query"):
        table_fields(schema)


def test_the_legacy_and_standard_names_of_a_type_are_equal() -> None:
    old = [SchemaField(n, n) for n in ("INTEGER", "FLOAT", "BOOLEAN", "NUMERIC", "BIGNUMERIC")]
    new = [SchemaField(o.name, n) for o, n in zip(old, NEW, strict=True)]
    assert drift("t", old, new) is None
    assert all(map(same_form, old, new))
    assert arrow_schema(old) == arrow_schema(new)


NEW = ("INT64", "FLOAT64", "BOOL", "DECIMAL", "BIGDECIMAL")


def test_a_table_may_have_more_columns_another_order_and_another_case() -> None:
    wanted = table_fields(pa.schema([("a", pa.int64()), ("b", pa.string())]))
    present = [
        SchemaField("extra", "STRING"),
        SchemaField("B", "STRING", "REQUIRED"),
        SchemaField("A", "INTEGER"),
        SchemaField("many", "STRING", "REPEATED"),
    ]
    assert drift("t", wanted, present) is None


def test_all_differences_are_reported_at_once() -> None:
    pair = pa.struct([("x", pa.int64()), ("y", pa.float64())])
    wanted = table_fields(
        pa.schema([("amount", pa.float64()), ("pair", pair), ("many", pa.list_(pa.int64()))])
    )
    present = [
        SchemaField("amounts", "FLOAT"),
        SchemaField("pair", "RECORD", fields=[SchemaField("y", "FLOAT")]),
        SchemaField("many", "INTEGER"),
        SchemaField("owner", "STRING", "REQUIRED"),
    ]
    message = drift("p.d.t", wanted, present) or ""
    assert "\n" not in message
    assert message.startswith("table p.d.t ")
    for part in (
        "lacks column amount FLOAT64 (did you mean 'amounts'?)",
        "has column pair STRUCT<y FLOAT64>, expected STRUCT<x INT64, y FLOAT64>",
        "has column many INT64, expected ARRAY<INT64>",
        "requires column owner, which is not written",
        "--output_fields",
    ):
        assert part in message


def test_another_order_of_struct_fields_fits_but_is_not_the_same_form() -> None:
    turned = SchemaField(
        "s", "RECORD", fields=[SchemaField("b", "STRING"), SchemaField("a", "INTEGER")]
    )
    (wanted,) = table_fields(pa.schema([("s", pa.struct([("a", pa.int64()), ("b", pa.string())]))]))
    assert drift("t", [wanted], [turned]) is None
    assert not same_form(wanted, turned)


@pytest.mark.parametrize(
    "other",
    [
        SchemaField("c", "STRING", "REQUIRED"),
        SchemaField("C", "STRING"),
        SchemaField("c", "STRING", max_length=10),
        SchemaField("c", "STRING", "REPEATED"),
        SchemaField("c", "BYTES"),
    ],
)
def test_a_copy_needs_columns_that_are_equal_in_every_respect(other: SchemaField) -> None:
    wanted = column(pa.string())
    assert same_form(wanted, SchemaField("c", "STRING", description="what it is"))
    assert not same_form(wanted, other)


def test_the_precision_of_a_decimal_is_part_of_its_form() -> None:
    assert same_form(column(pa.decimal128(10, 2)), SchemaField("c", "NUMERIC"))
    bound = SchemaField("c", "NUMERIC", precision=10, scale=2)
    assert not same_form(column(pa.decimal128(10, 2)), bound)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (pa.float32(), pa.float32()),
        (pa.float16(), pa.float64()),
        (pa.int8(), pa.int64()),
        (pa.decimal128(5, 2), pa.decimal128(5, 2)),
        (pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int8(), pa.string())),
        (pa.dictionary(pa.int8(), pa.int32()), pa.int64()),
        (pa.large_string(), pa.string()),
        (pa.timestamp("ns", "Europe/Berlin"), pa.timestamp("us", "UTC")),
        (pa.timestamp("s"), pa.timestamp("us")),
        (pa.date64(), pa.date32()),
        (pa.list_(pa.float32(), 2), pa.list_(pa.float32())),
        (pa.large_list(pa.int16()), pa.list_(pa.int64())),
        (
            pa.struct([("a", pa.float32()), ("b", pa.int8())]),
            pa.struct([("a", pa.float32()), ("b", pa.int64())]),
        ),
    ],
)
def test_files_have_types_that_load_and_are_not_larger_than_the_rows(
    actual: pa.DataType, expected: pa.DataType
) -> None:
    (target,) = arrow_schema(table_fields(pa.schema([("c", actual)])))
    assert file_type(actual, target.type) == expected


def test_values_are_converted_to_the_form_of_the_table(emulators: LocalCloud) -> None:
    # The fields of the struct are in another order in the table. Two of them have the same type,
    # and others are JSON.
    inner = [
        SchemaField("b", "INTEGER"),
        SchemaField("j", "JSON"),
        SchemaField("a", "INTEGER"),
        SchemaField("js", "JSON", "REPEATED"),
    ]
    single = SchemaField("s", "RECORD", fields=inner)
    many = SchemaField("m", "RECORD", "REPEATED", fields=inner)
    text = "STRUCT({0} AS a, {0} * 10 AS b, '[1]' AS j, ['2', 'true'] AS js)"
    source = (
        f"SELECT 1 AS k, {text.format(1)} AS s, [{text.format(2)}, {text.format(3)}] AS m "
        "UNION ALL SELECT 2, NULL, []"
    )
    job = emulators.cloud.bigquery().query(
        f"WITH t AS ({source}), u AS (SELECT k, {in_form(single, '`s`')} AS s, "
        f"{in_form(many, '`m`')} AS m FROM t) SELECT k, s.a AS a, s.b AS b, s IS NULL AS absent, "
        "JSON_TYPE(s.j) AS j, ARRAY_LENGTH(s.js) AS js, ARRAY_LENGTH(m) AS n, "
        "ARRAY(SELECT e.b FROM UNNEST(m) AS e WITH OFFSET o ORDER BY o) AS bs FROM u ORDER BY k"
    )
    found: list[dict[str, Any]] = [dict(row) for row in job.result()]
    full = {"k": 1, "a": 1, "b": 10, "absent": False, "j": "array", "js": 2, "n": 2, "bs": [20, 30]}
    none: dict[str, Any] = {
        "k": 2,
        "a": None,
        "b": None,
        "absent": True,
        "j": None,
        "js": 0,
        "n": 0,
        "bs": [],
    }
    assert found[0] == full
    # In a struct that is null, an array is null in the emulator, and empty in the service.
    assert found[1] | {"js": 0} == none
    assert in_form(single, "s").index("AS `b`") < in_form(single, "s").index("AS `a`")


def test_plain_columns_are_used_unchanged() -> None:
    for field in table_fields(FAILURE_SCHEMA):
        assert in_form(field, f"`{field.name}`") == f"`{field.name}`"
        assert same_form(field, without_json(field))
