"""A manifest with a bad step is refused in one line that names the place."""

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from property_tests import examples
from raw_model import MANIFEST

from common.errors import DigestMismatch, ManifestError, ModelError
from model_handlers.manifests.manifest import Manifest
from model_handlers.manifests.model_json import parse_manifest, write_manifest
from model_handlers.packaged_steps import PackagedSteps
from model_handlers.preparation import Preparation
from model_handlers.steps.chain import Chain
from model_handlers.steps.step import Context

LISTED = b"shop\nweb\nphone\n"
VALUE: dict[str, Any] = MANIFEST | {
    "sha256": "0" * 64,
    "files": {"kinds.txt": hashlib.sha256(LISTED).hexdigest()},
}
ABC = ["a", "b", "c"]


def step(name: Any, **members: Any) -> dict[str, Any]:
    return {"step": name, **members}


def with_chain(start: str, *links: Any) -> dict[str, Any]:
    """Return the manifest with other steps after a column or output."""
    value = copy.deepcopy(VALUE)
    if start in ("logits", "probability", "label"):
        kind = "output" if start == "logits" else "field"
        value["fields"].append({"name": "f", "from": [{kind: start}, *links]})
        return value
    chains = {
        "amount": ("dense", 0),
        "at": ("dense", 2),
        "kind": ("kind", 0),
        "clicks": ("clicks", 0),
    }
    name, number = chains[start]
    spec = next(spec for spec in value["inputs"] if spec["name"] == name)
    spec["from"][number] = [{"column": start}, *links]
    return value


def message(value: Mapping[str, Any]) -> str:
    """Return the message with which a manifest is refused."""
    with pytest.raises(ManifestError) as caught:
        parse_manifest(json.dumps(value))
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert text.startswith("model.json: ")
    return text.removeprefix("model.json: ")


