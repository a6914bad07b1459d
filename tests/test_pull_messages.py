"""The source of streams on other runners than Dataflow: it acknowledges what is done, once."""

import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.utils.timestamp import Timestamp
from google.api_core import exceptions
from prism_runner import prism_flags
from waiting import wait_until

from cloud.clients import Cloud
from cloud.endpoints import Endpoints
from common.errors import BalanceError, InputError, OutputError, RunnerError
from common.interrupts import Background
from examples.local_cloud import LocalCloud
from pipelines.batch.elsewhere import run_elsewhere
from pipelines.batch.in_process import silent_workers
from transforms.bundles import Bundle, begin_bundle, current_bundle
from transforms.files.sink.spans import WriteSpans
from transforms.files.sink.stream_files import StreamFiles
from transforms.messages import ahead, pull
from transforms.messages import intake as intake_module
from transforms.messages.intake import Intake, PullOptions, intake_of, open_intake
from transforms.messages.lease import Lease
from transforms.messages.message import Message, parse_message, serialize
from transforms.messages.pull import _END, _READ, PullMessages, _Endless, _PullDoFn, _Reading

# The intake of a process


class Leased:
    """A lease whose messages are given by hand."""

    def __init__(self) -> None:
        self.waiting: list[tuple[str, bytes]] = []
        self.acknowledged: list[str] = []
        self.returned: list[str] = []
        self.error: Exception | None = None
        self.refusal: Exception | None = None

    def add(self, *names: str, size: int = 1) -> None:
        self.waiting = [*self.waiting, *((name, b"x" * size) for name in names)]

    def receive(self) -> list[tuple[str, bytes]] | None:
        if self.error is not None:
            raise self.error
        found, self.waiting = self.waiting, []
        if not found:
            time.sleep(0.01)
        return found or None

    def acknowledge(self, ids: Iterable[str]) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.acknowledged += ids

    def give_back(self, ids: Iterable[str]) -> None:
        self.returned += ids

    def stop(self) -> None:
        self.waiting = []

    def renew(self) -> None: ...
    def renew_new(self) -> None: ...
    def release(self) -> None: ...


@contextmanager
def intake_with(**given: Any) -> Iterator[tuple[Intake, Leased]]:
    lease = Leased()
    options = PullOptions(cloud=Cloud("p", Endpoints()), subscription="s", run="r", **given)
    intake = Intake(options, lease)  # type: ignore[arg-type]
    intake.serve(0)
    yield intake, lease
    intake.close()


def names(found: list[tuple[str, bytes]] | None) -> list[str]:
    assert found is not None
    return [name for name, _ in found]


def test_messages_pulled_ahead_are_limited_by_number_and_by_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ahead, "BUNDLE_MESSAGES", 4)
    monkeypatch.setattr(ahead, "BUNDLE_BYTES", 100)
    sizes = {"a": 60, "b": 60, "c": 1_000, "d": 1, "e": 1, "f": 1, "g": 1, "h": 1}
    with intake_with(wait_seconds=60.0, wait_messages=4) as (intake, lease):
        lease.waiting = [(name, b"x" * n) for name, n in sizes.items()]
        bundles = [names(intake.take(10)) for _ in range(3)]
        wait_until(lambda: len(intake._ahead._messages) == 1)
        assert bundles == [["a", "b"], ["c"], ["d", "e", "f", "g"]]


def test_a_message_waits_for_others_until_there_are_enough_or_its_time_is_over() -> None:
    with intake_with(wait_seconds=0.2, wait_messages=3) as (intake, lease):
        lease.add("a")
        wait_until(lambda: intake._ahead._messages)
        lease.add("b")
        assert names(intake.take(10)) == ["a", "b"]
    with intake_with(wait_seconds=60.0, wait_messages=3) as (intake, lease):
        lease.add("a", "b", "c")
        assert names(intake.take(10)) == ["a", "b", "c"]


