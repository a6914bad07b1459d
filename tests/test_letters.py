"""Dead letters in files and topics, and the messages that they were."""

import datetime
import gzip
import io
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from common.errors import InputError, UsageError
from common.record_batch import INPUTS, MESSAGE, ROW_ID, struct_columns
from model_handlers.manifests.manifest import FeatureStatistics, InputSpec, Manifest
from transforms.dead_letters import Fault, Stage, failed_rows, failure_batch, to_letter_line
from transforms.files.columns import Columns
from transforms.files.sink.writers import JsonLinesBatchWriter
from transforms.json_rows.row_format import RowFormat
from transforms.lineage import BATCH_REPLAY, STREAM_REPLAY
from transforms.messages.avro_revisions import AvroRevisions
from transforms.messages.decode import MessageFormat, MessageKind, decode_messages
from transforms.messages.message import (
    Message,
    attempts_of,
    message_column,
    parse_message,
    serialize,
)
from transforms.messages.publish import MESSAGE_BYTES, failure_messages
from transforms.provenance import Provenance, utc_now
from transforms.replay.letters import (
    Letter,
    Selection,
    from_message,
    last_letters,
    moment,
    read_letter,
    to_message,
)
from transforms.validate import validate

NOON = datetime.datetime(2024, 5, 6, 12, tzinfo=datetime.UTC)
MOMENT = 1_700_000_000_123_456  # microseconds since 1970
PROVENANCE = Provenance(
    run_id="r", pipeline="stream_local", model_name="tiny", model_version="3", model_digest="0" * 64
)


def lines_of(failures: pa.RecordBatch) -> list[bytes]:
    """Return the lines of a file of dead letters."""
    file = io.BytesIO()
    JsonLinesBatchWriter(file, failures.schema).write(failures)
    return file.getvalue().splitlines()


def letters_of(failures: pa.RecordBatch | None) -> list[Letter]:
    return [] if failures is None else [read_letter(line, "a file") for line in lines_of(failures)]


def published(failures: pa.RecordBatch) -> list[Message]:
    """Return the messages that a subscription to a dead letter topic delivers."""
    return [
        Message(one.data, one.attributes, f"d-{i}", MOMENT + 1, "")
        for i, one in enumerate(failure_messages(failures))
    ]


def from_topic(message: Message) -> Letter:
    record = from_message(message)
    assert record is not None
    return read_letter(to_letter_line(record), "a topic")


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([Decimal("123")], pa.decimal128(38, 9)),
        pa.array([MOMENT], pa.timestamp("us", "UTC")),
        pa.array([b"\xff\x01"]),
        pa.array([12345678901234567890], pa.uint64()),
        pa.array(["x" * 2_000]),
    ],
    ids=lambda ids: str(ids.type),
)
@pytest.mark.parametrize("from_a_topic", [False, True])
def test_a_replayed_row_keeps_the_id_of_its_column(
    make_manifest: Callable[..., Manifest], ids: pa.Array, from_a_topic: bool
) -> None:
    columns = Columns(make_manifest(), "k")
    batch = pa.record_batch({"a": [1.0], "b": [1.0], "c": pa.nulls(1, pa.float64()), "k": ids})
    source = columns.with_ids(batch, "f", np.array([0]))
    fault = Fault("null", "no", "c")
    failures = failed_rows(source, [fault], stage="validate", provenance=PROVENANCE, failed_at=NOON)
    if from_a_topic:
        (letter,) = map(from_topic, published(failures))
    else:
        (letter,) = letters_of(failures)
    message_format = MessageFormat(RowFormat(columns.manifest, "k"))
    (again,), _ = decode_messages([to_message(letter)], message_format, PROVENANCE, utc_now())
    assert again.column(ROW_ID).to_pylist() == source.column(ROW_ID).to_pylist()


# Names that Pub/Sub reserves cannot be published to a topic.
NAMES = st.text(max_size=9).filter(lambda name: not name.startswith(("millrace_", "goog")))
MESSAGES = st.builds(
    Message,
    st.binary(),
    st.dictionaries(NAMES, st.text()),
    st.text(min_size=1, max_size=20),
    st.integers(0, 4_000_000_000_000_000),
    st.text(max_size=9),
)


def letter(**fields: Any) -> Letter:
    values: dict[str, Any] = {
        "failed_at": NOON,
        "run_id": "r",
        "pipeline": "stream_local",
        "stage": "decode",
        "reason": "invalid_json",
        "row_id": "m-1",
        "payload": b"{",
        "attributes": {},
        "attempts": 1,
    }
    return Letter(**values | fields)


