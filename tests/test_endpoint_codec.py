"""Tests of encoding requests to an endpoint and decoding its answers."""

import json
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, get_args
from unittest.mock import patch

import numpy as np
import orjson
import pytest
from faulty_endpoint import HTML_PAGE
from hypothesis import given
from hypothesis import strategies as st

from cloud.endpoint_responses import BadAnswer
from common.errors import UsageError
from model_handlers.endpoints.codec import EndpointCodec
from model_handlers.manifests.manifest import DType, InputSpec, Manifest, OutputSpec

MakeManifest = Callable[..., Manifest]
ROWS = np.array([[1.5, 2.0, 0.1], [4.0, 5.0, -6.25]], np.float32)
ALL = slice(0, 2)


def codec_of(manifest: Manifest, *names: str, **fields: Any) -> EndpointCodec:
    chosen = names or [spec.name for spec in manifest.outputs]
    return EndpointCodec(manifest, tuple(manifest.output(name) for name in chosen), **fields)


@pytest.fixture
def codec(make_manifest: MakeManifest) -> EndpointCodec:
    return codec_of(make_manifest())


def answer(*predictions: Any, **members: Any) -> bytes:
    return json.dumps({"predictions": predictions, **members}).encode()


def refusal(codec: EndpointCodec, body: bytes, rows: int) -> str:
    with pytest.raises(BadAnswer) as raised:
        codec.decode(body, rows)
    message = str(raised.value)
    assert len(message) < 300
    assert "\n" not in message
    return message


def test_instances_are_the_features_in_order_with_the_digits_of_their_dtype(
    codec: EndpointCodec,
) -> None:
    assert codec.encode([ROWS], ALL) == b'{"instances":[[1.5,2.0,0.1],[4.0,5.0,-6.25]]}'
    assert codec.encode([ROWS], slice(1, 2)) == b'{"instances":[[4.0,5.0,-6.25]]}'
    assert codec.encode([ROWS], np.array([1])) == codec.encode([ROWS], slice(1, 2))


def test_instances_may_be_objects_by_column(make_manifest: MakeManifest) -> None:
    manifest = make_manifest(
        InputSpec("x", ("a", 'b"%d'), shape=(2,)),
        InputSpec("day", ("day",), dtype="int64"),
        InputSpec("word", ("vector",), shape=(3,)),
    )
    codec = codec_of(manifest, instance_format="named")
    arrays = [ROWS[:, :2], np.array([7, 2**60]), ROWS]
    assert json.loads(codec.encode(arrays, ALL))["instances"] == [
        {"a": 1.5, 'b"%d': 2.0, "day": 7, "vector": [1.5, 2.0, 0.1]},
        {"a": 4.0, 'b"%d': 5.0, "day": 2**60, "vector": [4.0, 5.0, -6.25]},
    ]


def test_a_list_has_the_shape_of_the_tensor(make_manifest: MakeManifest) -> None:
    matrix = make_manifest(InputSpec("x", tuple("abcdef"), shape=(2, 3)))
    body = codec_of(matrix).encode([np.arange(6.0).reshape(1, 6)], slice(0, 1))
    assert json.loads(body)["instances"] == [[[0, 1, 2], [3, 4, 5]]]
    number = make_manifest(InputSpec("x", ("a",)))
    assert codec_of(number).encode([ROWS[:, 0]], ALL) == b'{"instances":[1.5,4.0]}'


@pytest.mark.parametrize("dtype", get_args(DType))
def test_inputs_and_outputs_of_every_dtype_are_converted(
    make_manifest: MakeManifest, dtype: DType
) -> None:
    outputs = (OutputSpec("y", dtype, (2,)), OutputSpec("z", dtype))
    manifest = make_manifest(
        InputSpec("x", ("a", "b"), dtype=dtype, shape=(2,)), outputs=outputs, score_output="z"
    )
    array = np.array([[0, 1], [1, 0]]).astype(dtype)
    codec = codec_of(manifest)
    instances = json.loads(codec.encode([array], ALL))["instances"]
    body = answer(*({"y": row, "z": row[0]} for row in instances))
    for got, expected in zip(codec.decode(body, 2), (array, array[:, 0]), strict=True):
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, expected)