CAST = step("cast", to="float64")
BAD = [
    # Steps that are unknown, or have wrong members.
    (
        "amount",
        [step("scal", mean=0, std=1)],
        ".step: expected one of cast, fill, .* got 'scal' (did you mean 'scale'",
    ),
    ("amount", [step(5)], ".step: expected one of cast, fill, clip, .* got 5"),
    ("amount", [{"mean": 1}], ".step: expected one of cast, fill, clip, .* got None"),
    ("amount", ["scale"], ": expected a JSON object, got 'scale'"),
    (
        "amount",
        [step("scale", mean=0, sdt=1)],
        ": expected only the members mean, std, got 'sdt': unknown member (did you mean 'std'?)",
    ),
    ("amount", [step("scale", mean=0)], ".std: expected a value, got None"),
    ("amount", [step("scale", mean="x", std=1)], ".mean: expected a finite number, got 'x'"),
    (
        "amount",
        [step("scale", mean=0, std=0)],
        ": step scale: std: expected a number above 0, got 0",
    ),
    (
        "amount",
        [step("fill", value=[1])],
        ".value: expected a finite number or .* or true or false, got [1]",
    ),
    (
        "amount",
        [step("fill", value="x")],
        ": step fill: value: expected a number, as the column has, got 'x'",
    ),
    ("amount", [step("clip")], ": step clip: min: expected min, max or both, got nothing"),
    ("amount", [step("clip", min=3, max=1)], ": step clip: min: expected at most max, 1.0, got 3"),
    (
        "amount",
        [step("bucket", edges=[3, 1])],
        ": step bucket: edges: expected .* in ascending order, got [3, 1]",
    ),
    (
        "amount",
        [step("bucket", edges=[1, 1])],
        ": step bucket: edges: expected .* in ascending order, got [1, 1]",
    ),
    (
        "amount",
        [step("bucket", edges=[])],
        ": step bucket: edges: expected one or more numbers .*, got []",
    ),
    ("amount", [step("one_hot", size=0)], ": step one_hot: size: expected 1 to 65,536, got 0"),
    (
        "amount",
        [step("divide", other=0)],
        ": step divide: other: expected a number other than 0, got 0",
    ),
    (
        "amount",
        [step("divide", other="limitt")],
        ": expected one of amount, limit, .* got 'limitt' (did you mean 'limit'?)",
    ),
    (
        "amount",
        [step("divide", other="kind")],
        ": step divide: other: expected a number, .* got 'kind (text)'",
    ),
    ("amount", [step("cast", to="int")], ".to: expected one of float64, int64, .* got 'int'"),
    ("at", [CAST], ": step cast: to: expected a type that a timestamp can become, got 'float64':"),
    (
        "at",
        [step("time_part", part="hours", zone="UTC")],
        ".part: expected one of minute, hour, .* got 'hours'",
    ),
    (
        "at",
        [step("time_part", part="hour")],
        ": step time_part: zone: expected a time zone, such as UTC, got nothing",
    ),
    (
        "at",
        [step("time_part", part="hour", zone="Berlin")],
        ": step time_part: zone: expected the name of a time zone, .* got 'Berlin'",
    ),
    (
        "at",
        [step("time_part", part="hour", zone="UTC", cyclic="yes")],
        ".cyclic: expected true or false, got 'yes'",
    ),
    (
        "at",
        [step("time_part", part="year", zone="UTC", cyclic=True)],
        ": step time_part: cyclic: expected false, .* got true",
    ),
    (
        "at",
        [step("assume_zone", zone="UTC")],
        ": step assume_zone: expected a datetime, got a timestamp: its times have a zone",
    ),
    ("kind", [step("hash", buckets=0)], ": step hash: buckets: expected 1 to 2,147,483,648, got 0"),
    (
        "kind",
        [step("vocabulary")],
        ": step vocabulary: file: expected the name of a file, or values instead, got nothing",
    ),
    (
        "kind",
        [step("vocabulary", file="kinds.txt", values=["a"])],
        ": step vocabulary: values: expected file or values, not both",
    ),
    (
        "kind",
        [step("vocabulary", values=["a", "b", "a"])],
        ": step vocabulary: values: expected each value once, got 'a' as value 1 and as value 3",
    ),
    ("kind", [step("vocabulary", values=[1])], ".values[0]: expected a string, got 1"),
    (
        "kind",
        [step("vocabulary", file="kinds.txt", unknown=0, hash_unknown=2)],
        ": step vocabulary: hash_unknown: expected nothing, because unknown is set",
    ),
    (
        "kind",
        [step("vocabulary", file="kinds.txt", unknown=2**70)],
        ": step vocabulary: unknown: expected an integer of 64 bits",
    ),
    ("clicks", [step("pad", to=0)], ": step pad: to: expected 1 to 1,048,576, got 0"),
    (
        "clicks",
        [step("pad", to=4, keep="middle")],
        ".keep: expected one of first, last, got 'middle'",
    ),
    (
        "clicks",
        [step("pad", to=4, value=0.5)],
        ": step pad: value: expected a whole number, because the items are integers, got 0.5",
    ),
    ("logits", [step("element", at=3)], ": step element: at: expected 0 to 2, got 3"),
    ("logits", [step("top_k", values=ABC)], ": step top_k: k: expected 1 to 3, got 5"),
    (
        "logits",
        [step("top_k", k=2, values=["a", "b"])],
        ": step top_k: values: expected 3 names, got ['a', 'b']",
    ),
    (
        "probability",
        [step("cut", at=[0.6, 0.4], names=ABC)],
        ": step cut: at: expected .* in ascending order",
    ),
    (
        "probability",
        [step("cut", at=[0.6], names=ABC)],
        ": step cut: names: expected 2 names, one more than at, got ['a', 'b', 'c']",
    ),
    (
        "probability",
        [step("cut", at=[0.6], names=["a", "a"])],
        ": step cut: names: expected each value once, got 'a'",
    ),
    # Steps out of order.
    (
        "kind",
        [step("scale", mean=0, std=1)],
        ": step scale: expected a number, got text: vocabulary and hash turn text into numbers",
    ),
    (
        "amount",
        [step("lower")],
        ": step lower: expected text, got a number: cast turns numbers and times into text",
    ),
    ("amount", [step("pad", to=4)], ": step pad: expected a list, got a number"),
    ("probability", [step("argmax")], ": step argmax: expected a vector of numbers, got a number"),
    (
        "label",
        [step("names", values=["a"])],
        ": step names: expected a number, got text: vocabulary",
    ),
]
LAST = [
    (
        "kind",
        [step("lower")],
        "inputs.kind.from[0]: expected a chain that ends in numbers, got text: vocabulary and",
    ),
    ("at", [], "inputs.dense.from[2]: expected a chain that ends in numbers, got a timestamp:"),
    (
        "clicks",
        [],
        "inputs.clicks.from[0]: expected a chain that ends in numbers, got a list of numbers:",
    ),
    (
        "amount",
        [step("one_hot", size=3)],
        "inputs.dense.from: expected chains that give 4 numbers, for shape [4], got 6",
    ),
    (
        "kind",
        [step("vocabulary", file="kind.txt")],
        "files: expected the file kind.txt, which a step reads, got ['kinds.txt']",
    ),
]


