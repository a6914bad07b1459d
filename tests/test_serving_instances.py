"""Instances become the same arrays and faults, whether checked at once or row by row."""

from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_handlers.manifests.manifest import FeatureStatistics, InputSpec, Manifest
from serving.instances import BadInstances, InstanceReader

Make = Callable[..., Manifest]

numbers = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**63), 2**63 - 1)
)
values = st.one_of(numbers, st.none(), st.booleans(), st.text(max_size=3), st.lists(numbers))
lists = st.lists(values, min_size=2, max_size=4)
objects = st.dictionaries(st.sampled_from(["a", "b", "c", "d", "features"]), values)
good_lists = st.lists(numbers, min_size=3, max_size=3)
good_objects = st.fixed_dictionaries(dict.fromkeys("cab", numbers))
instances = st.lists(st.one_of(good_lists, good_objects, lists, objects), min_size=1, max_size=8)


def outcome(reader: InstanceReader, rows: Any, *, one_by_one: bool) -> Any:
    """Return the matrix, or the reason of each bad row by its index."""
    try:
        (matrix,) = reader._judge(rows) if one_by_one else reader.read(rows)
    except BadInstances as bad:
        return {index: fault.reason for index, fault in bad.faults.items()}
    assert matrix.dtype == np.float32
    return matrix.tolist()


@given(
    rows=st.one_of(instances, st.lists(good_lists, min_size=1), st.lists(good_objects, min_size=1))
)
def test_checking_all_rows_at_once_and_one_by_one_agree(make_manifest: Make, rows: Any) -> None:
    reader = InstanceReader(make_manifest())
    rows = orjson.loads(orjson.dumps(rows))
    assert outcome(reader, rows, one_by_one=False) == outcome(reader, rows, one_by_one=True)


@given(rows=st.lists(st.one_of(good_lists, good_objects, lists, objects), min_size=1, max_size=6))
def test_other_rows_do_not_change_how_a_row_is_judged(make_manifest: Make, rows: Any) -> None:
    reader = InstanceReader(make_manifest())
    alone = [outcome(reader, [row], one_by_one=False) for row in rows]
    together = outcome(reader, rows, one_by_one=False)
    bad = {i: found[0] for i, found in enumerate(alone) if isinstance(found, dict)}
    assert together == (bad or [found[0] for found in alone])


def test_a_model_with_several_inputs_takes_them_by_name(make_manifest: Make) -> None:
    manifest = make_manifest(
        InputSpec("amount", ("amount",), shape=()),
        InputSpec("pixels", ("pixels",), shape=(2, 2)),
        InputSpec("kind", ("kind",), dtype="int64", shape=()),
    )
    reader = InstanceReader(manifest)
    row = {"amount": 1.5, "pixels": [1, 2, 3, 4], "kind": 2**60 + 1}
    amount, pixels, kind = reader.read([row, row])
    assert amount.tolist() == [1.5, 1.5]
    assert pixels.tolist() == [[1, 2, 3, 4]] * 2
    assert kind.tolist() == [2**60 + 1] * 2
    with pytest.raises(BadInstances) as raised:
        reader.read([row, [1.5], row | {"kind": 1.5}, row | {"pixels": [1]}])
    reasons = {index: fault.reason for index, fault in raised.value.faults.items()}
    assert reasons == {1: "not_an_object", 2: "wrong_type", 3: "wrong_width"}
    assert raised.value.faults[1].message == (
        "expected an object with features by name, got a list: the model has 3 inputs"
    )


def test_a_list_column_takes_the_list_itself(make_manifest: Make) -> None:
    reader = InstanceReader(make_manifest(InputSpec("x", ("pixels",), shape=(3,))))
    for rows in ([[1, 2, 3]] * 2, [{"pixels": [1, 2, 3]}] * 2, [[1, 2, 3], {"pixels": [1, 2, 3]}]):
        (matrix,) = reader.read(rows)
        assert matrix.tolist() == [[1, 2, 3]] * 2


def test_only_features_that_the_manifest_imputes_are_imputed(make_manifest: Make) -> None:
    manifest = make_manifest(
        InputSpec("x", ("a", "b", "c"), shape=(3,), impute={"b": "mean"}),
        statistics={"b": FeatureStatistics(count=2, mean=7.0, std=1.0, min=6.0, max=8.0)},
    )
    reader = InstanceReader(manifest)
    (matrix,) = reader.read([[1, None, 3], {"a": 1, "c": 3}, [1, 2, 3]])
    assert matrix.tolist() == [[1, 7, 3], [1, 7, 3], [1, 2, 3]]
    with pytest.raises(BadInstances) as raised:
        reader.read([[None, 2, 3], [1, None, 3]])
    assert list(raised.value.faults) == [0]
