"""All readers of JSON rows agree: for files and messages, the fast readers and the slow ones."""

import datetime
import json
from collections.abc import Callable, Sequence
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.errors import ManifestError, UsageError
from common.record_batch import to_rows
from model_handlers.endpoints.codec import EndpointCodec
from model_handlers.manifests.manifest import FeatureStatistics, InputSpec, Manifest
from model_handlers.manifests.model_json import parse_manifest, write_manifest
from serving.instances import BadInstances, InstanceReader, unique_instances
from transforms.dead_letters import Fault
from transforms.files.columns import Columns
from transforms.files.ranges import FileRange
from transforms.files.read_range import read_range
from transforms.json_rows.decode import decode_json
from transforms.json_rows.row_format import RowFormat
from transforms.json_rows.values import read_json_values
from transforms.messages.avro import parse_schema
from transforms.messages.decode import MessageFormat, decode_messages
from transforms.messages.message import Message
from transforms.provenance import Provenance
from transforms.row_schemas import CARRIED
from transforms.validate import validate

Make = Callable[..., Manifest]
NOW = datetime.datetime(2026, 11, 20, 12, tzinfo=datetime.UTC)
# With this attribute each message is read separately, by the slow reader.
SLOWLY = {"content-encoding": "identity"}

NUMBERS = [
    *("1", "1.0", "-0", "-0.0", "2.5", "1e3", "1E-400", "9007199254740993", "null"),
    *("9223372036854775807", "9223372036854775808", "18446744073709551616", "1e400", "NaN"),
]
OTHERS = [
    *("true", "false", '"7"', '""', '"a"', '"é"', '"a:b"', '"2026-01-01T00:00:00Z"', '"x\\": 1"'),
    *('"\\":"', '" :"', '"\\u003a"', '"\\ud800"', '"\\u0000"', "[1,2,3]", "[1,null,2.5]", "[]"),
    *('{"y":1}', '{"y":1,"y":2}', '{"y":1,"\\u0079":2}', '[{"y":1,"y":1}]', '[{"y":1},{"y":1}]'),
    *('{"y":{"a":1}}', "{}", '{"y":[[{"z":1,"z":2}]]}', "1" * 400),
]
VALUES = st.sampled_from(NUMBERS) | st.sampled_from(OTHERS)
FEATURES = ["a", "b", "c"]
BESIDE = ["id", "city", "test_id", "message_id", "sequence", "publish_time", "features", "unknown"]
SPACES = st.sampled_from(["", "", "", " ", "\t", " \t "])


@st.composite
def members(draw: st.DrawFn, names: Sequence[str]) -> str:
    name = draw(st.sampled_from(names))
    escaped = f"\\u{ord(name[0]):04x}{name[1:]}" if draw(st.integers(0, 9)) == 0 else name
    before, after = draw(SPACES), draw(SPACES)
    return f'"{escaped}"{before}:{after}{draw(VALUES)}'


@st.composite
def texts(draw: st.DrawFn, beside: Sequence[str] = BESIDE) -> bytes:
    """Draw JSON texts, mostly objects with all features and a few other members anywhere."""
    first = draw(st.sampled_from(["named", "named", "listed", "none"]))
    found = [f'"{name}":{draw(st.sampled_from(NUMBERS[:9]))}' for name in FEATURES]
    if first != "named":
        found = ['"features":[1,2.5,null]', '"features":[1,2,3]'][: draw(st.integers(1, 2))]
        found = found[-1:] if first == "listed" else []
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2, 3]))):
        found.insert(draw(st.integers(0, len(found))), draw(members([*FEATURES, *beside])))
    comma = f"{draw(SPACES)},{draw(SPACES)}"
    text = f"{draw(SPACES)}{{{draw(SPACES)}{comma.join(found)}{draw(SPACES)}}}"
    end = draw(st.sampled_from(["", "", "", "", "", " ", "\f", "}", "{}", "\ufeff"]))
    start = draw(st.sampled_from(["", "", "", "", "", "", "\ufeff", "["]))
    return f"{start}{text}{end}".encode()


@pytest.fixture(scope="module")
def manifests(make_manifest: Make) -> list[Manifest]:
    mean = {"b": FeatureStatistics(count=1, mean=0.5, std=1.0, min=0.0, max=1.0)}
    return [
        make_manifest(),
        make_manifest(
            InputSpec("x", ("a", "b", "c"), shape=(3,), impute={"b": "mean"}), statistics=mean
        ),
        make_manifest(InputSpec("x", ("a", "b", "c"), dtype="int64", shape=(3,))),
        make_manifest(InputSpec("x", ("a", "sequence"), shape=(2,))),
        make_manifest(InputSpec("l", ("features",), shape=(3,))),
        make_manifest(InputSpec("x", ("a", "b"), shape=(2,)), InputSpec("y", ("c",), dtype="bool")),
    ]