def test_after_the_end_no_message_is_returned_and_waiting_ones_are_not_acknowledged() -> None:
    with intake_with() as (intake, lease):
        lease.add("a")
        assert names(intake.take(10)) == ["a"]
        lease.add("b")
        wait_until(lambda: not lease.waiting)
        intake.end()
        assert intake.take(10) is None
        assert (intake.given, intake.unfinished, lease.acknowledged) == (1, 1, [])
        intake.finish()
        assert (intake.unfinished, lease.acknowledged) == (0, ["a"])


def test_a_duplicate_is_dropped_and_acknowledged_as_long_as_its_id_is_remembered() -> None:
    with intake_with(remember_seconds=0.5) as (intake, lease):
        lease.add("a", "b", "a")
        assert names(intake.take(10)) == ["a", "b"]
        lease.add("b", "c")
        assert names(intake.take(10)) == ["c"]
        wait_until(lambda: lease.acknowledged == ["a", "b"])
        assert (intake.given, intake.dropped) == (3, 2)
        time.sleep(0.5)
        lease.add("a")
        assert names(intake.take(10)) == ["a"]


def test_an_attribute_identifies_messages_that_a_publisher_sends_again() -> None:
    def message(name: str, event: str | None) -> tuple[str, bytes]:
        attributes = {} if event is None else {"event": event}
        return name, serialize(Message(b"{}", attributes, name, 0, ""))

    with intake_with(remember_seconds=60.0, remember_attribute="event") as (intake, lease):
        lease.waiting = [
            message("1", "a"),
            message("2", "a"),
            message("3", None),
            message("4", "3"),
        ]
        assert names(intake.take(10)) == ["1", "3", "4"]
        wait_until(lambda: lease.acknowledged == ["2"])
        # The first message has failed and is delivered again.
        intake.give_back(["1"])
        lease.waiting = [message("1", "a"), message("5", "3")]
        assert names(intake.take(10)) == ["1"]


def test_without_memory_of_ids_every_message_is_given() -> None:
    with intake_with() as (intake, lease):
        lease.add("a", "a")
        assert names(intake.take(10)) == ["a", "a"]
        assert (intake.given, intake.dropped) == (2, 0)


def test_a_stream_ends_after_its_time_without_a_message() -> None:
    with intake_with(stop_after_seconds=0.3, hidden_seconds=3600.0) as (intake, lease):
        lease.add("a")
        assert names(intake.take(10)) == ["a"]
        wait_until(lambda: intake.take(10) is None)


def test_the_time_for_which_the_process_was_stopped_does_not_end_a_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intake_module, "_STOPPED_SECONDS", 0.1)
    with intake_with(stop_after_seconds=0.2, hidden_seconds=0.0) as (intake, _):
        take = intake._ahead.take

        def stopped(*limits: Any) -> list[tuple[str, bytes]]:
            time.sleep(0.5)
            return take(*limits)

        with monkeypatch.context() as patched:
            patched.setattr(intake._ahead, "take", stopped)
            assert [intake.take(10) for _ in range(3)] == [[], [], []]
        wait_until(lambda: intake.take(10) is None)


@pytest.mark.slow
def test_a_stream_without_any_message_waits_longer_and_says_until_when() -> None:
    with intake_with(stop_after_seconds=0.1, hidden_seconds=0.5) as (intake, _):
        assert intake.take(10) == []
        wait_until(lambda: intake.take(10) is None)
        assert intake.waits_until is not None
        assert intake.quiet_seconds > 0.5


def test_the_time_without_a_message_does_not_begin_before_the_pipeline_is_ready() -> None:
    with intake_with(stop_after_seconds=0.01, hidden_seconds=0.0) as (intake, _):
        assert intake.quiet_seconds == 0
        time.sleep(0.02)
        assert intake.take(0) == []