def expect(text: str, wanted: str) -> None:
    """Check that a text has some parts in this order."""
    place = 0
    for part in wanted.split(".*"):
        assert part.strip() in text[place:], text
        place = text.index(part.strip(), place)


@pytest.mark.parametrize(("start", "links", "wanted"), BAD)
def test_a_bad_step_is_refused_at_its_place(start: str, links: list[Any], wanted: str) -> None:
    text = message(with_chain(start, *links))
    where = {"amount": "inputs.dense.from[0]", "at": "inputs.dense.from[2]"}
    where |= {"kind": "inputs.kind.from[0]", "clicks": "inputs.clicks.from[0]"}
    expect(text, f"{where.get(start, 'fields.f.from')}[1]{wanted}")
    assert text.startswith(f"{where.get(start, 'fields.f.from')}[1]")


@pytest.mark.parametrize(("start", "links", "wanted"), LAST)
def test_a_chain_that_does_not_fit_its_input_is_refused(
    start: str, links: list[Any], wanted: str
) -> None:
    assert message(with_chain(start, *links)).startswith(wanted)


def fields(*links: Any, of: str = "") -> list[dict[str, Any]]:
    """Return a field with steps after the output, or after another field."""
    start = {"field": of} if of else {"output": "logits"}
    return [{"name": f"f{of}", "from": [start, *links]}]


OTHER = [
    (
        {"schema_version": 1},
        "schema_version: expected 2, because of columns, files, fields, from or "
        "column_statistics, got 1",
    ),
    (
        {"schema_version": 3},
        "schema_version: expected 1 or 2, got 3: a newer Millrace made this package; upgrade",
    ),
    (
        {"columns": MANIFEST["columns"] | {"at": "time"}},
        "columns.at: expected one of float64, .*, got 'time'",
    ),
    (
        {"columns": MANIFEST["columns"] | {"more": "string"}},
        "columns: expected only columns that an input reads, got 'more'",
    ),
    ({"columns": {}}, "inputs.dense.from[0][0]: expected one of"),
    ({"files": {}}, "files: expected the file kinds.txt, which a step reads, got []"),
    (
        {"files": {"kinds.txt": "abc"}},
        "files.kinds.txt: expected 64 lowercase hex digits, got 'abc'",
    ),
    (
        {"files": {"../k": "0" * 64}},
        "files: expected names of files in the manifest's folder, .*, got '../k'",
    ),
    (
        {"files": {"model.json": "0" * 64}},
        "files: expected names that differ by more than case from model.json, got 'model.json'",
    ),
    (
        {"fields": [{"name": "logits", "from": [{"output": "logits"}]}]},
        "fields.logits: expected a name that no output or other field has",
    ),
    (
        {"fields": [{"name": "f", "from": [{"field": "later"}]}]},
        "fields.f.from[0]: expected one of logits, got 'later'",
    ),
    (
        {"fields": [{"name": "f", "from": []}]},
        'fields.f.from[0]: expected {"column": "..."} .*, got []',
    ),
    (
        {"fields": [{"name": "bad\nname", "from": [{"output": "logits"}]}]},
        "fields: expected a name without line breaks and control characters, got 'bad\\nname'",
    ),
    ({"version": "1\u2028"}, "version: expected a name without line breaks"),
    ({"name": ""}, "name: expected a name without line breaks and control characters, got ''"),
    (
        {"columns": MANIFEST["columns"] | {"a\x1b[31m": "string"}},
        "columns: expected a name without .* got 'a\\x1b[31m'",
    ),
    (
        {"fields": fields(step("argmax"), step("names", values=["a", "b"]))},
        "fields.f.from[2].values: expected 3 names, one for each position, got ['a', 'b']",
    ),
    (
        {"fields": [*fields(step("argmax")), *fields(step("names", values=[*"abcd"]), of="f")]},
        "fields.ff.from[1].values: expected 3 names, one for each position, got ['a', ",
    ),
    (
        {"fields": fields(step("argmax"), step("names", values=["a", "b", "c\x1b"]))},
        "fields.f.from[2]: step names: values: expected names without .* characters, got 'c\\x1b'",
    ),
    (
        {"fields": fields(step("max"), step("cut", at=[1], names=["a", "b\nERROR"]))},
        "fields.f.from[2]: step cut: names: expected names without .* got 'b\\nERROR'",
    ),
    (
        {"fields": [{"name": "f", "from": [{"column": "at"}]}]},
        "fields.f.from[0]: expected .*, got [{'column': 'at'}]",
    ),
]


