"""JSON files that do not have one row per line, and constants that are not JSON."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from model_handlers.manifests.manifest import FeatureStatistics, InputSpec, Manifest
from transforms.dead_letters import Fault
from transforms.files import json_documents
from transforms.files.columns import Columns, id_prefix
from transforms.files.json_documents import is_document, rows_of_document
from transforms.files.ranges import match_files, plan_file, split_file
from transforms.files.read_range import read_range
from transforms.json_rows.values import read_json_values
from transforms.validate import validate

Make = Callable[..., Manifest]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(width=32)
    | st.text(max_size=5)
    | st.sampled_from(["}\n{", "NaN", '"', "\\", "Infinity"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text(max_size=3), VALUES, max_size=4)


def rows_of(path: Path, columns: Columns) -> tuple[list[Any], list[tuple[str, bytes, str]]]:
    """Return the rows of a file, and the id, payload and reason of the others."""
    rows: list[Any] = []
    failed: list[tuple[str, bytes, str]] = []
    spans = []
    (file,) = match_files([str(path)])
    for part in split_file(plan_file(file, None)):
        for decoded in read_range(part, columns, 2):
            rows += [] if decoded.batch is None else decoded.batch.to_pylist()
            reasons = [fault.reason for fault in decoded.faults]
            failed += zip(decoded.failed_ids, decoded.failed_payloads, reasons, strict=True)
            spans += [] if decoded.span is None else [decoded.span]
    assert spans[0][0] == 0
    assert spans[-1][1] == path.stat().st_size
    return rows, failed


@given(st.lists(OBJECTS | VALUES, max_size=5), st.sampled_from([None, 0, 1, 4]), st.booleans())
def test_an_array_is_split_into_its_elements(
    rows: list[Any], indent: int | None, mark: bool
) -> None:
    text = (b"\xef\xbb\xbf" if mark else b"") + json.dumps(rows, indent=indent).encode()
    found = rows_of_document(text, "a.json")
    assert all(text[start:].startswith(row) for start, row in found)
    assert repr([json.loads(row) for _, row in found]) == repr(rows)
    if all(isinstance(row, dict) for row in rows):
        assert is_document(text)


@pytest.mark.parametrize("odd", [b"\x0b", b"\x0c", b"\x00", b"\xa0", b"\x0b\x0c"])
def test_bytes_that_are_no_white_space_of_json_stay_in_their_row(odd: bytes) -> None:
    first, second = b'{\n "a": 1\n}', b'{\n "a": 2\n}'
    assert rows_of_document(first + odd, "p") == [(0, first + odd)]
    assert rows_of_document(odd + first, "p") == [(0, odd + first)]
    whole = first + b"\n" + odd + second
    assert rows_of_document(whole, "p") == [(0, whole)]
    spaced = first + b"\r\n \t" + second + b" \n"
    assert rows_of_document(spaced, "p") == [(0, first), (len(first) + 4, second)]


def test_elements_that_are_arrays_keep_their_texts() -> None:
    assert rows_of_document(b"[[1], [ [2,[]] ],[]\n]", "a.json") == [
        (1, b"[1]"),
        (6, b"[ [2,[]] ]"),
        (17, b"[]"),
    ]


@given(st.lists(OBJECTS.filter(bool), min_size=1, max_size=5), st.sampled_from([0, 1, 4]))
def test_pretty_printed_objects_are_found(rows: list[Any], indent: int) -> None:
    text = "\n".join(json.dumps(row, indent=indent) for row in rows).encode() + b"\n"
    assert is_document(text)
    found = rows_of_document(text, "a.json")
    assert all(text[start:].startswith(row) for start, row in found)
    assert repr([json.loads(row) for _, row in found]) == repr(rows)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b'{"a":1}',
        b'{"a":1}\n{"a":2}\n',
        b'{"a":1,\n{"a":2}\n',
        b"[1,2]\n[3,4]\n",
        b'"a"\n',
        b'{"a":[1,2,' + b"1," * 50_000,
    ],
)
def test_files_of_lines_are_no_documents(text: bytes) -> None:
    assert not is_document(text)


@pytest.mark.parametrize("name", ["rows.json", "rows.json.gz"])
def test_rows_of_a_document_are_read_like_lines(
    make_manifest: Make, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    rows = [{"id": "x", "a": 1, "b": 2, "c": 3}, {"a": 1, "b": float("nan"), "c": 3}, {"a": 1}, 5]
    pack = gzip.compress if name.endswith(".gz") else bytes
    columns = Columns(make_manifest(), "id")
    for indent in (None, 2):
        text = json.dumps(rows, indent=indent).encode()
        path.write_bytes(pack(text))
        good, failed = rows_of(path, columns)
        at = text.index(b'{"a"' if indent is None else b'{\n    "a"')
        assert [row["row_id"] for row in good] == ["x", f"{id_prefix(str(path))}-{at}"]
        assert [reason for *_, reason in failed] == ["missing_feature", "not_an_object"]
    path.write_bytes(
        pack(b'{\n "id": "x",\n "a": 1, "b": 2, "c": 3\n}\n{\n "a": 1\n}\n{\n "a": oh\n}')
    )
    good, failed = rows_of(path, columns)
    assert [row["row_id"] for row in good] == ["x"]
    assert [reason for *_, reason in failed] == ["missing_feature", "invalid_json"]
    path.write_bytes(pack(b"[]"))
    assert rows_of(path, columns) == ([], [])


@given(st.lists(VALUES, max_size=5), st.sampled_from([None, 1]))
def test_elements_of_any_type_keep_their_places(rows: list[Any], indent: int | None) -> None:
    text = json.dumps(rows, indent=indent).encode()
    found = [json.loads(row) for _, row in rows_of_document(text, "f")]
    assert list(map(repr, found)) == list(map(repr, rows))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'[{"a":1},', "one JSON array, and not valid: Input data was truncated"),
        (b'[{"a":1},{"a":yes}]', r"one JSON array, and not valid: .*byte"),
        (b'[{"a":1},\n{"a":2}]\n[3]', r"one JSON array, and not valid: .*trailing"),
        (b"[" * 5_000 + b"]" * 5_000, "one JSON array, and not valid: nested too deeply"),
        (b'{"a":1}\r{"a":2}\r', "lines end in CR alone"),
        ('{"a":1}'.encode("utf-16"), "encoded in UTF-16"),
    ],
)
def test_a_file_that_cannot_be_split_is_an_error(
    make_manifest: Make, tmp_path: Path, text: bytes, words: str
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text + (b"\n" if text.startswith(b'[{"a":1}]') else b""))
    with pytest.raises(InputError, match=words) as caught:
        rows_of(path, Columns(make_manifest()))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_document_that_is_too_large_is_an_error(
    make_manifest: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_documents, "LARGEST_DOCUMENT", 20)
    path = tmp_path / "a.json"
    path.write_bytes(b"[" + b'{"a":1},' * 9 + b"1]")
    with pytest.raises(InputError, match=r"one JSON document of more than .*one row per line"):
        rows_of(path, Columns(make_manifest()))


@given(VALUES, st.sampled_from([None, 1]))
def test_constants_are_read_as_python_reads_them(value: Any, indent: int | None) -> None:
    text = json.dumps({"value": value}, indent=indent).encode()
    (read,) = read_json_values([text])
    assert repr(read) == repr(json.loads(text))


@pytest.mark.parametrize(
    "text",
    [
        *(b"[NaN", b"{NaN:1}", b"1NaN", b"NaN1", b"-NaN", b"1.NaN", b"1eNaN", b"nan", b"+Infinity"),
        *(b"--Infinity", b"-1Infinity", b"Infinity5", b'{"a":NaN "b"}', b'"NaN', b"tNaN"),
    ],
)
def test_other_texts_with_constants_are_not_json(text: bytes) -> None:
    (fault,) = read_json_values([text])
    assert isinstance(fault, Fault)
    assert fault.reason == "invalid_json"


def test_deep_nesting_around_a_constant_is_a_fault() -> None:
    (fault,) = read_json_values([b"[" * 1000 + b"NaN" + b"]" * 1000])
    assert isinstance(fault, Fault)
    assert fault.message == "nested too deeply"
    (fault,) = read_json_values([b'{"a":NaN,"a":1}'])
    assert isinstance(fault, Fault)
    assert fault.reason == "duplicate_key"


def test_a_constant_in_a_feature_makes_its_row_not_finite(
    make_manifest: Make, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a":1,"b":NaN,"c":3}\n{"a":-Infinity,"b":1,"c":3}\n{"a":1,"b":2,"c":3}\n')
    manifest = make_manifest()
    mean = {"b": FeatureStatistics(count=1, mean=0.5, std=1.0, min=0.0, max=1.0)}
    spec = InputSpec("x", ("a", "b", "c"), shape=(3,), impute={"b": "mean"})
    for kind, reasons in (
        (manifest, ["not_finite", "not_finite"]),
        (make_manifest(spec, statistics=mean), ["not_finite"]),
    ):
        (file,) = match_files([str(path)])
        (part,) = split_file(plan_file(file, None))
        batches = [d.batch for d in read_range(part, Columns(kind), 9) if d.batch is not None]
        _, _, faults = validate(batches[0], kind)
        assert [fault.reason for fault in faults] == reasons