@given(rows=st.lists(st.lists(st.floats(width=32, allow_infinity=False), min_size=3, max_size=3)))
def test_float32_numbers_survive_a_round_trip(
    make_manifest: MakeManifest, rows: list[list[float]]
) -> None:
    manifest = make_manifest(outputs=(OutputSpec("x", shape=(3,)),), score_output=None)
    codec = codec_of(manifest)
    array = np.array(rows, np.float32).reshape(-1, 3)
    body = codec.encode([array], slice(0, len(rows)))
    (again,) = codec.decode(body.replace(b"instances", b"predictions"), len(rows))
    np.testing.assert_array_equal(again, array)


def test_parameters_go_with_every_request(make_manifest: MakeManifest) -> None:
    codec = codec_of(make_manifest(), parameters='{"outputs": "all"}')
    assert json.loads(codec.encode([ROWS], ALL))["parameters"] == {"outputs": "all"}


@pytest.mark.parametrize("parameters", ["", "{", "[1]", '"all"', "NaN"])
def test_parameters_that_are_not_an_object_are_refused(
    make_manifest: MakeManifest, parameters: str
) -> None:
    with pytest.raises(UsageError, match="--endpoint_parameters must be a JSON object"):
        codec_of(make_manifest(), parameters=parameters)


def test_several_inputs_cannot_be_sent_as_one_list(make_manifest: MakeManifest) -> None:
    manifest = make_manifest(InputSpec("x", ("a",)), InputSpec("y", ("b",)))
    with pytest.raises(UsageError, match="tiny has 2 inputs: use --instance_format named"):
        codec_of(manifest)
    with pytest.raises(UsageError, match="instance_format must be list or named, got pairs"):
        codec_of(manifest, instance_format="pairs")


def test_outputs_are_read_by_name_and_other_members_are_ignored(codec: EndpointCodec) -> None:
    body = answer(
        {"total": 1.5, "code": [1, 2], "more": "?"},
        {"code": [3.5, 4], "total": 2},
        deployedModelId="17",
        model="projects/p/locations/l/models/3",
    )
    total, code = codec.decode(body, 2)
    assert {total.dtype, code.dtype} == {np.dtype("float32")}
    assert total.tolist() == [1.5, 2]
    assert code.tolist() == [[1, 2], [3.5, 4]]


def test_the_score_may_be_called_anomaly_score(make_manifest: MakeManifest) -> None:
    codec = codec_of(make_manifest())
    total, _ = codec.decode(answer({"anomaly_score": 3.5, "code": [1, 2]}), 1)
    assert total.tolist() == [3.5]
    other = codec_of(make_manifest(score_output=None), "total")
    message = refusal(other, answer({"anomaly_score": 3.5, "code": [1, 2]}), 1)
    assert message == (
        "expected each prediction to have 'total', got one with 'anomaly_score', 'code'; "
        "python -m serving returns all outputs if it runs with --outputs all, or with "
        """--endpoint_parameters '{"outputs":"all"}'"""
    )


def test_the_name_of_the_score_takes_precedence_over_anomaly_score(
    make_manifest: MakeManifest,
) -> None:
    codec = codec_of(make_manifest(), "total")
    (total,) = codec.decode(answer({"anomaly_score": 1.0, "total": 2.0}), 1)
    assert total.tolist() == [2.0]


def test_only_the_requested_outputs_are_read(make_manifest: MakeManifest) -> None:
    codec = codec_of(make_manifest(), "code")
    (code,) = codec.decode(answer({"total": "what", "code": [1, 2]}), 1)
    assert code.tolist() == [[1, 2]]