def test_an_error_of_the_subscription_is_raised_by_every_call() -> None:
    with intake_with() as (intake, lease):
        lease.error = InputError("subscription s cannot be read: gone")
        for _ in range(3):
            with pytest.raises(InputError, match="gone"):
                intake.take(10)


def test_messages_that_cannot_be_acknowledged_end_the_run_and_do_not_count_as_done() -> None:
    with intake_with() as (intake, lease):
        lease.refusal = InputError("messages of s cannot be acknowledged: denied")
        lease.add("a")
        assert names(intake.take(10)) == ["a"]
        intake.acknowledge(["a"])
        with pytest.raises(InputError, match="denied"):
            intake.take(10)
        assert (lease.acknowledged, intake.unfinished) == ([], 1)


@pytest.mark.slow
def test_the_run_of_a_worker_ends_with_the_process_that_started_the_worker() -> None:
    options = PullOptions(cloud=Cloud("p", Endpoints()), subscription="s", run="r")
    intake = Intake(options, Leased(), parent=0)  # type: ignore[arg-type]
    with pytest.raises(RunnerError, match="the process that started the stream has ended"):
        wait_until(lambda: intake.take(0.1))


def test_an_intake_stays_in_its_process() -> None:
    with intake_with() as (intake, _), pytest.raises(TypeError, match="stays in its process"):
        intake.__reduce__()


# Bundles


def test_a_bundle_is_acknowledged_when_it_is_final_and_no_sink_holds_it() -> None:
    with intake_with() as (intake, lease):
        first, second = Bundle(intake), Bundle(intake)
        for bundle, name in ((first, "a"), (second, "b")):
            bundle.ids, bundle.decoded = [name], 1
        first.hold()
        first.hold()
        first.finalize()
        second.hold()
        second.release()
        first.release()
        time.sleep(0.2)
        assert lease.acknowledged == []
        first.release()
        wait_until(lambda: lease.acknowledged == ["a"])
        second.finalize()
        wait_until(lambda: lease.acknowledged == ["a", "b"])
        # A runner that ends a step for good must not give done messages back.
        second.abandon()
        assert lease.returned == []


@pytest.mark.parametrize("decoded", [1, 3])
def test_a_bundle_whose_messages_are_not_all_decoded_ends_the_run(decoded: int) -> None:
    with intake_with() as (intake, lease):
        bundle = Bundle(intake)
        bundle.ids, bundle.decoded = ["a", "b"], decoded
        bundle.finalize()
        with pytest.raises(BalanceError, match=f"2 were pulled, {decoded} were decoded"):
            intake.take(0)
        assert lease.acknowledged == []


def test_messages_of_a_failed_bundle_are_given_back_and_are_no_duplicates_then() -> None:
    with intake_with(remember_seconds=60.0) as (intake, lease):
        lease.add("a")
        bundle = Bundle(intake)
        bundle.ids = names(intake.take(10))
        bundle.abandon()
        assert (lease.returned, intake.unfinished) == (["a"], 1)
        lease.add("a")
        assert names(intake.take(10)) == ["a"]


def test_a_reader_is_never_split_and_passes_on_its_work_once() -> None:
    reading = _Reading(True)
    assert reading.try_claim(_READ)
    assert reading.try_split(0.5) is None
    assert reading.try_split(0) == (False, True)
    assert reading.try_split(0) is None
    assert not reading.try_claim(_READ)
    reading.check_done()
    ending = _Reading(True)
    with pytest.raises(ValueError, match="ended before its stream"):
        ending.check_done()
    assert ending.try_claim(_END)
    ending.check_done()
    assert ending.try_split(0) is None


def test_a_reader_has_nothing_left_to_read_once_the_pipeline_is_drained() -> None:
    provider: RestrictionProvider = _Endless()
    assert provider.truncate(0, True) is None