@given(st.lists(MESSAGES, min_size=1, max_size=5))
def test_a_letter_in_a_file_becomes_its_message_with_one_more_attempt(
    messages: list[Message],
) -> None:
    ids = [f"row {m.message_id}" for m in messages]
    failures = failure_batch(
        ids,
        [m.data for m in messages],
        [Fault("invalid_json", "no")] * len(messages),
        stage="decode",
        provenance=PROVENANCE,
        failed_at=NOON,
        messages=message_column(messages, NOON),
    )
    for message, row_id, found in zip(messages, ids, letters_of(failures), strict=True):
        # The message is serialized and parsed, as in the pipeline.
        again = parse_message(serialize(to_message(found)))
        own = {"millrace_row_id": row_id, "millrace_attempts": "1", "millrace_stage": "decode"}
        assert structs.replace(again, attributes=dict(again.attributes)) == structs.replace(
            message, attributes={**message.attributes, **own}
        )
        assert (attempts_of(message), attempts_of(again)) == (1, 2)


@given(st.lists(MESSAGES, min_size=1, max_size=5), st.integers(1, 10**8))
def test_a_topic_holds_the_same_letters_as_a_file(messages: list[Message], tried: int) -> None:
    given_again = [
        structs.replace(m, attributes={**m.attributes, "millrace_attempts": str(tried)})
        for m in messages
    ]
    failures = failure_batch(
        [m.message_id for m in messages],
        [m.data for m in messages],
        [Fault("wrong_type", "no", "a")] * len(messages),
        stage="validate",
        provenance=PROVENANCE,
        failed_at=NOON,
        messages=message_column(given_again, NOON),
    )
    pairs = zip(letters_of(failures), map(from_topic, published(failures)), strict=True)
    for of_file, of_topic in pairs:
        assert of_file.attempts == tried + 1
        assert replace(of_topic, attributes={}) == replace(of_file, attributes={})
        # The id, the time and the ordering key are those of the original message.
        assert to_message(of_topic) == to_message(of_file)


@given(st.binary())
def test_a_letter_of_a_batch_run_becomes_a_message_with_the_row_id(payload: bytes) -> None:
    failures = failure_batch(
        ["t1", None],
        [payload, payload],
        [Fault("null", "no", "a")] * 2,
        stage="validate",
        provenance=replace(PROVENANCE, pipeline="batch_local"),
        failed_at=NOON,
    )
    first, second = map(to_message, letters_of(failures))
    assert first.data == second.data == payload
    assert first.message_id == "t1"
    assert second.message_id
    assert first.event_time == NOON.timestamp() * 1e6
    assert [not one.of_stream for one in letters_of(failures)] == [True, True]


def test_a_message_that_is_not_a_dead_letter_is_recognized() -> None:
    other = Message(b"{}", {"millrace_stage": "decode", "run_id": "r"}, "m", MOMENT, "")
    assert from_message(other) is None


def test_a_letter_whose_row_was_truncated_is_not_replayed() -> None:
    failures = failure_batch(
        ["m"],
        [b"x" * MESSAGE_BYTES],
        [Fault("too_large", "no")],
        stage="decode",
        provenance=PROVENANCE,
        failed_at=NOON,
    )
    (cut,) = published(failures)
    assert len(cut.data) < MESSAGE_BYTES
    assert from_message(cut) is None


@pytest.mark.parametrize(
    "line",
    [
        b"not JSON",
        b"[]",
        b'"text"',
        b'{"row_id":"t1","score":0.5,"run_id":"r"}',
        b'{"failed_at":"yesterday","payload":"x"}',
        b'{"failed_at":null,"payload":"x"}',
        b'{"failed_at":"2026-11-20T12:00:00Z","run_id":"r","pipeline":"stream_local",'
        b'"stage":"decode","reason":"null","row_id":"t1","payload":"x","attempts":1,'
        b'"attributes":"{\\"message\\":{\\"event_time\\":\\"noon\\"}}"}',
    ],
)
def test_a_line_that_is_not_a_dead_letter_is_an_error_that_names_the_file(line: bytes) -> None:
    with pytest.raises(InputError, match=r"scores/part\.jsonl: expected dead letters") as caught:
        read_letter(line, "scores/part.jsonl")
    assert "\n" not in str(caught.value)