def verdicts(
    batches: Sequence[Any], failures: Sequence[tuple[Any, Fault]], row_format: RowFormat
) -> list[str]:
    """Return the id of each row, and its inputs and kept columns or its fault, as sorted texts."""
    found = [repr((row_id, fault.reason, fault.message)) for row_id, fault in failures]
    beside = {*dict(row_format.columns), *row_format.keep}
    for batch in batches:
        good, bad, faults = validate(batch, row_format.manifest)
        for row in to_rows(good):
            kept = sorted((name, row["source"][name]) for name in beside)
            found.append(repr((row["row_id"], row["inputs"], kept)))
        for row, fault in zip(to_rows(bad), faults, strict=True):
            kept = sorted((name, row["source"][name]) for name in beside)
            found.append(repr((row["row_id"], fault.reason, kept)))
    return sorted(found)


def of_messages(
    bodies: Sequence[bytes], row_format: RowFormat, provenance: Provenance, **attributes: str
) -> list[str]:
    messages = [Message(body, attributes, f"m{i}", 0, "") for i, body in enumerate(bodies)]
    batches, failures = decode_messages(messages, MessageFormat(row_format), provenance, NOW)
    bad = [] if failures is None else to_rows(failures)
    faults = [(row["row_id"], Fault(row["reason"], row["message"])) for row in bad]
    return verdicts(batches, faults, row_format)


def of_lines(bodies: Sequence[bytes], row_format: RowFormat) -> list[str]:
    decoded = decode_json(bodies, [f"m{i}" for i in range(len(bodies))], row_format)
    batches = [] if decoded.batch is None else [decoded.batch]
    return verdicts(batches, list(zip(decoded.failed_ids, decoded.faults, strict=True)), row_format)


@given(
    st.lists(texts(), min_size=1, max_size=4),
    st.integers(0, 5),
    st.sampled_from([None, *FEATURES[:1], *BESIDE]),
    st.sampled_from([(), ("city",), ("city", "a", "city"), ("test_id", "id")]),
    st.sampled_from([(), CARRIED]),
)
@example([b'{"a":1,"b":2,"c":3,"test_id":"t"}'], 0, "test_id", (), CARRIED)
@example([b'{"a":1,"b":2,"c":3}', b'{"a":1.0,"b":2,"c":3}'], 0, "a", (), CARRIED)
@example([b'{"a":1,"b":2,"c":3,"sequence":2.0}'], 0, "sequence", (), CARRIED)
@example([b'{"a":1,"b":2,"c":3,"id":7}', b'{"a":1,"b":2,"c":3,"id":7.0}'], 0, "id", (), CARRIED)
@example([b'{"a":1,"b":2,"c":3,"id":18446744073709551616}'], 0, "id", (), CARRIED)
@example([b'{"a":1,"b":2,"c":3,"city":"x","id":null}'], 0, "city", ("city",), CARRIED)
@example([b'{"a":1,"sequence":1.5}'], 3, "sequence", (), CARRIED)
def test_fast_and_slow_readers_agree_for_lines_and_messages(
    manifests: list[Manifest],
    provenance: Provenance,
    bodies: list[bytes],
    which: int,
    id_column: str | None,
    keep: tuple[str, ...],
    typed: Any,
) -> None:
    row_format = RowFormat(manifests[which], id_column, keep, typed)
    quickly = of_messages(bodies, row_format, provenance)
    assert len(quickly) == len(bodies)
    assert quickly == of_messages(bodies, row_format, provenance, **SLOWLY)
    assert quickly == of_lines(bodies, row_format)
    alone = [
        verdict.replace("'m0'", f"'m{i}'")
        for i, body in enumerate(bodies)
        for verdict in of_messages([body], row_format, provenance)
    ]
    assert quickly == sorted(alone)


@given(st.lists(texts(), min_size=1, max_size=4), st.integers(0, 5))
def test_a_file_of_lines_is_read_like_its_single_lines(
    manifests: list[Manifest], tmp_path_factory: pytest.TempPathFactory, bodies: list[bytes],
    which: int,
) -> None:  # fmt: skip
    # A byte order mark at the start of a file is not part of the row, unlike in a message. The
    # first line keeps the others away from the start.
    bodies = [b"null", *bodies]
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    path.write_bytes(b"\r\n".join(bodies))
    size = path.stat().st_size
    part = FileRange(path=str(path), format="jsonl", start=0, stop=size)
    # With an id column, ids do not depend on positions.
    row_format = RowFormat(manifests[which], "a", ("city",))
    for rows in (1, 100):
        read = list(read_range(part, Columns(manifests[which], "a", ("city",)), rows))
        faults = [(None, fault) for decoded in read for fault in decoded.faults]
        batches = [decoded.batch for decoded in read if decoded.batch is not None]
        wanted = decode_json([body.strip(b" \t\r\n") for body in bodies], None, row_format)
        assert [fault for _, fault in faults] == wanted.faults
        good = [row["source"] for batch in batches for row in to_rows(batch)]
        assert repr(good) == repr([] if wanted.batch is None else [
            row["source"] for row in to_rows(wanted.batch)
        ])  # fmt: skip


