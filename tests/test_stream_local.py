"""stream_local on the Pub/Sub emulator: published = scored + dead-lettered, however a run ends."""

import base64
import datetime
import io
import json
import math
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from apache_beam.runners.portability.fn_api_runner import fn_runner
from command_line import words
from google.api_core import exceptions
from prism_runner import prism_flags
from pubsub_mailbox import Mailbox
from raw_endpoint import expected, some_rows, write_golden_package
from raw_model import FAULTS as RAW_FAULTS
from raw_model import ROWS as RAW_ROWS
from same_scores import assert_predictions
from serving_client import running
from waiting import wait_until

from examples.local_cloud import LocalCloud
from model_handlers.packaged_steps import PackagedSteps
from pipelines.command import Command, main
from pipelines.stream import subscription
from pipelines.stream.in_process import STOPPING
from pipelines.stream_local import COMMAND
from pipelines.stream_vertex import COMMAND as STREAM_VERTEX
from transforms.bigquery.append_stream import Append, DefaultStream
from transforms.messages import decode as decode_messages
from transforms.messages import lease

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ROOT = Path(__file__).parent.parent
SCORE = "normalized_MAE"
# Messages that each become one dead letter, with its reason.
POISON = [
    (b"not JSON", "invalid_json"),
    (b"\xff\xfe\x00", "invalid_json"),
    (b"[" * 5_000, "invalid_json"),
    (b"[1,2,3]", "not_an_object"),
    (b'{"Time":1,"V1":2}', "missing_feature"),
    (b'{"Time":true}', "wrong_type"),
    (b'{"features":[1,2]}', "wrong_width"),
    (b'{"x":{"a":1,"a":2}}', "duplicate_key"),
    (b"", "empty_message"),
    # As large as a message may be.
    (b"x" * 9_900_000, "too_large"),
]


@dataclass
class Stream:
    """A stream's topics, tables and folder, and the example's rows to send."""

    cloud: LocalCloud
    example: Path
    folder: Path
    capsys: pytest.CaptureFixture[str]

    def __post_init__(self) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.input, self.output, self.letters = (
            Mailbox(self.cloud.cloud, f"{kind}-{self.id}").create()
            for kind in ("in", "out", "dead")
        )
        self.table = f"{self.cloud.cloud.project}.streams.t{self.id}"
        self.model = self.example / "model"
        rows = pq.read_table(self.example / "transactions.parquet").to_pylist()
        self.features = json.loads((self.model / "model.json").read_text())["inputs"][0]["columns"]
        self.rows = [
            {name: None if row[name] != row[name] else row[name] for name in self.features}
            for row in rows
        ]

    def bodies(self, start: int, stop: int) -> list[bytes]:
        """Return rows of the example as JSON: every fifth as a list, the others by name."""
        return [
            json.dumps({"features": list(row.values())} if i % 5 == 0 else row).encode()
            for i, row in enumerate(self.rows[start:stop], start)
        ]

    def flags(self, **given: Any) -> list[str]:
        """Return the arguments of a run; a flag that is None is left out."""
        own = {
            "input_subscription": self.input.subscription,
            "model": self.model,
            "score_output": SCORE,
            "dead_letter_topic": self.letters.topic,
            "stop_after_seconds": 1,
            "report_seconds": 1,
            "retry_seconds": 20,
        }
        return words(own | given)

    def run(self, command: Command = COMMAND, **given: Any) -> tuple[int, str]:
        """Run a stream in this process; return the exit code and standard error."""
        code = main(command, self.flags(**given))
        captured = self.capsys.readouterr()
        assert captured.out == ""
        return code, captured.err

    def query(self, table: str) -> list[dict[str, Any]]:
        client = self.cloud.cloud.bigquery()
        return [dict(row.items()) for row in client.query(f"SELECT * FROM `{table}`").result()]

    def files(self) -> list[dict[str, Any]]:
        """Return the rows of all files of scores."""
        paths = (self.folder / "scores").glob("*/*.parquet")
        return [row for path in paths for row in pq.read_table(path).to_pylist()]

    def letter_files(self) -> list[dict[str, Any]]:
        paths = (self.folder / "dead_letters").glob("*/*.jsonl")
        return [json.loads(line) for path in paths for line in path.read_text().splitlines()]

    def expected_scores(self) -> dict[str, float]:
        """Return the scores of the good messages by message id, computed by torch directly."""
        good: dict[str, list[float]] = {}
        for message_id, body in self.input.sent.items():
            try:
                row = json.loads(body)
                values = row.get("features") or [row[name] for name in self.features]
                if len(values) == len(self.features) and not has_null(dict(enumerate(values))):
                    good[message_id] = values
            except (ValueError, KeyError, AttributeError, RecursionError):
                continue
        module = torch.jit.load(self.model / "model.pt")
        with torch.inference_mode():
            scores = module(torch.tensor(list(good.values()), dtype=torch.float32))[SCORE]
        return dict(zip(good, scores.tolist(), strict=True))