def test_an_endpoint_may_leave_out_the_name_of_the_only_output(make_manifest: MakeManifest) -> None:
    codec = codec_of(make_manifest(outputs=(OutputSpec("total"),)))
    (total,) = codec.decode(answer(1.5, 2), 2)
    assert total.tolist() == [1.5, 2]
    (total,) = codec.decode(answer({"total": 3}), 1)
    assert total.tolist() == [3]


def test_a_list_of_one_number_is_one_number(codec: EndpointCodec) -> None:
    total, _ = codec.decode(answer(GOOD | {"total": [1.5]}, GOOD), 2)
    np.testing.assert_array_equal(total, np.array([1.5, 1.0], np.float32))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("wrapped", [0, 1, 2])
@pytest.mark.parametrize("named", [True, False])
def test_one_number_may_be_wrapped_into_lists(
    make_manifest: MakeManifest, shape: tuple[int, ...], wrapped: int, named: bool
) -> None:
    codec = codec_of(make_manifest(outputs=(OutputSpec("total", shape=shape),), score_output=None))
    values: Any = np.array([0.5, -2.0, 7.0]).reshape(3, *[1] * wrapped).tolist()
    body = answer(*([{"total": value} for value in values] if named else values))
    (array,) = codec.decode(body, 3)
    assert array.tolist() == [0.5, -2.0, 7.0]


@pytest.mark.parametrize("odd", [[], [0.5, 0.5], [[[0.5]]], ["x"], [[]]])
def test_other_lists_are_not_one_number(make_manifest: MakeManifest, odd: Any) -> None:
    codec = codec_of(make_manifest(outputs=(OutputSpec("total"),)))
    assert "output 'total': expected float32, got" in refusal(codec, answer([0.5], odd), 2)


def test_null_and_nan_are_nan(codec: EndpointCodec) -> None:
    for body in (
        b'{"predictions": [{"total": null, "code": [1, null]}]}',
        b'{"predictions": [{"total": NaN, "code": [1, NaN]}]}',
    ):
        total, code = codec.decode(body, 1)
        np.testing.assert_array_equal(total, [math.nan])
        np.testing.assert_array_equal(code, [[1, math.nan]])


GOOD = {"total": 1.0, "code": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([], "expected 2 predictions, got 0"),
        ([GOOD], "expected 2 predictions, got 1"),
        ([GOOD] * 3, "expected 2 predictions, got 3"),
        ([GOOD, GOOD | {"total": "1.5"}], "output 'total': expected float32, got \"1.5\""),
        ([GOOD, GOOD | {"total": [1, 5]}], "output 'total': expected float32, got [1, 5]"),
        ([GOOD | {"code": [1]}, GOOD], "output 'code': expected float32 [2], got [1]"),
        ([GOOD | {"code": [[1, 2]]}, GOOD], "output 'code': expected float32 [2], got [[1, 2]]"),
        ([GOOD | {"code": None}, GOOD], "output 'code': expected float32 [2], got null"),
        ([GOOD | {"code": True}, GOOD], "output 'code': expected float32 [2], got true"),
        (
            [{"code": [1, 2]}] * 2,
            "expected each prediction to have 'total', 'code', got one with 'code'",
        ),
        ([GOOD, {}], "expected each prediction to have 'total', 'code', got one with nothing"),
        ([GOOD, 7], "expected each prediction to be an object with 'total', 'code', got 7"),
        ([1, 2], "expected each prediction to be an object with 'total', 'code', got 1"),
        ([None, None], "expected each prediction to be an object with 'total', 'code', got null"),
    ],
)
def test_predictions_that_do_not_fit_the_rows_are_reported_in_one_line(
    codec: EndpointCodec, predictions: list[Any], message: str
) -> None:
    assert refusal(codec, answer(*predictions), 2) == message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "expected JSON, got nothing"),
        (HTML_PAGE, "expected JSON, got an HTML page"),
        (b"upstream\nfailed", "expected JSON, got upstream failed"),
        (b'{"predictions": [', 'expected JSON, got {"predictions": ['),
        (b"\xff\xfe", "expected JSON, got "),
        (b'{"error": ""}', "expected predictions, got nothing"),
        (b"[1, 2]", "expected predictions, got [1,2]"),
        (b'{"error": "Prediction failed"}', "expected predictions, got Prediction failed"),
        (
            b'{"error": {"code": 429, "message": "Quota\\nexceeded"}}',
            "expected predictions, got Quota exceeded",
        ),
        (b'{"predictions": {"total": 1}}', "expected predictions, got "),
        (b'{"predictions": null}', "expected predictions, got "),
        (b'{"total": NaN}', 'expected predictions, got {"total": NaN}'),
        (b"[" * 100_000, "expected JSON, got [[["),
    ],
)
def test_an_invalid_answer_is_reported_in_one_line(
    codec: EndpointCodec, body: bytes, message: str
) -> None:
    assert refusal(codec, body, 1).startswith(message)