def test_payloads_of_damaged_base64_are_an_error() -> None:
    failures = failure_batch(
        ["t"],
        [b"\xff"],
        [Fault("invalid_json", "no")],
        stage="decode",
        provenance=PROVENANCE,
        failed_at=NOON,
    )
    (line,) = lines_of(failures)
    record = orjson.loads(line)
    assert record["payload_base64"] == "/w=="
    with pytest.raises(InputError, match="expected dead letters"):
        read_letter(orjson.dumps(record | {"payload_base64": "/w!="}), "a file")


def test_a_time_without_a_zone_is_utc() -> None:
    assert moment("2024-05-06") == datetime.datetime(2024, 5, 6, tzinfo=datetime.UTC)
    assert moment("2024-05-06T14:00:00+02:00") == moment("2024-05-06T12:00:00Z") == NOON


@pytest.mark.parametrize(
    ("selection", "takes"),
    [
        (Selection(), True),
        (Selection(reasons=("null", "invalid_json")), True),
        (Selection(reasons=("null",)), False),
        (Selection(stages=("decode",)), True),
        (Selection(stages=("validate", "infer")), False),
        (Selection(since=NOON), True),
        (Selection(since=NOON + datetime.timedelta(microseconds=1)), False),
        (Selection(pipelines=("stream_local",)), True),
        (Selection(pipelines=("stream",)), False),
        (Selection(run_ids=("q", "r")), True),
        (Selection(run_ids=("q",)), False),
        (Selection(reasons=("invalid_json",), stages=("infer",)), False),
    ],
    ids=repr,
)
def test_a_selection_takes_letters_that_pass_all_filters(selection: Selection, takes: bool) -> None:
    assert selection.takes(letter()) is takes


def test_rows_that_a_table_refused_are_never_replayed() -> None:
    assert not Selection().takes(letter(stage="write", reason="refused"))


def test_a_replay_with_the_id_of_the_replayed_run_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--run_id r .* choose another"):
        Selection(run_id="r").takes(letter())
    # Letters that are not selected do not matter.
    assert not Selection(reasons=("null",), run_id="r").takes(letter())


@pytest.mark.parametrize("pipeline", [STREAM_REPLAY, BATCH_REPLAY])
def test_the_letters_of_a_replay_itself_are_left_out_next_to_their_origins(pipeline: str) -> None:
    mine = letter(pipeline=pipeline, attempts=2)
    assert not Selection(run_id="r").takes(mine)
    assert Selection(run_id="r", own=True).takes(mine)
    assert Selection(run_id="another").takes(mine)


def test_the_last_letter_of_a_row_of_a_stream_is_replayed() -> None:
    once, later = letter(), letter(failed_at=NOON + datetime.timedelta(seconds=1))
    again = letter(pipeline=STREAM_REPLAY, run_id="replay", attempts=2)
    assert last_letters([later, once]) == [later]
    assert last_letters([later, again, once]) == [again]
    # The result depends neither on the order nor on duplicates.
    assert last_letters([again, again, once]) == [again]


def test_each_letter_of_the_last_batch_run_is_replayed() -> None:
    row = letter(pipeline="batch_local", stage="validate")
    again = replace(row, pipeline=BATCH_REPLAY, run_id="replay", attempts=2)
    # Equal rows of a table have equal ids, but none of them may be lost.
    assert last_letters([row, row]) == [row, row]
    assert last_letters([row, again, row, again]) == [again, again]


def test_letters_of_different_rows_with_one_id_are_kept_apart() -> None:
    assert letter(payload=b"a").key != letter(payload=b"b").key
    assert letter(row_id="a").key != letter(row_id="b").key
    assert letter(attempts=2, run_id="q").key == letter().key


def refusals(
    messages: Sequence[Message], message_format: MessageFormat
) -> tuple[dict[str, list[float]], pa.RecordBatch | None]:
    """Decode and validate messages; return the inputs of good rows by id, and the dead letters."""
    manifest = message_format.row_format.manifest
    batches, failures = decode_messages(messages, message_format, PROVENANCE, utc_now())
    inputs: dict[str, list[float]] = {}
    found = [] if failures is None else [failures]
    for batch in batches:
        good, bad, faults = validate(batch, manifest)
        inputs |= dict(
            zip(
                good.column(ROW_ID).to_pylist(),
                good.column(INPUTS).field(0).to_pylist(),
                strict=True,
            )
        )
        if faults:
            stage: Stage = "validate"
            found.append(
                failed_rows(bad, faults, stage=stage, provenance=PROVENANCE, failed_at=utc_now())
            )
    return inputs, pa.concat_batches(found) if found else None