@given(st.lists(texts([]), min_size=1, max_size=4), st.integers(0, 5))
@example([b'{"a":1,"b":2,"c":3,"a":1}', b'{"a":1,"b":2,"c":3}'], 0)
@example([b'{"a":1,"b":2,"c":3}', b'{"a":{"y":1,"y":2},"b":2,"c":3}'], 0)
def test_the_server_accepts_the_same_rows_as_the_pipelines(
    manifests: list[Manifest], bodies: list[bytes], which: int
) -> None:
    bodies = [body for body in bodies if is_json(body)]
    known = {
        *manifests[which].features,
        *(["features"] if RowFormat(manifests[which]).vector else []),
    }
    bodies = [body for body in bodies if orjson.loads(body).keys() <= known]
    request = b'{"instances":[' + b",".join(bodies) + b'],"parameters":{"outputs":"all"}}'
    instances = unique_instances(orjson.loads(request), request)
    reader = InstanceReader(manifests[which])
    for read in (reader.read, reader._judge):
        if instances:
            check_instances(read, instances, bodies, manifests[which])


def is_json(body: bytes) -> bool:
    try:
        return isinstance(orjson.loads(body), dict)
    except orjson.JSONDecodeError:
        return False


def check_instances(
    read: Callable[..., Any], instances: list[Any], bodies: Sequence[bytes], manifest: Manifest
) -> None:
    """Compare a way of reading instances with the lines of a file."""
    decoded = decode_json(bodies, [str(i) for i in range(len(bodies))], RowFormat(manifest))
    reasons = {
        int(row_id): fault.reason
        for row_id, fault in zip(decoded.failed_ids, decoded.faults, strict=True)
    }
    inputs: dict[int, Any] = {}
    if decoded.batch is not None:
        good, bad, faults = validate(decoded.batch, manifest)
        for row, fault in zip(to_rows(bad), faults, strict=True):
            reasons[int(row["row_id"])] = fault.reason
        inputs = {int(row["row_id"]): list(row["inputs"].values()) for row in to_rows(good)}
    if reasons:
        with pytest.raises(BadInstances) as refused:
            read(instances)
        assert {i: fault.reason for i, fault in refused.value.faults.items()} == reasons
    else:
        arrays = read(instances)
        assert [[a[i].tolist() for a in arrays] for i in range(len(bodies))] == list(
            inputs.values()
        )


def duplicate_keys(body: bytes) -> set[str]:
    """Return the keys that occur twice in an object of a JSON text."""
    found: set[str] = set()

    def note(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        found.update(name for name in names if names.count(name) > 1)

    json.loads(body, object_pairs_hook=note, parse_int=float)
    return found


@given(st.lists(st.binary(max_size=3) | texts(), max_size=5))
def test_exactly_the_texts_with_a_duplicate_key_are_rejected_for_it(bodies: list[bytes]) -> None:
    for body, value in zip(bodies, read_json_values(bodies), strict=True):
        try:
            wanted = orjson.loads(body.replace(b"NaN", b"null"))
        except orjson.JSONDecodeError:
            assert isinstance(value, Fault)
            assert value.reason == "invalid_json"
            continue
        duplicates = duplicate_keys(body) if isinstance(wanted, dict) else set()
        if duplicates:
            assert isinstance(value, Fault)
            assert value.reason == "duplicate_key"
            inner = "a nested object contains a key twice"
            assert any(words in value.message for words in (inner, *map(repr, duplicates)))
        elif b"NaN" in body:
            assert repr(value).replace("nan", "None") == repr(wanted)
        else:
            assert value == wanted


@pytest.mark.parametrize(
    ("request_body", "message"),
    [
        (b'{"instances":[[1,2,3]],"instances":[]}', "key 'instances' appears twice"),
        (b'{"instances":[],"parameters":{"outputs":"all","outputs":"score"}}', "'outputs'"),
        (b'{"instances":[],"parameters":null,"parameters":{}}', "'parameters'"),
    ],
)
def test_a_request_with_a_duplicate_key_is_rejected(request_body: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unique_instances(orjson.loads(request_body), request_body)


def test_json_settings_with_a_duplicate_key_are_rejected(make_manifest: Make) -> None:
    manifest = make_manifest()
    text = write_manifest(manifest).replace('"version"', '"name": "other", "version"', 1)
    with pytest.raises(ManifestError, match=r"model\.json: key 'name' appears twice"):
        parse_manifest(text)
    with pytest.raises(UsageError, match="--endpoint_parameters: key 'a' appears twice"):
        EndpointCodec(manifest, manifest.outputs, parameters='{"a":1,"a":2}')
    record = '{"type":"record","name":"r","fields":[{"name":"a","type":"int"}%s]%s}'
    with pytest.raises(UsageError, match="key 'name' appears twice"):
        parse_schema(record % ("", ',"name":"s"'))
    with pytest.raises(UsageError, match="record r has field 'a' twice"):
        parse_schema(record % (',{"name":"a","type":"double"}', ""))
