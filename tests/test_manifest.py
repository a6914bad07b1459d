"""Tests that manifests survive a round trip, and that other text is refused with one line."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from property_tests import examples

from common.errors import ManifestError, UsageError
from model_handlers.manifests.manifest import (
    FeatureStatistics,
    GoldenRows,
    InputSpec,
    Manifest,
    OutputSpec,
    arrow_type,
)
from model_handlers.manifests.model_json import parse_manifest, write_manifest

DTYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


def manifest(**changes: Any) -> Manifest:
    """Return a manifest in which every field is used."""
    values: dict[str, Any] = {
        "name": "fraud",
        "version": "3",
        "format": "pt2",
        "file": "model.pt2",
        "sha256": "0123456789abcdef" * 4,
        "inputs": (
            InputSpec("amounts", ("Time", "Amount"), shape=(2,), impute={"Amount": "mean"}),
            InputSpec("merchant", ("merchant",), dtype="int64"),
            InputSpec("history", ("history",), shape=(3, 2)),
        ),
        "outputs": (OutputSpec("score"), OutputSpec("code", "float64", (2, 2))),
        "score_output": "score",
        "output_fields": ("code", "score"),
        "golden": GoldenRows(
            inputs={
                "amounts": [[0.5, 1], [2, 3]],
                "merchant": [7, 8],
                "history": [[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]],
            },
            outputs={"score": [0.25, -1.5], "code": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]},
        ),
        "statistics": {
            "Amount": FeatureStatistics(
                count=9, mean=88.4, std=254.0, min=0.0, max=1e4, quantiles={"0.5": 22.0}
            )
        },
        "architecture": "examples.transactions.model:TransactionAutoencoder",
        "architecture_args": {"width": 3, "names": ["a", None]},
    }
    return Manifest(**values | changes)


names = st.text(min_size=1, max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)


@st.composite
def statistics(draw: st.DrawFn) -> FeatureStatistics:
    return FeatureStatistics(
        count=draw(st.integers()),
        mean=draw(numbers),
        std=draw(numbers),
        min=draw(numbers),
        max=draw(numbers),
        quantiles=draw(st.dictionaries(names, numbers)),
    )


@st.composite
def input_specs(draw: st.DrawFn, name: str) -> InputSpec:
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    size = 1 if draw(st.booleans()) else math.prod(shape)
    columns = draw(st.lists(names, min_size=size, max_size=size, unique=True))
    return InputSpec(name, tuple(columns), dtype=dtype, shape=shape)  # type: ignore[arg-type]


@st.composite
def golden_rows(
    draw: st.DrawFn, inputs: tuple[InputSpec, ...], outputs: tuple[OutputSpec, ...]
) -> GoldenRows:
    rows = draw(st.integers(1, 3))

    def values(shape: tuple[int, ...]) -> list[Any]:
        count = rows * math.prod(shape)
        flat = draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
        result: list[Any] = np.reshape(flat, (rows, *shape)).tolist()
        return result

    return GoldenRows(
        {spec.name: values((spec.width,) if spec.shape else ()) for spec in inputs},
        {spec.name: values(spec.shape) for spec in outputs},
        draw(st.floats(0, 1)),
        draw(st.floats(0, 1)),
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    input_names = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    output_names = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    inputs = tuple(draw(input_specs(name)) for name in input_names)
    outputs = tuple(
        OutputSpec(
            name,
            draw(st.sampled_from(DTYPES)),  # type: ignore[arg-type]
            tuple(draw(st.lists(st.integers(1, 3), max_size=2))),
        )
        for name in output_names
    )
    known = draw(st.dictionaries(names, statistics(), max_size=3))
    columns = [column for spec in inputs if not spec.is_list_column for column in spec.columns]
    for column in columns[: draw(st.integers(0, 2))]:
        known[column] = draw(statistics())
    inputs = tuple(
        replace(spec, impute={c: "mean" for c in spec.columns if c in known})
        if not spec.is_list_column
        else spec
        for spec in inputs
    )
    return Manifest(
        name=draw(names),
        version=draw(names),
        format=draw(st.sampled_from(["torchscript", "pt2", "state_dict", "safetensors"])),
        file=draw(st.from_regex(r"[\w-]+\.pt2?", fullmatch=True)),
        sha256=draw(st.text("0123456789abcdef", min_size=64, max_size=64)),
        inputs=inputs,
        outputs=outputs,
        score_output=draw(st.sampled_from([None, *(s.name for s in outputs if s.shape == ())])),
        output_fields=tuple(draw(st.lists(st.sampled_from(output_names), unique=True))),
        golden=draw(st.none() | golden_rows(inputs, outputs)),
        statistics=known,
        architecture=draw(st.none() | names),
        architecture_args=draw(st.dictionaries(st.text(), json_values, max_size=3)),
    )


def edited(path: tuple[str | int, ...], value: Any) -> str:
    """Return the JSON of a valid manifest with one value set, or removed if it is `...`."""
    whole = json.loads(write_manifest(manifest()))
    place = whole
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(whole)


@settings(deadline=None)
@given(manifests())
def test_a_manifest_survives_a_round_trip(made: Manifest) -> None:
    assert parse_manifest(write_manifest(made)) == made
    assert parse_manifest(write_manifest(made).encode()) == made


def test_a_member_that_is_left_out_has_its_default() -> None:
    whole = json.loads(write_manifest(manifest()))
    required = {"name", "version", "format", "file", "sha256"}
    small = {key: whole[key] for key in required}
    small |= {"inputs": [{"name": "x", "columns": ["a"]}], "outputs": [{"name": "y"}]}
    made = parse_manifest(json.dumps(small))
    assert made.inputs == (InputSpec("x", ("a",), dtype="float32", shape=()),)
    assert made.outputs == (OutputSpec("y", "float32", ()),)
    assert [made.score_output, made.golden, made.architecture] == [None, None, None]


MALFORMED = [
    (("name",), ..., "name: expected a value, got None"),
    (("name",), 3, "name: expected a string, got 3"),
    (("format",), "onnx", "format: expected one of torchscript, pt2, state_dict, safetensors"),
    (("format",), ["pt2"], "format: expected one of .*, got \\['pt2'\\]"),
    (("file",), "../model.pt", "file: expected the name of a file .*, got '../model.pt'"),
    (("file",), "a\\b.pt", "file: expected the name of a file"),
    (("file",), "..", "file: expected the name of a file"),
    (("file",), "", "file: expected the name of a file"),
    (("sha256",), "ABC", "sha256: expected 64 lowercase hex digits, got 'ABC'"),
    (("sha256",), "A" * 64, "sha256: expected 64 lowercase hex digits"),
    (("schema_version",), 3, "schema_version: expected 1 or 2, got 3: a newer Millrace"),
    (("schema_version",), True, "schema_version: expected an integer, got True"),
    (
        ("inptus",),
        [],
        "top level: expected only the members name, .* got 'inptus': unknown member \\(did you",
    ),
    (("inputs",), {}, "inputs: expected a list, got {}"),
    (("inputs",), [], "inputs: expected one or more"),
    (("outputs",), None, "outputs: expected a list, got None"),
    (("outputs",), [], "outputs: expected one or more"),
    (("inputs", 0), 5, r"inputs\[0\]: expected a JSON object, got 5"),
    (("inputs", 0, "columns"), ..., "inputs.amounts.columns: expected one or more columns"),
    (("inputs", 0, "columns"), "Time", r"inputs.amounts.columns: expected a list, got 'Time'"),
    (
        ("inputs", 0, "columns"),
        ["Time", 5],
        r"inputs.amounts.columns\[1\]: expected a string, got 5",
    ),
    (("inputs", 0, "columns"), [], "inputs.amounts.columns: expected one or more columns"),
    (
        ("inputs", 0, "columns"),
        ["Time", "Time"],
        "inputs.amounts.columns: expected .* none of them twice",
    ),
    (("inputs", 0, "columns"), ["a", "b", "c"], "columns: expected 2 columns, for shape .*, got 3"),
    (
        ("inputs", 0, "name"),
        "merchant",
        "inputs: expected one or more tensors with different names",
    ),
    (("inputs", 0, "dtype"), "float8", r"inputs.amounts.dtype: expected one of float32, "),
    (("inputs", 0, "shape"), [2.0], r"inputs.amounts.shape\[0\]: expected an integer, got 2.0"),
    (("inputs", 0, "shape"), [True], r"inputs.amounts.shape\[0\]: expected an integer, got True"),
    (("inputs", 0, "shape"), [0], "inputs.amounts.shape: expected positive sizes"),
    (("inputs", 0, "shape"), [-2], "inputs.amounts.shape: expected positive sizes"),
    (("outputs", 1, "shape"), [2**16, 2**16], "outputs.code.shape: expected positive sizes"),
    (("inputs", 0, "impute"), ["Amount"], r"inputs.amounts.impute: expected a JSON object"),
    (("inputs", 0, "impute"), {"Class": "mean"}, "impute: expected a column of this input"),
    (("inputs", 0, "impute"), {"Amount": "median"}, "impute.Amount: expected 'mean', got 'median'"),
    (
        ("inputs", 0, "impute"),
        {"Time": "mean"},
        "impute.Time: statistics has no mean of the column",
    ),
    (
        ("inputs", 2, "impute"),
        {"history": "mean"},
        "impute: expected a column of this input with one number per row, got 'history'",
    ),
    (
        ("score_output",),
        "scroe",
        r"score_output: expected one of .*, got 'scroe' \(did you mean 's",
    ),
    (("score_output",), "code", "score_output: expected an output with one number per row"),
    (("output_fields",), ["codes"], "output_fields: expected one of the outputs score, code"),
    (("golden",), [], "golden: expected a JSON object"),
    (("golden", "rtol"), -1, "golden: expected rtol and atol of at least 0"),
    (("golden", "rtol"), "1e-4", "golden.rtol: expected a finite number, got '1e-4'"),
    (("golden", "inputs", "history"), ..., "golden: expected rows for every input"),
    (("golden", "inputs", "other"), [1, 2], "golden: expected rows for every input"),
    (
        ("golden", "outputs"),
        {},
        "golden: expected rows for every input and for one or more outputs",
    ),
    (("golden", "outputs", "else"), [1, 2], "golden: expected rows for every input"),
    (("golden", "inputs", "merchant"), [1], r"golden.inputs.merchant: .* int64 in the shape \[2\]"),
    (("golden", "inputs", "merchant"), ["1", "2"], "golden.inputs.merchant: expected one or more"),
    (("golden", "inputs", "merchant"), [1, 10**30], "golden.inputs.merchant: expected one or more"),
    (
        ("golden", "inputs", "amounts"),
        [],
        r"golden.inputs.amounts: .* float32 in the shape \[0, 2\]",
    ),
    (("golden", "inputs", "amounts"), [[1], [2, 3]], "golden.inputs.amounts: expected one or more"),
    (
        ("golden", "outputs", "code"),
        [1, 2],
        r"golden.outputs.code: .*float64 in the shape \[2, 2, 2\]",
    ),
    (("statistics",), [1], "statistics: expected a JSON object"),
    (("statistics", "Amount"), 5, "statistics.Amount: expected a JSON object"),
    (("statistics", "Amount", "mean"), None, "statistics.Amount.mean: expected a finite number"),
    (("statistics", "Amount", "mean"), 10**400, "statistics.Amount.mean: expected a finite number"),
    (("statistics", "Amount", "count"), 1.5, "statistics.Amount.count: expected an integer"),
    (("statistics", "Amount", "quantiles"), [1], "Amount.quantiles: expected a JSON object"),
    (
        ("statistics", "Amount", "quantiles"),
        {"0.5": "x"},
        "quantiles.0.5: expected a finite number",
    ),
    (("architecture",), 5, "architecture: expected a string, got 5"),
    (("architecture_args",), [1], "architecture_args: expected a JSON object"),
]


@pytest.mark.parametrize(("path", "value", "message"), MALFORMED)
def test_a_malformed_manifest_is_refused_with_a_line_that_names_the_place(
    path: tuple[str | int, ...], value: Any, message: str
) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        parse_manifest(edited(path, value))
    assert str(caught.value).startswith("model.json: ")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        ('{"name": "x"', "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", r"top level: expected a JSON object, got \[\]"),
        ("null", "top level: expected a JSON object, got None"),
        ('{"name": NaN}', "is not valid JSON"),
        ('{"name": 1e999}', "is not valid JSON"),
        ('{"name": "\\ud800"}', "is not valid JSON"),
        ("9" * 5000, "is not valid JSON"),
    ],
)
def test_text_that_is_not_a_json_object_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        parse_manifest(text)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("rows", [[[1234.5]], [[1234.5, 7], [3]], {"0": [1234.5]}, 1234.5])
def test_no_message_contains_a_value_of_a_known_good_row(rows: Any) -> None:
    for path in ("golden",), ("golden", "inputs"), ("golden", "inputs", "amounts"):
        with pytest.raises(ManifestError) as caught:
            parse_manifest(edited(path, rows))
        assert "1234" not in str(caught.value)


def test_names_with_line_breaks_and_long_values_stay_in_a_short_line() -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(edited(("statistics", "a\nb\u2028c"), ["long"] * 1000))
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner: Any = []
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    return [path] + [p for key, item in inner for p in places(item, (*path, key))]


PLACES = [path for path in places(json.loads(write_manifest(manifest()))) if path]


def read(text: str) -> Manifest | str:
    """Return the manifest, or the message of a ManifestError."""
    try:
        return parse_manifest(text)
    except ManifestError as error:
        return str(error)


@settings(deadline=None, max_examples=examples(300))
@given(st.sampled_from(PLACES), json_values | st.just(...))
def test_a_mutated_manifest_is_read_or_raises_a_manifest_error(
    path: tuple[str | int, ...], value: Any
) -> None:
    made = read(edited(path, value))
    if isinstance(made, Manifest):
        assert parse_manifest(write_manifest(made)) == made
        assert pa.schema([(spec.name, spec.arrow_type) for spec in made.outputs])
    else:
        assert len(made.splitlines()) == 1


@settings(deadline=None)
@given(json_values | st.text() | st.binary())
def test_any_other_text_raises_a_manifest_error(value: Any) -> None:
    text = value if isinstance(value, bytes) else json.dumps(value)
    with pytest.raises(ManifestError):
        parse_manifest(text)


def test_input_types_are_flat_and_output_types_are_nested() -> None:
    made = manifest()
    assert made.inputs[0].arrow_type == pa.list_(pa.float32(), 2)
    assert made.inputs[1].arrow_type == pa.int64()
    assert made.inputs[2].arrow_type == pa.list_(pa.float32(), 6)
    assert made.outputs[1].arrow_type == pa.list_(pa.list_(pa.float64(), 2), 2)
    assert [arrow_type(dtype, ()) for dtype in DTYPES] == [
        *(pa.float32(), pa.float64(), pa.float16(), pa.int64()),
        *(pa.int32(), pa.int16(), pa.int8(), pa.uint8(), pa.bool_()),
    ]


def test_a_single_column_is_a_list_only_if_a_row_has_several_elements() -> None:
    assert InputSpec("x", ("history",), shape=(6,)).is_list_column
    assert not InputSpec("x", ("Amount",), shape=(1,)).is_list_column
    assert not InputSpec("x", ("Amount",), shape=()).is_list_column
    assert not InputSpec("x", ("a", "b"), shape=(2,)).is_list_column


def test_features_are_all_columns_in_order() -> None:
    assert manifest().features == ("Time", "Amount", "merchant", "history")


def test_another_output_can_be_chosen_as_the_score() -> None:
    outputs = (OutputSpec("score"), OutputSpec("other"), OutputSpec("code", shape=(2,)))
    made = manifest(outputs=outputs, golden=None)
    assert made.choose("other").score_output == "other"
    assert made.choose(None).score_output == "score"
    assert replace(made, score_output=None).choose(None).score_output is None
    with pytest.raises(UsageError, match=r"'code' has shape \[2\] per row"):
        made.choose("code")
    with pytest.raises(UsageError, match=r"no output 'scor' \(did you mean 'score.*outputs are"):
        made.choose("scor")