def test_the_watermark_follows_the_clock_and_messages_are_never_behind_it() -> None:
    class Tracker(_Reading):
        def defer_remainder(self, _: Any) -> None:
            self.try_split(0)

    with intake_with() as (intake, lease):
        lease.add("a")
        dofn = _PullDoFn(PullOptions(cloud=Cloud("p", Endpoints()), subscription="s", run="r"))
        dofn._intake = intake
        dofn.start_bundle()
        watermark, finalizer = ManualWatermarkEstimator(None), SimpleNamespace(register=id)
        before = Timestamp.now()
        [messages] = dofn.process(0, finalizer, Tracker(True), watermark)
        assert messages.value == [b"x"]
        assert before <= messages.timestamp == watermark.current_watermark() <= Timestamp.now()


# In pipelines, on the emulator

SEEN: list[str] = []
FAILING: set[str] = set()


def note(element: list[bytes]) -> list[str]:
    """Return the texts of messages, and add them to SEEN; raise an error for those in FAILING."""
    texts = [parse_message(one).data.decode() for one in element]
    if FAILING.intersection(texts):
        raise ValueError(f"cannot process {texts}")
    bundle = current_bundle()
    assert bundle is not None
    bundle.decoded += len(texts)
    SEEN.extend(texts)
    return texts


@pytest.fixture
def mailbox(stream_emulators: LocalCloud) -> tuple[Cloud, str]:
    """A Cloud, and the name of a topic and its subscription."""
    SEEN.clear()
    FAILING.clear()
    cloud, name = stream_emulators.cloud, f"t{uuid.uuid4().hex}"
    cloud.publisher().create_topic(name=topic_of(cloud, name))
    cloud.subscriber().create_subscription(
        name=subscription_of(cloud, name), topic=topic_of(cloud, name), ack_deadline_seconds=10
    )
    return cloud, name


def topic_of(cloud: Cloud, name: str) -> str:
    return f"projects/{cloud.project}/topics/{name}"


def subscription_of(cloud: Cloud, name: str) -> str:
    return f"projects/{cloud.project}/subscriptions/{name}"


def publish(cloud: Cloud, name: str, texts: Iterable[str]) -> None:
    messages = [{"data": text.encode()} for text in texts]
    for start in range(0, len(messages), 1000):
        cloud.publisher().publish(
            topic=topic_of(cloud, name), messages=messages[start : start + 1000]
        )


def left(cloud: Cloud, name: str, seconds: float = 2.0) -> list[str]:
    """Return the texts that another reader receives from the subscription now."""
    found: list[str] = []
    while True:
        try:
            pulled = cloud.subscriber().pull(
                subscription=subscription_of(cloud, name),
                max_messages=1000,
                timeout=seconds,
                retry=None,
            )
        except exceptions.DeadlineExceeded:
            return found
        if not pulled.received_messages:
            return found
        found += [m.message.data.decode() for m in pulled.received_messages]


def options_for(cloud: Cloud, name: str, **given: Any) -> PullOptions:
    subscription = subscription_of(cloud, name)
    return PullOptions(cloud=cloud, subscription=subscription, run=uuid.uuid4().hex, **given)


@contextmanager
def running(
    cloud: Cloud, name: str, step: Any, readers: int = 1
) -> Iterator[tuple[Intake, Future[Any]]]:
    """Run a step on the messages of a subscription; yield its intake, and a future of its end."""
    options = options_for(cloud, name)
    pipeline = beam.Pipeline("FnApiRunner", PipelineOptions([], streaming=True))
    pipeline | PullMessages(options, readers) | step
    with silent_workers(), open_intake(options) as intake, ThreadPoolExecutor(1) as executor:
        ended = executor.submit(pipeline.run)
        try:
            yield intake, ended
        finally:
            intake.end()


