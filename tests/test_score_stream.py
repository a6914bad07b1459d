"""The graph of a stream: every message becomes a row or a dead letter, whatever the others are."""

import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow.parquet as pq
import pytest
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns
from apache_beam.portability.api.org.apache.beam.model.pipeline.v1.beam_runner_api_pb2 import (
    GroupIntoBatchesPayload,
    PubSubReadPayload,
)
from apache_beam.portability.api.org.apache.beam.model.pipeline.v1.beam_runner_api_pb2 import (
    Pipeline as RunnerPipeline,
)
from apache_beam.testing.test_stream import TestStream as Script
from apache_beam.transforms.window import TimestampedValue
from hypothesis import given, settings
from hypothesis import strategies as st
from property_tests import examples

from cloud.clients import Cloud
from cloud.endpoints import Endpoints
from model_handlers.manifests.manifest import Manifest
from model_handlers.torch_model import TorchModelHandler
from pipelines.stream.graph import WAIT_MS, ScoreStream, StreamSinks
from pipelines.stream.progress import start_tally, summary
from transforms.bigquery.schema import TableName
from transforms.encode import output_schema
from transforms.json_rows.row_format import RowFormat
from transforms.messages.beam_source import ReadMessages
from transforms.messages.decode import MessageFormat
from transforms.messages.message import Message, serialize
from transforms.output_fields import OutputFields, choose_fields
from transforms.provenance import Provenance
from transforms.row_schemas import CARRIED, DECODED_AT, PREDICT_STARTED_AT, REQUESTED_AT

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

Make = Callable[..., Any]


class Scored:
    """The rows and dead letters that a run wrote into a folder, and its summary."""

    def __init__(self, folder: Path, summary: str) -> None:
        tables = [pq.read_table(path) for path in (folder / "scores").glob("*/*.parquet")]
        self.rows = [row for table in tables for row in table.to_pylist()]
        lines = [p.read_text() for p in (folder / "dead_letters").glob("*/*.jsonl")]
        self.letters = [json.loads(line) for text in lines for line in text.splitlines()]
        self.summary = summary

    @property
    def ids(self) -> list[str]:
        return sorted(record["row_id"] for record in (*self.rows, *self.letters))

    @property
    def reasons(self) -> Counter[tuple[str, str]]:
        return Counter((letter["stage"], letter["reason"]) for letter in self.letters)


Run = Callable[..., Scored]