@pytest.mark.parametrize(("changes", "wanted"), OTHER)
def test_other_members_of_version_2_are_refused_at_their_place(
    changes: dict[str, Any], wanted: str
) -> None:
    expect(message(VALUE | changes), wanted)


def test_a_file_has_as_many_names_as_there_are_positions() -> None:
    named = fields(step("argmax"), step("names", file="names.txt"))
    files = VALUE["files"] | {"names.txt": "0" * 64}
    manifest = parse_manifest(
        json.dumps(
            VALUE | {"fields": named, "files": files, "score_output": None, "output_fields": []}
        )
    )
    content = {"kinds.txt": LISTED, "names.txt": b"a\nb\nc\n"}
    assert Preparation(manifest, Context(content))
    for names, wanted in (
        (
            b"a\nb\n",
            r"fields\.f\.from\[2\]\.file names\.txt: expected 3 names, .* got \['a', 'b'\]",
        ),
        (b"a\nb\nc\x07\n", r"step names: file names\.txt: expected names without line breaks"),
    ):
        with pytest.raises(ManifestError, match=wanted):
            Preparation(manifest, Context(content | {"names.txt": names}))


def test_fields_that_need_two_others_each_are_found_in_linear_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = fields(step("element", at=0))
    sums = [
        {
            "name": f"s{i}",
            "from": [
                {"field": f"s{i - 1}" if i else "f"},
                step("add", other=f"s{i - 2}" if i > 1 else "f"),
            ],
        }
        for i in range(18)
    ]
    value = VALUE | {"fields": first + sums, "score_output": None, "output_fields": []}
    manifest = parse_manifest(json.dumps(value))
    read: list[str] = []
    names = Chain.names.func  # type: ignore[attr-defined]

    def counted(chain: Chain) -> Any:
        read.append(chain.start)
        return names(chain)

    monkeypatch.setattr(Chain, "names", property(counted))
    assert manifest.outputs_for(["s17"]) == ("logits",)
    assert manifest.fields_for(["s17"]) == {"f", *(f"s{i}" for i in range(18))}
    assert len(read) == 2 * 19


def packaged(folder: Path, content: bytes | None) -> PackagedSteps:
    """Write a package with a vocabulary; None if the file is missing."""
    manifest = parse_manifest(json.dumps(VALUE))
    (folder / "model.json").write_text(write_manifest(manifest))
    if content is not None:
        (folder / "kinds.txt").write_bytes(content)
    return PackagedSteps(manifest, str(folder))


def test_a_file_that_is_missing_or_changed_is_named_in_one_line(tmp_path: Path) -> None:
    assert packaged(tmp_path, LISTED).load()
    with pytest.raises(
        DigestMismatch, match=r"file kinds\.txt .* was changed or damaged"
    ) as caught:
        packaged(tmp_path, LISTED + b"fax\n").load()
    assert len(str(caught.value).splitlines()) == 1
    (tmp_path / "kinds.txt").unlink()
    with pytest.raises(ModelError, match=r"kinds\.txt") as missing:
        packaged(tmp_path, None).load()
    assert len(str(missing.value).splitlines()) == 1


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner: Any = []
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    return [path] + [p for key, item in inner for p in places(item, (*path, key))]


def read(text: str) -> Manifest | str:
    """Return the manifest, or the message of a ManifestError."""
    try:
        return parse_manifest(text)
    except ManifestError as error:
        return str(error)


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "amount", "kind", "at", "a\nb", "scale", "UTC", "int64", "x:y"])
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=3,
)


@settings(deadline=None, max_examples=examples(400))
@given(st.sampled_from([path for path in places(VALUE) if path]), ANY)
def test_a_mutated_manifest_is_read_again_or_refused_in_one_line(
    path: tuple[str | int, ...], other: Any
) -> None:
    value = copy.deepcopy(VALUE)
    parent: Any = value
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = other
    made = read(json.dumps(value))
    if isinstance(made, Manifest):
        assert parse_manifest(write_manifest(made)) == made
    else:
        assert len(made.splitlines()) == 1
