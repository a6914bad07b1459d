"""Dead letters have one schema and hold the original row."""

import datetime
import json
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.plain_json import to_json
from common.record_batch import source_batch
from model_handlers.manifests.manifest import Manifest
from transforms.dead_letter_schema import FAILURE_SCHEMA
from transforms.dead_letters import Fault, failed_rows, failure_batch, payloads
from transforms.provenance import Provenance, utc_now

NOW = datetime.datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)


def test_a_dead_letter_says_what_failed_where_and_why(provenance: Provenance) -> None:
    batch = failure_batch(
        ["x", None],
        [b"one", b"\xff"],
        [Fault("null", "column a: null", "a"), Fault("invalid_json", "not JSON")],
        stage="decode",
        provenance=provenance,
        failed_at=NOW,
    )
    assert batch.schema == FAILURE_SCHEMA
    assert batch.to_pylist()[0] == {
        "failed_at": NOW,
        "run_id": "run 1",
        "pipeline": "a test",
        "stage": "decode",
        "reason": "null",
        "message": "column a: null",
        "row_id": "x",
        "payload": b"one",
        "attributes": '{"column":"a"}',
        "model_name": "tiny",
        "model_version": "3",
        "model_digest": "0" * 64,
        "attempts": 1,
    }
    assert (
        batch.to_pylist()[1] | {"row_id": None, "payload": b"\xff", "attributes": "{}"}
        == (batch.to_pylist()[1])
    )


def test_columns_of_different_lengths_are_an_error(provenance: Provenance) -> None:
    faults = [Fault("null", "m")]
    for ids, messages in ((["x", "y"], [b"1"]), (["x"], [b"1", b"2"])):
        with pytest.raises(ValueError, match="same length"):
            failure_batch(
                ids, messages, faults, stage="infer", provenance=provenance, failed_at=NOW
            )


def test_the_payload_is_the_message_or_the_columns_as_json(provenance: Provenance) -> None:
    rows = pa.record_batch({"a": [1.5, math.nan], "t": pa.array([1, 2], pa.timestamp("ns"))})
    ids = pa.array(["x", "y"])
    assert payloads(source_batch(ids, rows, pa.array([b"m1", b"m2"]))) == [b"m1", b"m2"]
    assert payloads(source_batch(ids, rows).slice(1)) == [b'{"a":"NaN","t":"1970-01-01T00:00:00"}']
    batch = failed_rows(
        source_batch(ids, rows),
        [Fault("null", "m")] * 2,
        stage="validate",
        provenance=provenance,
        failed_at=NOW,
    )
    assert batch.column("row_id").to_pylist() == ["x", "y"]
    assert json.loads(batch.column("payload")[0].as_py()) == {"a": 1.5, "t": "1970-01-01T00:00:00"}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
@pytest.mark.slow
def test_any_row_can_be_written_as_json(value: Any) -> None:
    assert orjson.loads(to_json(value)) == orjson.loads(to_json(orjson.loads(to_json(value))))


def test_values_that_json_cannot_express_become_strings() -> None:
    row = {
        "nan": [math.nan, math.inf, -math.inf],
        "bytes": b"\xff",
        "decimal": Decimal("1.50"),
        "big": 2**70,
        "tuple": (1, 2),
        7: NOW,
    }
    assert json.loads(to_json(row)) == {
        "nan": ["NaN", "Infinity", "-Infinity"],
        "bytes": "/w==",
        "decimal": "1.50",
        "big": str(2**70),
        "tuple": [1, 2],
        "7": "2024-01-02T03:04:05.000006+00:00",
    }


def test_a_value_that_json_cannot_hold_raises() -> None:
    endless: list[Any] = []
    endless.append(endless)
    deep: Any = 0
    for _ in range(300):
        deep = [deep]
    for value in (endless, deep):
        with pytest.raises((TypeError, RecursionError)):
            to_json(value)


def test_provenance_names_the_model_and_the_run_if_given(
    make_manifest: Callable[..., Manifest],
) -> None:
    manifest = make_manifest()
    assert Provenance.of(manifest, "run 1", "a test") == Provenance(
        run_id="run 1",
        pipeline="a test",
        model_name="tiny",
        model_version="3",
        model_digest="0" * 64,
    )
    assert Provenance.of(manifest).model_digest == manifest.sha256


def test_the_current_time_has_a_time_zone() -> None:
    assert utc_now().utcoffset() == datetime.timedelta(0)