@pytest.fixture(scope="session")
def run(
    tiny_package: tuple[str, Manifest],
    provenance: Provenance,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    path, manifest = tiny_package

    def score(
        source: beam.PTransform,
        runner: str = "FnApiRunner",
        change: Callable[[OutputFields], OutputFields] = lambda fields: fields,
        **given: Any,
    ) -> Scored:
        folder = tmp_path_factory.mktemp("run")
        fields = change(choose_fields(manifest, given.pop("output_fields", None), stream=True))
        read = MessageFormat(RowFormat(manifest, None, fields.source, CARRIED))
        handler = TorchModelHandler(path, manifest, outputs=fields.needed)
        graph = ScoreStream(
            source=source,
            message_format=read,
            handler=handler,
            manifest=manifest,
            fields=fields,
            provenance=provenance,
            schema=output_schema(fields, manifest, provenance, None),
            cloud=Cloud("some-project", Endpoints()),
            sinks=StreamSinks(folder=str(folder / "scores"), file_seconds=3_600),
            failure_sinks=StreamSinks(folder=str(folder / "dead_letters"), file_seconds=3_600),
            **given,
        )
        tally = start_tally()
        streaming = runner != "FnApiRunner"
        with beam.Pipeline(runner, PipelineOptions(streaming=streaming)) as pipeline:
            pipeline | graph
        return Scored(folder, summary(tally, 1.0))

    return score


def raw(number: int, body: Any) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return serialize(Message(data, {}, f"m{number}", 1_700_000_000_000_000 + number, ""))


def create(bodies: Iterable[Any]) -> beam.PTransform:
    return beam.Create([raw(i, body) for i, body in enumerate(bodies)])


GOOD = {"a": 1.0, "b": 2.0, "c": 3.0}
LOST = [
    (b"not JSON", ("decode", "invalid_json")),
    (b"", ("decode", "empty_message")),
    ({"a": 1, "b": 2}, ("decode", "missing_feature")),
    ({**GOOD, "c": None}, ("validate", "null")),
    ({**GOOD, "c": 1e39}, ("validate", "not_finite")),
    ({**GOOD, "a": -7}, ("infer", "model_error")),
    ({**GOOD, "b": -7}, ("infer", "not_finite_score")),
]


def test_a_bad_message_of_any_kind_does_not_affect_others(run: Run) -> None:
    bodies = [body for lost, _ in LOST for body in (GOOD, lost, {"features": [1, 2, 3]})]
    scored = run(create(bodies))
    assert scored.ids == sorted(f"m{i}" for i in range(len(bodies)))
    assert {row["row_id"] for row in scored.rows} == {f"m{i}" for i in range(21) if i % 3 != 1}
    assert {row["score"] for row in scored.rows} == {6.0}
    found = {letter["row_id"]: (letter["stage"], letter["reason"]) for letter in scored.letters}
    assert found == {f"m{3 * i + 1}": reason for i, (_, reason) in enumerate(LOST)}
    for letter in scored.letters:
        body = bodies[int(letter["row_id"][1:])]
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        assert letter["payload"].encode() == sent
    assert "balance       rows received = scored + dead letters" in scored.summary
    assert re.search(r"bundles +1  of 21.0 messages, at most 21\n", scored.summary)
    assert re.search(r"batches +1  of 16.0 rows, at most 16\n", scored.summary)
    assert re.search(
        r"mean ms +decode \d+\.\d\d, model \d+\.\d\d, files \d+\.\d\d\n", scored.summary
    )


VALUES = st.sampled_from([1.0, -7.0, 0.0, None, 1e39, "x", True])
BODIES = st.one_of(
    st.fixed_dictionaries({"a": VALUES, "b": VALUES, "c": VALUES}),
    st.lists(VALUES, min_size=2, max_size=4).map(lambda values: {"features": values}),
    st.binary(max_size=5),
)


@settings(max_examples=examples(15))
@given(bodies=st.lists(BODIES, max_size=12))
def test_every_message_becomes_a_row_or_a_dead_letter(run: Run, bodies: list[Any]) -> None:
    scored = run(create(bodies))
    assert scored.ids == sorted(f"m{i}" for i in range(len(bodies)))
    assert all(math.isfinite(row["score"]) for row in scored.rows)
    assert f"received      {len(bodies):>12}" in scored.summary
    assert f"scored        {len(scored.rows):>12}" in scored.summary
    assert f"dead letters  {len(scored.letters):>12}" in scored.summary
    assert "balance       rows received = scored + dead letters" in scored.summary


def test_bundles_are_scored_one_by_one(run: Run) -> None:
    source = Script()
    for start in range(0, 60, 20):
        # Beam's source for that runner returns objects instead of bytes.
        messages = [raw(i, GOOD if i % 10 else b"{") for i in range(start, start + 20)]
        source = source.add_elements(map(PubsubMessage._from_proto_str, messages))
    scored = run(source.advance_watermark_to_infinity(), "BundleBasedDirectRunner")
    assert scored.ids == sorted(f"m{i}" for i in range(60))
    assert scored.reasons == {("decode", "invalid_json"): 6}


@pytest.mark.slow
def test_messages_are_deduplicated_and_gathered_before_they_are_scored(run: Run) -> None:
    bodies = [GOOD] * 30
    twice = [raw(i, body) for i, body in enumerate(bodies)] * 2
    scored = run(beam.Create(twice), deduplicate_seconds=600, max_batch_wait_ms=100)
    assert scored.ids == sorted(f"m{i}" for i in range(30))


def test_messages_that_wait_or_arrive_twice_are_scored_once(run: Run) -> None:
    messages = [raw(i, GOOD if i % 10 else b"{") for i in range(40)]
    # The clock of a script starts at zero, but timers are set by the clock of the machine.
    source = (
        Script()
        .add_elements(messages[:25])
        .advance_processing_time(int(time.time()) + 5)
        .add_elements(messages[15:])
        .advance_processing_time(5)
        .add_elements(messages[:5])
        .advance_watermark_to_infinity()
    )
    given = {"deduplicate_seconds": 100_000, "max_batch_wait_ms": 100}
    scored = run(source, "BundleBasedDirectRunner", **given)
    assert scored.ids == sorted(f"m{i}" for i in range(40))
    assert scored.reasons == {("decode", "invalid_json"): 4}
    assert "balance       rows received = scored + dead letters" in scored.summary


def test_messages_far_behind_the_watermark_are_scored_like_all_others(run: Run) -> None:
    source = (
        Script()
        .add_elements([raw(0, GOOD)])
        .advance_watermark_to(int(time.time()))
        .add_elements([TimestampedValue(raw(1, GOOD), 5), TimestampedValue(raw(2, b"{"), 5)])
        .advance_watermark_to_infinity()
    )
    scored = run(source, "BundleBasedDirectRunner")
    assert scored.ids == ["m0", "m1", "m2"]


def service_graph(
    package: tuple[str, Manifest],
    provenance: Provenance,
    attribute: str | None = None,
    **given: Any,
) -> RunnerPipeline:
    """Return the graph of a stream as a service receives it."""
    path, manifest = package
    fields = choose_fields(manifest, stream=True)
    table = TableName("some-project", "d", "t")
    sinks = StreamSinks("projects/some-project/topics/out", table, "gs://bucket/out", 300)
    pipeline = beam.Pipeline(options=PipelineOptions(streaming=True))
    pipeline | ScoreStream(
        source=ReadMessages("projects/some-project/subscriptions/in-sub", attribute),
        message_format=MessageFormat(RowFormat(manifest, None, (), CARRIED)),
        handler=TorchModelHandler(path, manifest, outputs=fields.needed),
        manifest=manifest,
        fields=fields,
        provenance=provenance,
        schema=output_schema(fields, manifest, provenance, None),
        cloud=Cloud("some-project", Endpoints()),
        sinks=sinks,
        failure_sinks=sinks,
        **given,
    )
    return pipeline.to_runner_api()


def payloads(proto: RunnerPipeline, urn: str) -> list[bytes]:
    """Return the payloads of the steps of a kind."""
    specs = [step.spec for step in proto.components.transforms.values()]
    return [spec.payload for spec in specs if spec.urn == urn]


def test_the_graph_can_be_sent_to_a_service(
    tiny_package: tuple[str, Manifest], provenance: Provenance
) -> None:
    given = {"deduplicate_seconds": 60, "max_batch_wait_ms": 100}
    proto = service_graph(tiny_package, provenance, "event", **given)
    (read,) = payloads(proto, common_urns.composites.PUBSUB_READ.urn)
    payload = PubSubReadPayload.FromString(read)
    assert payload.id_attribute == "event"
    # With attributes, a service delivers whole messages, including ids and times.
    assert payload.subscription == "projects/some-project/subscriptions/in-sub"
    assert payload.with_attributes
    back = beam.Pipeline.from_runner_api(proto, "FnApiRunner", PipelineOptions())
    assert back.to_runner_api().components.transforms.keys() == proto.components.transforms.keys()


@pytest.mark.parametrize(
    ("given", "wait_ms"),
    [
        ({"deduplicate_seconds": 60}, {WAIT_MS}),
        ({"deduplicate_seconds": 60, "max_batch_wait_ms": 7}, {7}),
        ({}, set()),
    ],
)
def test_after_duplicates_are_dropped_messages_are_always_gathered(
    tiny_package: tuple[str, Manifest],
    provenance: Provenance,
    given: dict[str, Any],
    wait_ms: set[int],
) -> None:
    # Behind the step that drops duplicates, Dataflow makes a bundle of each message.
    proto = service_graph(tiny_package, provenance, **given)
    urn = common_urns.composites.GROUP_INTO_BATCHES_WITH_SHARDED_KEY.urn
    found = map(GroupIntoBatchesPayload.FromString, payloads(proto, urn))
    names = [one.unique_name for one in proto.components.transforms.values()]
    assert {group.max_buffering_duration_millis for group in found} == wait_ms
    assert any(name.startswith("ScoreStream/Gather/") for name in names) == bool(wait_ms)


@pytest.mark.parametrize("seconds", [None, 60])
def test_windows_are_only_written_if_they_are_requested(run: Run, seconds: int | None) -> None:
    bodies = [{**GOOD, "test_id": "", "sequence": 0, "city": "Ulm"}]
    scored = run(
        create(bodies),
        change=lambda fields: replace(fields, window_seconds=seconds),
        output_fields=("code", "city", "b"),
    )
    (row,) = scored.rows
    assert (row["test_id"], row["sequence"], row["city"], row["b"]) == ("", 0, "Ulm", 2.0)
    assert row["event_time"].timestamp() == 1_700_000_000
    assert row["event_time"] <= row["received_at"] <= row["scored_at"]
    window = {name: row[name].timestamp() for name in ("window_start", "window_end") if name in row}
    start = 1_700_000_000 // 60 * 60
    assert window == ({"window_start": start, "window_end": start + 60} if seconds else {})


@pytest.mark.parametrize("started", [PREDICT_STARTED_AT, REQUESTED_AT])
def test_rows_have_the_times_of_the_steps_in_their_order(run: Run, started: str) -> None:
    timings = (DECODED_AT, started)
    scored = run(create([GOOD] * 3), change=lambda fields: replace(fields, timings=timings))
    for row in scored.rows:
        times = [row[name] for name in ("received_at", *timings, "scored_at")]
        assert times == sorted(times)
    assert len({row[DECODED_AT] for row in scored.rows}) == 1


def test_rows_have_no_times_of_steps_unless_they_are_requested(run: Run) -> None:
    scored = run(create([GOOD]))
    assert {DECODED_AT, PREDICT_STARTED_AT, REQUESTED_AT}.isdisjoint(scored.rows[0])