@pytest.fixture
def stream(
    stream_emulators: LocalCloud,
    example: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Stream:
    for name, value in stream_emulators.environment.items():
        monkeypatch.setenv(name, value)
    return Stream(stream_emulators, example, tmp_path / "out", capsys)


def meanwhile(*steps: Callable[[], Any]) -> threading.Thread:
    """Execute steps one after the other, in a thread beside a run."""

    def do() -> None:
        for step in steps:
            step()

    thread = threading.Thread(target=do)
    thread.start()
    return thread


def close(got: Mapping[str, float], wanted: Mapping[str, float]) -> None:
    assert_predictions(dict(sorted(got.items())), dict(sorted(wanted.items())))


def only(rows: Iterable[dict[str, Any]], key: str, value: str) -> dict[str, Any]:
    """Return a value of each row by a key that must be unique."""
    pairs = [(row[key], row[value]) for row in rows]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


# Complete runs


PLACES = ["here", "prism", "prism process"]


def runner_flags(place: str) -> dict[str, Any]:
    """Return the flags for a run in this process, on Prism, or on Prism with another process."""
    if place == "here":
        return {}
    own = {"experiments": "use_loopback_process_worker=True"} if place.endswith("process") else {}
    return prism_flags() | own


@pytest.mark.parametrize("place", PLACES)
def test_every_message_is_scored_or_a_dead_letter_in_every_sink(stream: Stream, place: str) -> None:
    first, second = stream.bodies(0, 200), stream.bodies(200, 390)
    carried = json.dumps(
        {**stream.rows[0], "test_id": "", "sequence": 0, "publish_time": 0, "message_id": "mine"}
    ).encode()
    bad, reasons = [body for body, _ in POISON], dict(POISON)
    # The bad messages are before, between and after the good ones.
    stream.input.publish([*bad[:3], *first, *bad[3:6]])
    seen: list[Any] = []
    sender = meanwhile(
        lambda: seen.extend(stream.output.take(1, seconds=60)),
        lambda: stream.input.publish([*second, carried, *bad[6:]]),
    )
    code, err = stream.run(
        output_topic=stream.output.topic,
        output_table=stream.table,
        output_files=stream.folder,
        dead_letter_table=f"{stream.table}_letters",
        dead_letter_files=stream.folder,
        file_seconds=2,
        window_seconds=60,
        output_fields="encoded,Amount",
        run_id="r",
        max_batch_wait_ms=20,
        deduplicate_seconds=600,
        stop_after_seconds=3,
        **runner_flags(place),
    )
    sender.join()
    assert code == 0, err
    expected, published = stream.expected_scores(), stream.input.sent
    count, dead = len(published), len(published) - len(expected)
    assert (count, dead) == (391 + len(POISON), len(POISON) + sum(map(has_null, stream.rows[:390])))

    messages = seen + stream.output.take(len(expected) - len(seen))
    rows = [json.loads(message.data) for message in messages]
    close(only(rows, "row_id", "score"), expected)
    close(only(stream.query(stream.table), "row_id", "score"), expected)
    close(only(stream.files(), "row_id", "score"), expected)
    one = next(row for row in rows if published[row["row_id"]] == carried)
    assert (one["test_id"], one["sequence"], one["publish_time"]) == ("", 0, 0.0)
    assert (one["message_id"], one["run_id"]) == ("mine", "r")
    start, at, end = (
        datetime.datetime.fromisoformat(one[name])
        for name in ("window_start", "event_time", "window_end")
    )
    assert start <= at < end
    assert {dict(m.attributes)["row_id"] for m in messages} == set(expected)

    payloads = {i: body for i, body in published.items() if i not in expected}
    letters = stream.letters.take(dead)
    by_id = {m.attributes["millrace_row_id"]: m for m in letters}
    assert len(letters) == len(by_id) == dead
    assert {i: m.data for i, m in by_id.items()} == payloads
    for i, body in payloads.items():
        reason = reasons.get(body) or ("not_finite" if b"Infinity" in body else "null")
        assert by_id[i].attributes["millrace_reason"] == reason
        assert by_id[i].attributes["from"] == "a test"
    assert only(stream.query(f"{stream.table}_letters"), "row_id", "payload") == payloads
    lines = only(map(decoded, stream.letter_files()), "row_id", "payload")
    assert lines == payloads

    assert stream.input.take(1) == []
    if place == "prism process":
        # The counts are in the process of the worker.
        assert err == ""
        return
    assert f"received               {count}  in " in err
    assert f"scored                 {len(expected)}\n" in err
    assert "balance       rows received = scored + dead letters\n" in err
    assert f"{count:>8,} received {len(expected):>8,} scored" in err


def test_results_keep_the_ordering_keys_of_their_messages_only_if_asked(stream: Stream) -> None:
    keys = ["a", "b", "", "a"]
    messages = [
        {"data": body, "ordering_key": key}
        for body, key in zip(stream.bodies(0, 4), keys, strict=True)
    ]
    sent: dict[str, str] = {}
    for message, key in zip(messages, keys, strict=True):
        answer = stream.cloud.cloud.publisher().publish(
            topic=stream.input.topic, messages=[message]
        )
        sent[answer.message_ids[0]] = key
    sinks: dict[str, Any] = {"output_topic": stream.output.topic, "output_files": stream.folder}
    code, err = stream.run(**sinks, keep_ordering_keys=True)
    assert code == 0, err
    results = stream.output.take(4)
    assert {one.attributes["row_id"]: one.ordering_key for one in results} == sent
    assert {row["row_id"] for row in stream.files()} == sent.keys()
    assert "millrace_ordering_key" not in stream.files()[0]
    for message in messages:
        stream.cloud.cloud.publisher().publish(topic=stream.input.topic, messages=[message])
    code, err = stream.run(output_topic=stream.output.topic)
    assert code == 0, err
    assert [one.ordering_key for one in stream.output.take(4)] == [""] * 4


def test_a_run_in_this_process_keeps_no_metrics_of_its_bundles(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Mapping[str, Iterable[Any]]] = []
    result = fn_runner.RunnerResult

    def noted(state: str, metrics: Mapping[str, Iterable[Any]]) -> Any:
        kept.append(metrics)
        return result(state, metrics)

    monkeypatch.setattr(fn_runner, "RunnerResult", noted)
    stream.input.publish(stream.bodies(0, 20))
    code, err = stream.run(output_topic=stream.output.topic)
    assert code == 0, err
    (metrics,) = kept
    # The stage that pulls has many bundles, as it waits for a second.
    (pulling,) = [name for name in metrics if "Pull/Process" in name]
    assert not [*metrics[pulling]]


def test_a_run_that_loses_a_message_fails(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = decode_messages.decode_counted
    monkeypatch.setattr(
        decode_messages, "decode_counted", lambda messages, *more: whole(messages[1:], *more)
    )
    stream.input.publish(stream.bodies(0, 20))
    code, err = stream.run(output_topic=stream.output.topic)
    assert code == 1
    (error,) = errors(err)
    found = re.fullmatch(
        r"error: messages are missing or duplicated: 20 were pulled, (\d+) .*", error
    )
    assert found, error
    assert int(found[1]) < 20


def test_the_model_may_be_behind_an_endpoint(stream: Stream) -> None:
    bad = [body for body, _ in POISON[:4]]
    stream.input.publish([*stream.bodies(0, 300), *bad])
    with running(stream.model, outputs="all") as server:
        code, err = stream.run(
            STREAM_VERTEX,
            output_topic=stream.output.topic,
            endpoint_url=f"http://{server.client.address}",
        )
        requests = server.client.metric('millrace_requests_total{status="200"}')
    assert code == 0, err
    expected = stream.expected_scores()
    rows = [json.loads(m.data) for m in stream.output.take(len(expected))]
    close(only(rows, "row_id", "score"), expected)
    assert len(stream.letters.take(len(bad))) >= len(bad)
    # One request for each bundle of many rows, and one for the known-good row.
    assert 1 < requests < len(expected)


@pytest.mark.parametrize("prepare_at", ["server", "worker"])
def test_raw_rows_may_be_prepared_by_the_endpoint_or_by_the_worker(
    stream: Stream, tmp_path: Path, prepare_at: str
) -> None:
    manifest = write_golden_package(tmp_path / "raw")
    rows = some_rows(30)
    stream.input.publish([json.dumps(row).encode() for row in [*rows, *RAW_ROWS[-4:]]])
    with running(tmp_path / "raw", outputs="all") as server:
        url = server.server.url
        code, err = stream.run(
            STREAM_VERTEX,
            model=tmp_path / "raw",
            score_output=None,
            id_column="id",
            output_topic=stream.output.topic,
            endpoint_url=url,
            prepare_at=prepare_at,
        )
    assert code == 0, err
    assert f"the {prepare_at} prepares the rows of endpoint {url}" in err
    found = [json.loads(m.data) for m in stream.output.take(len(rows))]
    got = {one["row_id"]: (one["label"], one["decision"]) for one in found}
    outputs = expected(tmp_path / "raw", manifest, rows)
    steps = PackagedSteps(manifest, str(tmp_path / "raw")).load()
    fields, _ = steps.derive({"logits": outputs.field("logits")})
    names = [fields[name].to_pylist() for name in ("label", "decision")]
    assert got == dict(zip([row["id"] for row in rows], zip(*names, strict=True), strict=True))
    letters = [dict(m.attributes) for m in stream.letters.take(4)]
    reasons = {one["millrace_row_id"]: one["millrace_reason"] for one in letters}
    assert reasons == {name: reason for name, (reason, _) in RAW_FAULTS.items()}


def has_null(row: Mapping[Any, Any]) -> bool:
    return any(value is None or not math.isfinite(value) for value in row.values())


def decoded(line: dict[str, Any]) -> dict[str, Any]:
    """Return the row id and the bytes of the message of a line in a file of dead letters."""
    payload = line.get("payload")
    found = base64.b64decode(line["payload_base64"]) if payload is None else payload.encode()
    return {"row_id": line["row_id"], "payload": found}


def test_a_dry_run_of_a_stream_checks_its_table_and_creates_nothing(stream: Stream) -> None:
    letters = f"{stream.table}_letters"
    flags: dict[str, Any] = {
        "output_table": stream.table,
        "dead_letter_topic": None,
        "dead_letter_table": letters,
    }
    assert main(COMMAND, stream.flags(**flags, dry_run="true")) == 0
    assert "only tables were checked" in stream.capsys.readouterr().out
    client = stream.cloud.cloud.bigquery()
    for table in (stream.table, letters):
        with pytest.raises(exceptions.NotFound):
            client.get_table(table)
    client.query(f"CREATE TABLE `{stream.table}` (row_id INT64)").result()
    code, err = stream.run(**flags, dry_run="true")
    assert code == 1
    assert "row_id INT64, expected STRING" in err


def test_a_run_creates_and_deletes_its_subscription_and_creates_a_table_of_dead_letters(
    stream: Stream,
) -> None:
    publisher = stream.cloud.cloud.publisher()

    def subscriptions() -> list[str]:
        return list(publisher.list_topic_subscriptions(topic=stream.input.topic))

    sender = meanwhile(
        lambda: wait_until(lambda: len(subscriptions()) == 2),
        lambda: stream.input.publish([*stream.bodies(0, 20), b"not JSON"]),
    )
    code, err = stream.run(
        input_subscription=None,
        input_topic=stream.input.topic,
        create_subscription=True,
        output_table=stream.table,
        dead_letter_topic=None,
        stop_after_seconds=4,
    )
    sender.join()
    assert code == 0, err
    assert subscriptions() == [stream.input.subscription]
    close(only(stream.query(stream.table), "row_id", "score"), stream.expected_scores())
    (letter,) = stream.query(f"{stream.table}_dead_letters")
    assert (letter["payload"], letter["reason"]) == (b"not JSON", "invalid_json")


@pytest.mark.parametrize("kind", ["avro", "arrow"])
def test_messages_of_other_formats_are_scored(stream: Stream, kind: str, tmp_path: Path) -> None:
    rows = [row for row in stream.rows[:10] if not has_null(row)]
    flags: dict[str, Any] = {}
    if kind == "avro":
        fields = [{"name": name, "type": "double"} for name in stream.features]
        schema = {"type": "record", "name": "Row", "fields": fields}
        (tmp_path / "row.avsc").write_text(json.dumps(schema))
        flags["avro_schema"] = f"@{tmp_path / 'row.avsc'}"
        bodies = []
        for row in rows:
            out = io.BytesIO()
            fastavro.schemaless_writer(out, fastavro.parse_schema(schema), row)
            bodies.append(out.getvalue())
    else:
        sink = pa.BufferOutputStream()
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write(table)
        bodies = [sink.getvalue().to_pybytes()]
    stream.input.publish([*bodies, b"neither of them"])
    code, err = stream.run(message_format=kind, output_topic=stream.output.topic, **flags)
    assert code == 0, err
    module = torch.jit.load(stream.model / "model.pt")
    with torch.inference_mode():
        values = torch.tensor([list(row.values()) for row in rows], dtype=torch.float32)
        wanted = module(values)[SCORE].tolist()
    ids = list(stream.input.sent)
    expected = ids[:-1] if kind == "avro" else [f"{ids[0]}-{i}" for i in range(len(rows))]
    got = [json.loads(message.data) for message in stream.output.take(len(rows))]
    close(only(got, "row_id", "score"), dict(zip(expected, wanted, strict=True)))
    (letter,) = stream.letters.take(1)
    assert letter.attributes["millrace_reason"] == f"invalid_{kind}"


def avro_schema(names: Iterable[str]) -> dict[str, Any]:
    fields = [{"name": name, "type": "double"} for name in names]
    return {"type": "record", "name": "Row", "fields": fields}


@pytest.mark.parametrize("encoding", ["BINARY", "JSON"])
def test_messages_of_a_topic_with_a_schema_are_read_by_their_revision(
    stream: Stream, encoding: str
) -> None:
    cloud, features = stream.cloud.cloud, stream.features
    rows = [row for row in stream.rows[:10] if not has_null(row)]
    first, second = avro_schema(features), avro_schema([*reversed(features), "more"])
    parent = f"projects/{cloud.project}"
    name = f"{parent}/schemas/rows-{stream.id}"

    def revision(schema: Any) -> dict[str, str]:
        return {"name": name, "type_": "AVRO", "definition": json.dumps(schema)}

    def body(row: Any, schema: Any) -> bytes:
        parsed, out, text = fastavro.parse_schema(schema), io.BytesIO(), io.StringIO()
        fastavro.schemaless_writer(out, parsed, row)
        fastavro.json_writer(text, parsed, [row])
        return out.getvalue() if encoding == "BINARY" else text.getvalue().encode()

    schemas = cloud.schemas()
    schemas.create_schema(parent=parent, schema=revision(first), schema_id=name.rpartition("/")[2])
    stream.input = Mailbox(cloud, f"described-{stream.id}")
    settings = {"schema": name, "encoding": encoding}
    cloud.publisher().create_topic(
        request={"name": stream.input.topic, "schema_settings": settings}
    )
    cloud.subscriber().create_subscription(
        request={"name": stream.input.subscription, "topic": stream.input.topic}
    )
    stream.input.publish([body(row, first) for row in rows[:4]])
    schemas.commit_schema(name=name, schema=revision(second))
    stream.input.publish([body({**row, "more": 1e9}, second) for row in rows[4:]])
    code, err = stream.run(
        message_format="avro",
        avro_schema=json.dumps(first),
        output_topic=stream.output.topic,
    )
    assert code == 0, err
    module = torch.jit.load(stream.model / "model.pt")
    with torch.inference_mode():
        values = torch.tensor([list(row.values()) for row in rows], dtype=torch.float32)
        wanted = module(values)[SCORE].tolist()
    got = [json.loads(message.data) for message in stream.output.take(len(rows))]
    close(only(got, "row_id", "score"), dict(zip(stream.input.sent, wanted, strict=True)))


# How a run ends


@pytest.mark.parametrize(
    ("number", "place"),
    [
        (signal.SIGINT, "here"),
        (signal.SIGTERM, "here"),
        (signal.SIGHUP, "here"),
        (signal.SIGINT, "prism"),
        (signal.SIGTERM, "prism"),
    ],
)
def test_a_signal_ends_a_run_after_its_received_messages_are_written(
    stream: Stream, number: int, place: str
) -> None:
    stream.input.publish(stream.bodies(0, 100))
    flags = stream.flags(
        output_topic=stream.output.topic,
        output_files=stream.folder,
        file_seconds=3_600,
        max_batch_wait_ms=200,
        deduplicate_seconds=600,
        stop_after_seconds=None,
        **runner_flags(place),
    )
    command = [sys.executable, "-m", "pipelines.stream_local", *flags]
    with subprocess.Popen(
        command, cwd=ROOT, env=stream.cloud.environ(), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        # Once a report has latencies, rows are scored.
        wait_for(process, "latency ms")
        stream.input.publish(stream.bodies(100, 500))
        process.send_signal(number)
        err = process.stderr.read()
        assert process.wait(60) == 0, err
    assert STOPPING in err
    assert "balance       rows received = scored + dead letters\n" in err
    written = only(stream.files(), "row_id", "score")
    published = [m.attributes["row_id"] for m in stream.output.take(500)]
    letters = [m.attributes["millrace_row_id"] for m in stream.letters.take(500, seconds=1.5)]
    left = [message.message_id for message in stream.input.take(500, seconds=1.5)]
    assert sorted(written) == sorted(published)
    assert sorted([*published, *letters, *left]) == sorted(stream.input.sent)
    assert len(published) >= 90


# A program that runs a stream and hangs while it writes its first file.
STUCK = """
import os, sys, threading
from pipelines.command import run_and_exit
from pipelines.stream_local import COMMAND
from transforms.files.sink import stream_files

def stuck(*_):
    os.write(2, b"writing\\n")
    threading.Event().wait()

stream_files.open_writer = stuck
run_and_exit(COMMAND, sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_leaves_no_unfinished_file(stream: Stream, number: int) -> None:
    stream.input.publish(stream.bodies(0, 20))
    flags = stream.flags(output_files=stream.folder, file_seconds=1, stop_after_seconds=None)
    with subprocess.Popen(
        [sys.executable, "-c", STUCK, *flags],
        cwd=ROOT,
        env=stream.cloud.environ(),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        wait_for(process, "writing")
        assert len(list(stream.folder.glob("scores/*/.*.parquet-*"))) == 1
        process.send_signal(number)
        wait_for(process, STOPPING)
        process.send_signal(number)
        err = process.stderr.read()
        assert process.wait(60) == 128 + number, err
    assert "20 messages are not acknowledged: they will be delivered again" in err
    assert [path for path in stream.folder.rglob("*") if path.is_file()] == []
    assert len(stream.input.take(20, seconds=15)) == 20


def wait_for(process: subprocess.Popen[str], words: str) -> str:
    """Read standard error up to the line that contains the words, and return that line."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if words in line:
            return line
    raise AssertionError("".join(lines))


def errors(text: str) -> list[str]:
    """Return the lines of a text that report an error."""
    return [line for line in text.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("kind", ["topic", "table"])
def test_a_sink_that_is_deleted_ends_the_run_and_the_next_run_completes_its_work(
    stream: Stream, kind: str
) -> None:
    cloud = stream.cloud.cloud
    flags: dict[str, Any] = {f"output_{kind}": getattr(stream, kind, stream.output.topic)}
    flags |= {"output_files": stream.folder, "file_seconds": 3_600}

    def remove() -> None:
        if kind == "topic":
            cloud.publisher().delete_topic(topic=stream.output.topic)
        else:
            cloud.bigquery().delete_table(stream.table)

    def arrived() -> bool:
        if kind == "topic":
            return bool(stream.output.take(1, seconds=60))
        return len(stream.query(stream.table)) > 0

    stream.input.publish(stream.bodies(0, 50))
    remover = meanwhile(
        lambda: wait_until(lambda: _quietly(arrived)),
        remove,
        lambda: stream.input.publish(stream.bodies(50, 100)),
    )
    code, err = stream.run(**flags, stop_after_seconds=60)
    remover.join()
    assert code == 1, err
    place = stream.output.topic if kind == "topic" else stream.table
    (error,) = errors(err)
    assert error.startswith(
        f"error: {kind} {place} cannot be written"
        if kind == "table"
        else f"error: {kind} {place} cannot be published to"
    )
    assert "ot found" in error
    assert "; check the project" in error
    # The count includes the rows that wait for their file.
    found = r"^(\d+) messages are not acknowledged: they will be delivered again"
    (count,) = re.findall(found, err, re.M)
    assert 50 < int(count) <= 100
    assert stream.files() == []
    if kind == "topic":
        cloud.publisher().create_topic(name=stream.output.topic)
    code, err = stream.run(**flags, stop_after_seconds=2)
    assert code == 0, err
    close(only(stream.files(), "row_id", "score"), stream.expected_scores())
    if kind == "table":
        close(only(stream.query(stream.table), "row_id", "score"), stream.expected_scores())


def _quietly(condition: Callable[[], bool]) -> bool:
    """Return whether a condition holds; it does not if Google's clients raise an error."""
    try:
        return condition()
    except exceptions.GoogleAPIError:
        return False


def test_an_append_is_retried_until_the_server_is_back(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = stream.cloud.bigquery
    stream.input.publish(stream.bodies(0, 30))
    killed, sent = threading.Event(), threading.Event()
    start = DefaultStream.start

    def seen(self: DefaultStream, rows: pa.RecordBatch) -> Append:
        if killed.is_set():
            sent.set()
        return start(self, rows)

    monkeypatch.setattr(DefaultStream, "start", seen)

    def crash() -> None:
        wait_until(lambda: _quietly(lambda: len(stream.query(stream.table)) > 0))
        server.kill()
        killed.set()
        try:
            stream.input.publish([*stream.bodies(30, 60), b"not JSON"])
            # The run sends rows to the server, which does not respond.
            assert sent.wait(60)
        finally:
            server.start()

    killer = meanwhile(crash)
    # The client of BigQuery waits some seconds before it asks again for a table that is missing.
    code, err = stream.run(output_table=stream.table, stop_after_seconds=20)
    killer.join()
    assert sent.is_set()
    assert code == 0, err
    assert "messages                61  of which 61 were decoded" in err
    rows = stream.query(stream.table)
    # Delivery is at least once: an append whose response is lost is sent again.
    close({row["row_id"]: row["score"] for row in rows}, stream.expected_scores())


# Errors before a run starts


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            {"input_subscription": None, "model": None, "dead_letter_topic": None},
            "missing --input_subscription (or --input_topic), --model, --output_topic (or ",
        ),
        (
            {},
            "missing --output_topic (or --output_table, --output_files); "
            "for example: python -m pipelines.stream_local --input_subscription ",
        ),
        ({"output_topic": "out"}, "--output_topic must be projects/PROJECT/topics/NAME, got out"),
        ({"output_topic": "OUT", "runner": "SparkRunner"}, "SparkRunner cannot read a stream from"),
        ({"output_topic": "DEAD"}, "choose another topic for one of them"),
        (
            {"output_table": "some-p.d.t", "dead_letter_table": "some-p.d.t"},
            "--dead_letter_table and --output_table are both some-p.d.t: choose another table",
        ),
        (
            {"output_topic": "OUT", "cluster_by": "row_id"},
            "--cluster_by has no effect without --output_table",
        ),
        (
            {"output_topic": "OUT", "message_format": "avro"},
            "avro needs --avro_schema",
        ),
        (
            {"output_topic": "OUT", "avro_schema": "{}"},
            "--avro_schema needs --message_format avro, got json",
        ),
        (
            {"output_topic": "OUT", "message_format": "avro", "avro_schema": '"double"'},
            "--avro_schema: expected the schema of a record",
        ),
        (
            {
                "output_topic": "OUT",
                "message_format": "avro",
                "avro_schema": '{"type":"record","name":"r","fields":[]}',
            },
            "--avro_schema lacks the feature 'Time' of model pytorch-autoencoder, and has no array",
        ),
        (
            {"output_topic": "OUT", "output_schema": "reference", "output_fields": "encoded"},
            "--output_fields has no effect with --output_schema, which sets the fields itself",
        ),
        ({"output_topic": "OUT", "output_fields": "sequence"}, "'sequence' is always written"),
        (
            {"output_topic": "OUT", "deduplicate_attribute": "event"},
            "--deduplicate_attribute has no effect here without --deduplicate_seconds",
        ),
        (
            {"output_topic": "OUT", "outputtopic": "x"},
            "unknown flag --outputtopic (did you mean '",
        ),
        (
            {"output_topic": "OUT", "input_topic": "IN"},
            "--input_subscription and --input_topic cannot be combined: use only one of them",
        ),
        (
            {"output_topic": "OUT", "create_subscription": "true"},
            "--create_subscription has no effect without --input_topic",
        ),
        (
            {"output_topic": "IN"},
            "and also an output: each result would be scored again, without end",
        ),
    ],
)
def test_wrong_flags_are_reported_in_one_line_and_nothing_is_read(
    stream: Stream, flags: Mapping[str, Any], words: str
) -> None:
    names = {"IN": stream.input.topic, "OUT": stream.output.topic, "DEAD": stream.letters.topic}
    stream.input.publish([b"{}"])
    code, err = stream.run(**{name: names.get(value, value) for name, value in flags.items()})
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: ")
    assert words in err
    assert len(stream.input.take(1)) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"output_topic": "MISSING"}, "cannot be published to: Topic not found; check the project"),
        ({"dead_letter_topic": "MISSING"}, "cannot be published to: Topic not found; check the"),
        ({"output_table": "some-p.missing.t"}, "table some-p.missing.t cannot be written: "),
        (
            {"output_files": "FILE"},
            "file/scores cannot be created: Not a directory; choose",
        ),
        (
            {"output_files": "gs://missing-bucket/x"},
            "folder gs://missing-bucket/x/scores cannot be",
        ),
        ({"input_subscription": "MISSING"}, "cannot be read: Subscription does not exist"),
        ({"model": "/nowhere"}, "/nowhere"),
    ],
)
def test_missing_resources_are_reported_before_anything_is_read(
    stream: Stream, flags: Mapping[str, Any], words: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    project = stream.cloud.cloud.project
    kind = "subscriptions" if "input_subscription" in flags else "topics"
    names: dict[str, Any] = {
        "MISSING": f"projects/{project}/{kind}/missing",
        "FILE": tmp_path / "file",
    }
    stream.input.publish([b"{}"])
    given: Any = {"output_topic": stream.output.topic} | dict(flags)
    code, err = stream.run(**{name: names.get(value, value) for name, value in given.items()})
    assert (code, err.count("\n")) == (1, 1)
    assert words in err
    assert len(stream.input.take(1)) == 1


def test_a_run_waits_for_messages_that_a_killed_reader_holds(stream: Stream) -> None:
    stream.input.publish(stream.bodies(0, 20))
    stream.input.hold(20, 15)
    code, err = stream.run(output_topic=stream.output.topic)
    assert code == 0
    assert "s more, because a reader that was killed may hold messages" in err
    assert "no message arrived within" not in err.splitlines()[-1]
    assert len(stream.output.take(20)) == 20


@pytest.mark.parametrize("labels", [True, False])
def test_after_a_kill_the_next_stream_gets_the_messages_that_the_killed_one_held(
    stream: Stream,
    labelled_emulators: LocalCloud,
    monkeypatch: pytest.MonkeyPatch,
    labels: bool,
) -> None:
    cloud = labelled_emulators if labels else stream.cloud
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    stream.input.publish(stream.bodies(0, 100))
    # The rows wait for their file, so no message is acknowledged yet.
    given: dict[str, Any] = {"output_files": stream.folder, "file_seconds": 3_600, "run_id": "r"}
    flags = stream.flags(**given, stop_after_seconds=None)
    command = [sys.executable, "-m", "pipelines.stream_local", *flags]
    with subprocess.Popen(
        command, cwd=ROOT, env=cloud.environ(), stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(process, "latency ms")
        process.kill()
    assert stream.files() == []
    code, err = stream.run(**given, stop_after_seconds=3)
    assert code == 0, err
    assert "s more, because a reader that was killed may hold messages" in err
    letters = [message.attributes["millrace_row_id"] for message in stream.letters.take(100)]
    # The killed run may have written dead letters whose messages are delivered again.
    assert {row["row_id"] for row in stream.files()} | set(letters) == set(stream.input.sent)
    close(only(stream.files(), "row_id", "score"), stream.expected_scores())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_for_messages_of_a_killed_reader(
    stream: Stream, number: int
) -> None:
    flags = stream.flags(output_topic=stream.output.topic)
    command = [sys.executable, "-m", "pipelines.stream_local", *flags]
    with subprocess.Popen(
        command, cwd=ROOT, env=stream.cloud.environ(), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        wait_for(process, "s more, because a reader that was killed may hold messages")
        process.send_signal(number)
        err = process.stderr.read()
        assert process.wait(60) == 0, err
    assert STOPPING in err
    found = re.fullmatch(r"no message arrived within (\d+) s", err.splitlines()[-1])
    assert found is not None
    assert int(found[1]) < lease.DEADLINE_SECONDS


def test_a_stream_without_messages_waits_only_as_long_as_they_may_be_held(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "DEADLINE_SECONDS", 3)
    # The subscription's own deadline is 10 s.
    code, err = stream.run(output_topic=stream.output.topic)
    lines = err.splitlines()
    assert code == 0
    (waiting,) = [line for line in lines if "waiting" in line]
    assert waiting.endswith("may hold messages for that long (Ctrl-C stops)")
    found = re.fullmatch(r"no message arrived within (\d+) s", lines[-1])
    assert found is not None
    assert 10 <= int(found[1]) < 60