def reasons(failures: pa.RecordBatch | None) -> dict[str, str]:
    letters = letters_of(failures)
    assert len({one.row_id for one in letters}) == len(letters)
    return {one.row_id: one.reason for one in letters}


def format_of(manifest: Manifest, kind: MessageKind = "json") -> MessageFormat:
    schema = {
        "type": "record",
        "name": "row",
        "fields": [{"name": name, "type": ["null", "double"]} for name in "abc"],
    }
    return MessageFormat(
        RowFormat(manifest), kind, AvroRevisions(json.dumps(schema)) if kind == "avro" else None
    )


@pytest.fixture(scope="session")
def imputing(make_manifest: Callable[..., Manifest]) -> Manifest:
    """A manifest with the columns a, b and c that imputes missing values with their mean, 7."""
    names = ("a", "b", "c")
    statistics = dict.fromkeys(
        names, FeatureStatistics(count=9, mean=7.0, std=1.0, min=0.0, max=9.0)
    )
    spec = InputSpec("x", names, dtype="float32", shape=(3,), impute=dict.fromkeys(names, "mean"))
    return make_manifest(spec, statistics=statistics)


CELLS = st.one_of(st.none(), st.integers(-9, 9), st.just("1.5"), st.just(True), st.just([1]))
ROWS = st.dictionaries(st.sampled_from("abcd"), CELLS)
BODIES = st.one_of(st.binary(), ROWS.map(orjson.dumps))


@given(st.lists(BODIES, min_size=1, max_size=6), st.sampled_from(["json", "avro", "arrow"]))
def test_without_a_fix_the_same_rows_fail_for_the_same_reasons(
    make_manifest: Callable[..., Manifest], bodies: list[bytes], kind: MessageKind
) -> None:
    read = format_of(make_manifest(), kind)
    if kind == "arrow":
        # A replayed message may hold JSON instead of Arrow, so make sure that it does not.
        bodies = [b"-" + body for body in bodies]
    messages = [Message(body, {}, f"m-{i}", MOMENT, "") for i, body in enumerate(bodies)]
    good, first = refusals(messages, read)
    again = [to_message(one) for one in letters_of(first)]
    scored, second = refusals(again, read)
    assert scored == {}
    assert reasons(second) == reasons(first)
    assert len(good) + len(again) == len(messages)
    letters = letters_of(second)
    assert {one.attempts for one in letters} <= {2}
    payloads = {one.row_id: one.payload for one in letters_of(first)}
    assert {one.row_id: one.payload for one in letters} == payloads
    assert {to_message(one).event_time for one in letters} <= {MOMENT}


def test_with_a_fix_rows_keep_their_ids_times_and_fields(
    make_manifest: Callable[..., Manifest], imputing: Manifest
) -> None:
    body = b'{"a": 1.0, "b": null, "c": 3.0}'
    message = Message(body, {"k": "v"}, "m-1", MOMENT, "key")
    _, failures = refusals([message], format_of(make_manifest()))
    (one,) = letters_of(failures)
    (batch,), none = decode_messages([to_message(one)], format_of(imputing), PROVENANCE, NOON)
    assert none is None
    assert batch.column(ROW_ID).to_pylist() == ["m-1"]
    found = {name: column[0].as_py() for name, column in struct_columns(batch, MESSAGE).items()}
    assert found["message_id"] == "m-1"
    assert found["event_time"].timestamp() * 1e6 == MOMENT
    assert (found["ordering_key"], found["attempts"]) == ("key", 2)
    assert json.loads(found["attributes"])["k"] == "v"
    assert validate(batch, imputing)[0].column(INPUTS).field(0).to_pylist() == [[1.0, 7.0, 3.0]]


def test_an_id_column_takes_precedence_over_the_id_of_a_letter(imputing: Manifest) -> None:
    read = MessageFormat(RowFormat(imputing, id_column="id"))
    rows = [b'{"a":1,"b":2,"c":3,"id":"own"}', b'{"a":1,"b":2,"c":3}']
    messages = [to_message(letter(payload=row, row_id="m-7")) for row in rows]
    (batch,), _ = decode_messages(messages, read, PROVENANCE, NOON)
    assert batch.column(ROW_ID).to_pylist() == ["own", "m-7"]