@pytest.mark.parametrize("readers", [1, 3])
def test_every_message_is_processed_once_and_acknowledged(
    mailbox: tuple[Cloud, str], readers: int
) -> None:
    cloud, name = mailbox
    texts = [f"m{i}" for i in range(2_500)]
    publish(cloud, name, texts[:1_500])
    with running(cloud, name, beam.FlatMap(note), readers) as (intake, ended):
        publish(cloud, name, texts[1_500:])
        # All messages are acknowledged while the stream runs, not only at its end.
        wait_until(lambda: len(SEEN) == 2_500 and intake.unfinished == 0)
        assert len(intake._pullers) == readers
        intake.end()
        ended.result(60)
    assert Counter(SEEN) == Counter(texts)
    assert left(cloud, name) == []


def test_a_clock_that_is_set_back_does_not_end_the_stream(
    mailbox: tuple[Cloud, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(Timestamp):
        set_back = 0

        @classmethod
        def now(cls) -> Timestamp:
            return Timestamp.now() - cls.set_back

    monkeypatch.setattr(pull, "Timestamp", Clock)
    cloud, name = mailbox
    publish(cloud, name, ["before"])
    with running(cloud, name, beam.FlatMap(note)) as (intake, ended):
        wait_until(lambda: SEEN == ["before"] and intake.unfinished == 0)
        Clock.set_back = 3_600
        publish(cloud, name, ["after"])
        wait_until(lambda: ended.done() or (len(SEEN) == 2 and intake.unfinished == 0))
        intake.end()
        ended.result(60)
    assert SEEN == ["before", "after"]


def test_messages_of_a_failed_step_are_delivered_again_and_the_run_ends_with_its_error(
    mailbox: tuple[Cloud, str],
) -> None:
    cloud, name = mailbox
    publish(cloud, name, ["good"])
    with running(cloud, name, beam.FlatMap(note)) as (intake, ended):
        wait_until(lambda: SEEN and intake.unfinished == 0)
        FAILING.add("bad")
        publish(cloud, name, ["bad", "beside"])
        with pytest.raises(ValueError, match="cannot process"):
            ended.result(60)
    assert SEEN.count("good") == 1
    assert {"bad"} <= set(left(cloud, name)) <= {"bad", "beside"}


@beam.ptransform_fn
def in_files(messages: Any, folder: Path, seconds: int) -> Any:
    """Write the texts of messages to files of some seconds."""
    files = StreamFiles(folder=str(folder), seconds=seconds, output_format="parquet")
    return (
        messages
        | beam.Map(lambda element: pa.record_batch({"text": note(element)}))
        | WriteSpans(files)
    )


def texts_in(folder: Path) -> list[str]:
    return [
        text for path in folder.rglob("*.parquet") for text in pq.read_table(path)[0].to_pylist()
    ]


def test_messages_that_wait_for_their_file_are_acknowledged_at_the_end(
    mailbox: tuple[Cloud, str], tmp_path: Path
) -> None:
    cloud, name = mailbox
    publish(cloud, name, ["a", "b"])
    with running(cloud, name, in_files(tmp_path, 36_000)) as (intake, ended):
        wait_until(lambda: len(SEEN) == 2)
        # Bundles are final after milliseconds, and acknowledgements are sent then.
        time.sleep(1.0)
        assert (intake.unfinished, texts_in(tmp_path)) == (2, [])
        intake.end()
        ended.result(60)
        wait_until(lambda: intake.unfinished == 0)
    assert sorted(texts_in(tmp_path)) == ["a", "b"]
    assert left(cloud, name) == []


def test_files_are_written_while_the_stream_runs_and_then_their_messages_are_acknowledged(
    mailbox: tuple[Cloud, str], tmp_path: Path
) -> None:
    cloud, name = mailbox
    with running(cloud, name, in_files(tmp_path, 1)) as (intake, ended):
        for i in range(4):
            publish(cloud, name, [f"m{i}"])
            time.sleep(0.5)
        wait_until(lambda: len(texts_in(tmp_path)) == 4 and intake.unfinished == 0)
        assert not ended.done()
    assert Counter(texts_in(tmp_path)) == Counter(f"m{i}" for i in range(4))
    assert len(list(tmp_path.rglob("*.parquet"))) > 1


def test_a_file_that_cannot_be_written_ends_the_run_and_acknowledges_nothing(
    mailbox: tuple[Cloud, str], tmp_path: Path
) -> None:
    cloud, name = mailbox
    publish(cloud, name, ["a"])
    (tmp_path / "file").write_text("")
    with (
        running(cloud, name, in_files(tmp_path / "file", 1)) as (_, ended),
        pytest.raises(OutputError, match="Not a directory"),
    ):
        ended.result(60)
    assert left(cloud, name) == ["a"]


def test_a_sink_that_is_not_in_the_stage_of_the_source_says_so(tmp_path: Path) -> None:
    begin_bundle(None)
    with (
        pytest.raises(RuntimeError, match="must be in the stage of PullMessages"),
        beam.Pipeline("FnApiRunner") as pipeline,
    ):
        (
            pipeline
            | beam.Create([pa.record_batch({"text": ["a"]})])
            | WriteSpans(StreamFiles(folder=str(tmp_path), seconds=1, output_format="parquet"))
        )


def test_an_interrupted_run_leaves_unacknowledged_messages_to_the_next_reader(
    mailbox: tuple[Cloud, str],
) -> None:
    cloud, name = mailbox
    publish(cloud, name, ["a", "b"])
    options = options_for(cloud, name)
    with open_intake(options) as intake:
        assert intake_of(options) is intake
        intake.serve(0)
        taken: list[str] = []
        while len(taken) < 2:
            taken += names(intake.take(1))
    assert sorted(left(cloud, name)) == ["a", "b"]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_messages_published_after_the_end_go_to_the_next_reader_at_once(
    mailbox: tuple[Cloud, str],
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException] | None,
) -> None:
    cloud, name = mailbox
    publish(cloud, name, ["before"])
    with (
        pytest.raises(error) if error else nullcontext(),
        open_intake(options_for(cloud, name)) as intake,
    ):
        intake.serve(0)
        # Then the next request is in flight, and no message that is given back can answer it.
        wait_until(lambda: intake.take(1))
        intake.finish()
        if error:
            raise error
    # No request may be left: the emulator could answer it instead of the next reader's request.
    assert [t.name for t in threading.enumerate() if t.name.endswith("(_pull)")] == []
    # As if the process had died: a request that is still waiting cannot give messages back.
    monkeypatch.setattr(Lease, "_set_deadline", lambda *_: None)
    texts = [f"m{i}" for i in range(100)]
    publish(cloud, name, texts)
    found: list[str] = []

    def complete() -> bool:
        found.extend(left(cloud, name, 0.2))
        return len(found) == len(texts)

    # Half of the subscription's deadline, after which lost messages are delivered again.
    wait_until(complete, seconds=5)
    assert sorted(found) == sorted(texts)


# On Prism


@pytest.mark.parametrize("readers", [1, 2])
def test_every_message_is_in_a_file_and_acknowledged_on_prism(
    mailbox: tuple[Cloud, str], tmp_path: Path, readers: int
) -> None:
    cloud, name = mailbox
    texts = [f"m{i}" for i in range(1_500)]
    publish(cloud, name, texts[:700])
    options = options_for(cloud, name)
    of_beam = PipelineOptions([], streaming=True, **prism_flags())
    pipeline = beam.Pipeline("PrismRunner", of_beam)
    pipeline | PullMessages(options, readers) | in_files(tmp_path, 1)
    with open_intake(options) as intake:

        def wait(until_end: Any) -> None:
            ended = Background(until_end)
            publish(cloud, name, texts[700:])
            wait_until(lambda: len(texts_in(tmp_path)) == 1_500 and intake.unfinished == 0)
            intake.end()
            ended.result()

        run_elsewhere(pipeline, of_beam, wait)
    assert Counter(texts_in(tmp_path)) == Counter(texts)
    assert left(cloud, name) == []
