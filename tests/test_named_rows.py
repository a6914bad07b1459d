"""Rows that name every feature are read like any other JSON, only faster."""

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model_handlers.manifests.manifest import InputSpec, Manifest
from transforms.dead_letters import Fault
from transforms.json_rows.row_columns import build_columns
from transforms.json_rows.row_format import RowFormat, read_row
from transforms.json_rows.values import read_json_values
from transforms.messages.named_rows import NamedRows
from transforms.row_schemas import CARRIED

NAMES = ("a", "odd name é", "class")
NUMBERS = (
    st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70)
)
CARRIED_VALUES = {
    "test_id": st.none() | st.text(max_size=3),
    "message_id": st.text(max_size=3) | st.integers(),
    "publish_time": NUMBERS,
    "sequence": st.none()
    | st.integers(-(2**64), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False),
    "city": st.text(max_size=2),
    "unknown": st.integers(),
}
# Inserted anywhere in a text, these cause most faults that a text can have.
TOKENS = [
    *(b"", b"0", b"-", b"1e999", b"null", b"true", b"NaN", b'"', b'"a":1,', b'"\\u0061":2,', b" "),
    *(
        b",",
        b":",
        b"{",
        b"}",
        b"[1]",
        b"\\",
        b"\\ud800",
        b"\\u003a",
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
    ),
]


@pytest.fixture(scope="module")
def row_format(make_manifest: Callable[..., Manifest]) -> RowFormat:
    manifest = make_manifest(InputSpec("x", NAMES, shape=(3,)))
    return RowFormat(manifest, None, ("city", "a"), CARRIED)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    names = [
        *NAMES,
        *draw(st.lists(st.sampled_from(list(CARRIED_VALUES)), max_size=3, unique=True)),
    ]
    row = {name: draw(CARRIED_VALUES.get(name, NUMBERS)) for name in draw(st.permutations(names))}
    body = json.dumps(row, ensure_ascii=draw(st.booleans())).encode()
    at = draw(st.integers(0, len(body)))
    return body[:at] + draw(st.just(b"") | st.sampled_from(TOKENS)) + body[at:]


@given(st.lists(bodies(), min_size=1, max_size=3))
@example([b'{"a":1,"a":1,"odd name \xc3\xa9":1,"class":1,"test_id":null}'])
def test_the_fast_reader_reads_what_the_slow_reader_reads(
    row_format: RowFormat, bodies: list[bytes]
) -> None:
    found = NamedRows(row_format).read(bodies)
    if found is None:
        return
    columns, ids = found
    assert ids is None
    rows = read_json_values(bodies)
    values = [read_row(row, row_format) for row in rows]
    assert not [value for value in values if isinstance(value, Fault)]
    wanted = build_columns(values, rows, row_format)
    for i, name in enumerate(NAMES):
        read = pc.list_element(columns["features"], i)
        assert read.equals(wanted[name].cast(pa.float64(), safe=False))
    assert columns["a"].equals(pc.list_element(columns["features"], 0))
    for name in ("city", *dict(CARRIED)):
        assert columns[name].equals(wanted[name])


def test_names_that_json_escapes_are_left_to_the_slow_reader(
    make_manifest: Callable[..., Manifest],
) -> None:
    manifest = make_manifest(InputSpec("x", ('a"', "b"), shape=(2,)))
    assert NamedRows(RowFormat(manifest)).read([b'{"a\\"":1,"b":2}']) is None


def test_plain_rows_are_read(row_format: RowFormat) -> None:
    features: dict[str, Any] = {"class": 2, "a": None, NAMES[1]: -2.5e3}
    bare = json.dumps(features).encode()
    full = json.dumps({**features, "city": "Zürich", "sequence": 0, "test_id": ""}).encode()
    found = NamedRows(row_format).read([bare, full])
    assert found is not None
    columns = found.columns
    assert columns["features"].to_pylist() == [[None, -2500.0, 2.0]] * 2
    assert columns["city"].to_pylist() == [None, "Zürich"]
    assert columns["test_id"].to_pylist() == [None, ""]
    assert columns["sequence"].to_pylist() == [None, 0]
    assert columns["publish_time"].type == pa.float64()


def test_the_id_is_an_additional_column_or_one_of_the_others(
    make_manifest: Callable[..., Manifest],
) -> None:
    manifest = make_manifest(InputSpec("x", ("a",), shape=(1,)))
    for id_column in ("id", "city", "test_id"):
        reader = NamedRows(RowFormat(manifest, id_column, ("city",), CARRIED))
        bodies = [b'{"a":1,"%b":"x:y"}' % id_column.encode(), b'{"a":1}', b'{"a":1,"city":""}']
        found = reader.read(bodies)
        assert found is not None
        assert found.ids == ["x:y", None, "" if id_column == "city" else None]
        assert list(found.columns) == ["features", "city", *dict(CARRIED)]
    for id_column in ("a", "sequence"):
        # Only the slow reader can distinguish 1 from 1.0.
        assert NamedRows(RowFormat(manifest, id_column, (), CARRIED)).read([b'{"a":1}']) is None