def arrow_message(columns: Mapping[str, Any], **attributes: str) -> Message:
    rows = pa.record_batch({name: pa.array(cells) for name, cells in columns.items()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    data = sink.getvalue().to_pybytes()
    if attributes:
        data = gzip.compress(data)
    return Message(data, attributes, "m", MOMENT, "")


@pytest.mark.parametrize("attributes", [{}, {"content-encoding": "gzip"}], ids=["plain", "gzip"])
def test_a_row_of_an_arrow_message_is_replayed_separately(
    make_manifest: Callable[..., Manifest], imputing: Manifest, attributes: dict[str, str]
) -> None:
    columns = {"a": [1.0, 2.0, 3.0], "b": [1.0, float("nan"), None], "c": ["4", "5", "no"]}
    message = arrow_message(columns, **attributes)
    good, failures = refusals([message], format_of(make_manifest(), "arrow"))
    assert good == {"m-0": [1.0, 1.0, 4.0]}
    assert reasons(failures) == {"m-1": "not_finite", "m-2": "null"}
    again = [to_message(one) for one in letters_of(failures)]
    # Replay the rows together with a new message of the same subscription.
    fresh = structs.replace(arrow_message({"a": [9.0], "b": [9.0], "c": [9.0]}), message_id="n")
    scored, left = refusals([*again, fresh], format_of(imputing, "arrow"))
    assert scored == {"m-1": [2.0, 7.0, 5.0], "n-0": [9.0] * 3}
    assert reasons(left) == {"m-2": "wrong_type"}
    # After another replay, the string of a column is still read as a number.
    (one,) = letters_of(left)
    third = to_message(replace(one, payload=one.payload.replace(b"no", b"6")))
    assert attempts_of(third) == 3
    assert refusals([third], format_of(imputing, "arrow"))[0] == {"m-2": [3.0, 7.0, 6.0]}


def test_rows_of_a_replayed_whole_arrow_message_have_their_original_ids(
    make_manifest: Callable[..., Manifest],
) -> None:
    lacking = arrow_message({"a": [1.0, 2.0], "b": [1.0, 2.0]})
    _, failures = refusals([lacking], format_of(make_manifest(), "arrow"))
    (one,) = letters_of(failures)
    assert (one.row_id, one.reason) == ("m", "wrong_schema")
    whole = arrow_message({name: [1.0, 2.0] for name in "abc"})
    again = to_message(replace(one, payload=whole.data))
    scored, _ = refusals([again], format_of(make_manifest(), "arrow"))
    assert scored == {"m-0": [1.0] * 3, "m-1": [2.0] * 3}


def test_booleans_are_numbers_in_columns_but_not_in_json_messages(
    make_manifest: Callable[..., Manifest],
) -> None:
    read = format_of(make_manifest())
    row = b'{"a":true,"b":2,"c":"NaN"}'
    message = to_message(letter(payload=row, stage="decode", reason="wrong_type"))
    assert reasons(refusals([message], read)[1]) == {"m-1": "wrong_type"}
    columns = to_message(letter(payload=row, stage="validate", pipeline="batch_local"))
    assert reasons(refusals([columns], read)[1]) == {"m-1": "not_finite"}


def test_a_stream_that_reads_a_dead_letter_topic_counts_attempts(
    make_manifest: Callable[..., Manifest],
) -> None:
    read = format_of(make_manifest())
    messages = [Message(b'{"a":1,"b":null,"c":3}', {"k": "v"}, "m-1", MOMENT, "")]
    for tried in (1, 2, 3):
        _, failures = refusals(messages, read)
        assert failures is not None
        assert failures.column("attempts").to_pylist() == [tried]
        assert failures.column("row_id").to_pylist() == ["m-1"]
        messages = published(failures)
        assert messages[0].attributes["k"] == "v"


def test_gzip_messages_are_replayed_unchanged(imputing: Manifest) -> None:
    body = gzip.compress(struct.pack("<d", 1.0))
    message = Message(body, {"content-encoding": "gzip"}, "m", MOMENT, "")
    _, first = refusals([message], format_of(imputing))
    _, second = refusals([to_message(one) for one in letters_of(first)], format_of(imputing))
    assert reasons(first) == reasons(second) == {"m": "invalid_json"}
    good = gzip.compress(b'{"a":1}')
    (one,) = letters_of(first)
    scored, _ = refusals([to_message(replace(one, payload=good))], format_of(imputing))
    assert scored == {"m": [1.0, 7.0, 7.0]}
