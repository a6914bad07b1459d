"""Arrays become predictions, whose JSON decodes to the same values for every dtype and shape."""

import json
import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from common.errors import UsageError
from model_handlers.endpoints.numpy_json import dump_objects
from model_handlers.manifests.manifest import Manifest, OutputSpec
from serving.predictions import Field, prediction_fields

Make = Callable[..., Manifest]


@given(data=st.data(), rows=st.integers(0, 5), keys=st.lists(st.text(), min_size=1, unique=True))
def test_decoded_predictions_equal_the_encoded_arrays(
    data: st.DataObject, rows: int, keys: list[str]
) -> None:
    keys = [key for key in keys if key.isprintable()] or ["%b"]
    arrays = []
    for _ in keys:
        shape = (rows, *data.draw(arrays_of.array_shapes(min_dims=0, max_dims=3, max_side=3)))
        dtype = data.draw(st.sampled_from(["f4", "f8", "i8", "i4", "u1", "?"]))
        finite = {"allow_nan": False, "allow_infinity": False} if dtype[0] == "f" else {}
        arrays.append(data.draw(arrays_of.arrays(dtype, shape, elements=finite)))
    decoded = json.loads(dump_objects(keys, arrays))
    assert len(decoded) == rows
    for i, row in enumerate(decoded):
        assert list(row) == keys
        for key, array in zip(keys, arrays, strict=True):
            np.testing.assert_array_equal(np.array(row[key], array.dtype), array[i])


def test_numbers_are_as_short_as_their_dtype() -> None:
    floats = np.array([[0.1, 1e-20], [np.nan, np.inf]], np.float32)
    columns = np.asfortranarray(floats)
    assert dump_objects(["a"], [floats]) == b'[{"a":[0.1,1e-20]},{"a":[null,null]}]'
    assert dump_objects(["a"], [columns]) == dump_objects(["a"], [floats])


def test_fields_are_chosen_by_keyword_or_by_name(make_manifest: Make) -> None:
    outputs = (OutputSpec("total"), OutputSpec("mean"), OutputSpec("code", shape=(2,)))
    manifest = make_manifest(outputs=outputs, output_fields=("code",))
    score, code = Field("anomaly_score", "total"), Field("code", "code")
    assert prediction_fields(manifest, "score") == (score, code)
    assert prediction_fields(manifest, "all") == tuple(Field(s.name, s.name) for s in outputs)
    assert prediction_fields(manifest, "code,anomaly_score,code") == (code, score)
    assert prediction_fields(manifest, ["mean"]) == (Field("mean", "mean"),)
    other = manifest.choose("mean")
    assert prediction_fields(other, "score")[0] == Field("anomaly_score", "mean")


def test_an_output_may_have_the_name_of_a_keyword(make_manifest: Make) -> None:
    outputs = (OutputSpec("score"), OutputSpec("anomaly_score"))
    manifest = make_manifest(outputs=outputs, score_output="score")
    assert prediction_fields(manifest, "score") == (Field("score", "score"),)
    assert prediction_fields(manifest, "anomaly_score") == (
        Field("anomaly_score", "anomaly_score"),
    )


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("totl", "no output 'totl' (did you mean 'total'?)"),
        ([], "expected all, score or names of outputs, got an empty list"),
        ("score", "has no score output: choose one with --score_output"),
    ],
    ids=str,
)
def test_a_choice_that_is_not_possible_is_an_error(
    make_manifest: Make, choice: str, message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        prediction_fields(make_manifest(score_output=None), choice)