def test_messages_quote_only_the_start_of_a_value(codec: EndpointCodec) -> None:
    many = {"total": 1.0, "code": [0.123456] * 10_000}
    message = refusal(codec, answer(many), 1)
    assert message.count("0.123456") < 10
    odd = {f"key {i}": 1 for i in range(1_000)}
    assert len(refusal(codec, answer(odd), 1)) < 300
    # Python's json reads these values, but orjson cannot write them.
    assert "99999" in refusal(codec, b'{"predictions": [{"total": [%s, NaN]}]}' % (b"9" * 40), 1)
    refusal(codec, b'{"predictions": [{"total": "\\ud800"}]}', 1)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["predictions", "total", "code", "x"]), inner)
        ),
        max_leaves=10,
    )
)
def test_any_json_is_decoded_or_raises_bad_answer(make_manifest: MakeManifest, value: Any) -> None:
    codec = codec_of(make_manifest())
    body = json.dumps({"predictions": value}).encode()
    with suppress(BadAnswer):
        assert [array.shape for array in codec.decode(body, 1)] == [(1,), (1, 2)]


@given(st.binary(max_size=50))
def test_bytes_that_are_not_an_answer_raise_bad_answer(
    make_manifest: MakeManifest, body: bytes
) -> None:
    with pytest.raises(BadAnswer):
        codec_of(make_manifest()).decode(body, 1)


NUMBERS = st.none() | st.integers(-(2**70), 2**70) | st.floats() | st.booleans() | st.text()


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "score": NUMBERS,
                "anomaly_score": NUMBERS,
                "code": st.lists(NUMBERS, min_size=1, max_size=3),
                "other": NUMBERS,
            },
        )
        | st.fixed_dictionaries(
            {"score": st.floats(width=32), "code": st.lists(st.floats(), min_size=2, max_size=2)}
        ),
        min_size=1,
        max_size=3,
    )
)
def test_the_fast_reader_of_objects_agrees_with_the_general_one(
    make_manifest: MakeManifest, predictions: list[Any]
) -> None:
    def decoded(codec: EndpointCodec) -> str:
        try:
            arrays = codec.decode(answer(*predictions), len(predictions))
        except BadAnswer as error:
            return str(error)
        return repr([array.tolist() for array in arrays])

    for code in (OutputSpec("code", "int64", (2,)), OutputSpec("code", shape=(2,))):
        outputs = (OutputSpec("score"), code)
        codec = codec_of(make_manifest(outputs=outputs, score_output="score"))
        found = decoded(codec)
        with patch("model_handlers.endpoints.codec.member_reader", lambda *_: None):
            assert found == decoded(codec)


def test_ten_thousand_rows_keep_their_order(codec: EndpointCodec) -> None:
    rows = np.arange(10_000)
    predictions = [{"total": i, "code": [i, -i]} for i in rows.tolist()]
    total, code = codec.decode(orjson.dumps({"predictions": predictions}), len(rows))
    np.testing.assert_array_equal(total, rows)
    np.testing.assert_array_equal(code, np.stack([rows, -rows], axis=1))
