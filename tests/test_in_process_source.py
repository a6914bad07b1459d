"""The source of a stream in this process: no message is acknowledged before work on it is done."""

import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.trigger import AccumulationMode, AfterWatermark
from apache_beam.transforms.window import FixedWindows, TimestampCombiner, TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from google.api_core import exceptions
from waiting import wait_until

from cloud.clients import Cloud
from common.errors import InputError
from common.private_beam.in_process import add_polled_source
from examples.local_cloud import LocalCloud
from transforms.messages import in_process_source as module
from transforms.messages.gather import DropDuplicates, GatherMessages
from transforms.messages.in_process_source import Intake, PullMessages, open_intake
from transforms.messages.lease import Lease
from transforms.messages.message import Message, parse_message


@pytest.fixture(autouse=True, scope="module")
def polled() -> None:
    """Make the runner able to run PullMessages, as in a stream."""
    add_polled_source(PullMessages, module.POLL_SECONDS)


# The time at which a message is acknowledged


class Leased:
    """A lease whose messages are available from the start."""

    def __init__(self, names: Iterable[str]) -> None:
        self.waiting = [Message(b"", {}, name, 0, "") for name in names]
        self.acknowledged: list[str] = []
        self.error: Exception | None = None
        self.refusal: Exception | None = None

    def pull(self, limit: int) -> Iterator[Message]:
        if self.error is not None:
            raise self.error
        while self.waiting:
            yield self.waiting.pop(0)
        time.sleep(0.01)

    def acknowledge(self, ids: Iterable[str]) -> None:
        if self.refusal is not None:
            refusal, self.refusal = self.refusal, None
            raise refusal
        self.acknowledged += ids

    def stop(self) -> None:
        self.waiting.clear()


class Clock:
    """A clock that is set by hand."""

    seconds: float = 1_000.0

    @classmethod
    def now(cls) -> Timestamp:
        return Timestamp(cls.seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    monkeypatch.setattr(module, "Timestamp", Clock)
    monkeypatch.setattr(Clock, "seconds", 1_000.0)
    return Clock


@contextmanager
def intake_of(
    *names: str, hold: float = 0.0, once: bool = False
) -> Iterator[tuple[Intake, Leased]]:
    lease = Leased(names)
    intake = Intake(lease, hold, once=once)  # type: ignore[arg-type]
    puller = threading.Thread(target=intake.pull, daemon=True)
    puller.start()
    wait_until(lambda: not lease.waiting)
    yield intake, lease
    intake.end()
    puller.join()


def ids(taken: tuple[Timestamp, list[Message] | None]) -> list[str]:
    return [message.message_id for message in taken[1] or ()]


def test_messages_are_acknowledged_when_every_step_has_passed_the_time_at_which_they_were_done(
    clock: type[Clock],
) -> None:
    with intake_of("a", "b") as (intake, lease):
        assert ids(intake.take(MIN_TIMESTAMP)) == ["a", "b"]
        # It does not matter how far the steps were before that.
        for clock.seconds in (1_001, 1_002):
            assert ids(intake.take(Timestamp(clock.seconds - 0.1))) == []
        assert (lease.acknowledged, intake.unfinished) == ([], 2)
        intake.take(Timestamp(1_001.9))
        assert lease.acknowledged == []
        intake.take(Timestamp(1_002))
        assert (lease.acknowledged, intake.unfinished) == (["a", "b"], 0)


def test_messages_that_state_may_hold_back_are_done_after_that_time(
    clock: type[Clock],
) -> None:
    with intake_of("a", hold=5.0) as (intake, lease):
        assert ids(intake.take(MIN_TIMESTAMP)) == ["a"]
        for clock.seconds in (1_001, 1_003, 1_006):
            now, _ = intake.take(Timestamp(clock.seconds))
        assert lease.acknowledged == []
        clock.seconds = 1_006.1
        now, _ = intake.take(now)
        assert lease.acknowledged == []
        intake.take(now)
        assert lease.acknowledged == ["a"]


def test_the_source_waits_for_a_timer_that_has_just_become_due(
    clock: type[Clock],
) -> None:
    with intake_of("a", hold=5.0) as (intake, lease):
        intake.take(MIN_TIMESTAMP)
        clock.seconds = 1_001
        intake.take(MIN_TIMESTAMP)
        # Due timers were last fired at some time after 1,001.
        clock.seconds = 1_007
        now, _ = intake.take(MIN_TIMESTAMP)
        intake.take(now)
        assert lease.acknowledged == []
        intake.take(intake._now)
        assert lease.acknowledged == ["a"]


def test_messages_that_cannot_be_acknowledged_end_the_run_and_do_not_count_as_done(
    clock: type[Clock],
) -> None:
    with intake_of("a") as (intake, lease):
        lease.refusal = InputError("messages of s cannot be acknowledged: denied")
        intake.take(MIN_TIMESTAMP)
        for clock.seconds in (1_001, 1_002):
            intake.take(MIN_TIMESTAMP)
        # The runner calls the source four times.
        for _ in range(4):
            with pytest.raises(InputError, match="denied"):
                intake.take(Timestamp(1_002))
        assert (lease.acknowledged, intake.unfinished) == ([], 1)


def test_messages_pulled_ahead_are_limited_by_number_and_by_bytes(
    clock: type[Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUNDLE_MESSAGES", 4)
    monkeypatch.setattr(module, "BUNDLE_BYTES", 100)
    sizes = {"a": 60, "b": 60, "c": 1_000, "d": 1, "e": 1, "f": 1, "g": 1, "h": 1}
    lease = Leased([])
    lease.waiting = [Message(b"x" * n, {}, name, 0, "") for name, n in sizes.items()]
    intake = Intake(lease)  # type: ignore[arg-type]
    puller = threading.Thread(target=intake.pull, daemon=True)
    puller.start()
    bundles = []
    for _ in range(4):
        wait_until(lambda: not (intake._ahead._has_room() and lease.waiting))
        bundles.append(ids(intake.take(MIN_TIMESTAMP)))
    intake.end()
    puller.join()
    assert bundles == [["a", "b"], ["c"], ["d", "e", "f", "g"], ["h"]]


def test_a_clock_that_is_set_back_does_not_make_work_look_done(clock: type[Clock]) -> None:
    with intake_of("a") as (intake, lease):
        first, _ = intake.take(MIN_TIMESTAMP)
        for clock.seconds in (900.0, 901.0, 902.0):
            now, _ = intake.take(first)
            assert now > first
        assert lease.acknowledged == []


def test_after_the_end_no_message_is_returned_and_waiting_messages_are_finished(
    clock: type[Clock],
) -> None:
    with intake_of("a", hold=5.0) as (intake, lease):
        intake.take(MIN_TIMESTAMP)
        lease.waiting.append(Message(b"", {}, "b", 0, ""))
        intake.end()
        for clock.seconds in (1_001, 1_006):
            assert intake.take(MIN_TIMESTAMP)[1] == []
        clock.seconds = 1_006.1
        assert intake.take(MIN_TIMESTAMP)[1] is None
        assert lease.acknowledged == []
        intake.finish()
        assert (lease.acknowledged, intake.unfinished) == (["a"], 0)


@pytest.mark.parametrize("once", [False, True])
def test_messages_and_duplicates_are_counted(once: bool, clock: type[Clock]) -> None:
    with intake_of("a", "b", once=once) as (intake, lease):
        intake.take(MIN_TIMESTAMP)
        for name in ("b", "c"):
            lease.waiting.append(Message(b"", {}, name, 0, ""))
        wait_until(lambda: not lease.waiting)
        assert ids(intake.take(MIN_TIMESTAMP)) == ["b", "c"]
        assert (intake.given, intake.again) == (4, once)


def test_quiet_seconds_is_the_time_without_a_message(clock: type[Clock]) -> None:
    with intake_of() as (intake, lease):
        assert intake.quiet_seconds == 0
        intake.take(MIN_TIMESTAMP)
        clock.seconds = 1_007
        intake.take(MIN_TIMESTAMP)
        assert intake.quiet_seconds == 7
        lease.waiting.append(Message(b"", {}, "a", 0, ""))
        wait_until(lambda: not lease.waiting)
        assert ids(intake.take(MIN_TIMESTAMP)) == ["a"]
        assert intake.quiet_seconds == 0


def test_quiet_seconds_does_not_include_the_wait_for_the_first_message(
    clock: type[Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    take = module._Ahead.take
    with intake_of("a") as (intake, _):

        def look_and_take(ahead: module._Ahead) -> list[Message]:
            # A report may read the time while the pipeline waits.
            seen.append(intake.quiet_seconds)
            return take(ahead)

        monkeypatch.setattr(module._Ahead, "take", look_and_take)
        intake.take(MIN_TIMESTAMP)
    assert seen == [0.0]


def test_an_error_of_the_subscription_is_raised_by_every_call(clock: type[Clock]) -> None:
    with intake_of() as (intake, lease):
        lease.error = InputError("subscription s cannot be read: gone")
        wait_until(lambda: intake._error)
        for _ in range(4):
            with pytest.raises(InputError, match="gone"):
                intake.take(MIN_TIMESTAMP)


def test_a_pipeline_receives_its_messages_from_the_intake_itself_and_not_from_a_copy() -> None:
    # This lease can be pickled. The lease of a real subscription cannot, which would hide a copy.
    with intake_of("a", "b") as (intake, lease):
        pipeline = beam.Pipeline("BundleBasedDirectRunner", PipelineOptions(streaming=True))
        pipeline | PullMessages(intake) | beam.Map(lambda _: None)
        result = pipeline.run()
        wait_until(lambda: sorted(lease.acknowledged) == ["a", "b"])
        intake.end()
        assert result.wait_until_finish() == "DONE"


# In pipelines, on the emulator

SEEN: list[str] = []
FAILING: set[str] = set()
# `note` raises an error once for each occurrence of a text in this list.
TIMES: list[str] = []


def note(element: Any) -> list[str]:
    """Return the texts of a message or a list of messages, and add them to SEEN.

    Raises an error for a text in TIMES or FAILING.
    """
    messages = [parse_message(one) for one in (element if type(element) is list else [element])]
    texts = [message.data.decode() for message in messages]
    for text in set(TIMES).intersection(texts):
        TIMES.remove(text)
        raise OSError("try again")
    if FAILING.intersection(texts):
        raise ValueError(f"cannot process {texts}")
    SEEN.extend(texts)
    return texts


@pytest.fixture
def mailbox(stream_emulators: LocalCloud) -> tuple[Cloud, str]:
    """A Cloud, and the name of a topic and its subscription."""
    SEEN.clear()
    FAILING.clear()
    TIMES.clear()
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


@contextmanager
def running(
    cloud: Cloud, name: str, step: Any, hold: float = 0.0
) -> Iterator[tuple[Intake, Future[Any]]]:
    """Run a step on the messages of a subscription; yield its intake, and a future of its end."""
    options = PipelineOptions(streaming=True)
    with (
        open_intake(cloud, subscription_of(cloud, name), hold) as intake,
        ThreadPoolExecutor(1) as executor,
    ):
        pipeline = beam.Pipeline("BundleBasedDirectRunner", options)
        pipeline | PullMessages(intake) | step
        ended = executor.submit(pipeline.run().wait_until_finish)
        try:
            yield intake, ended
        finally:
            intake.end()


def test_every_message_is_processed_once_and_acknowledged(mailbox: tuple[Cloud, str]) -> None:
    cloud, name = mailbox
    texts = [f"m{i}" for i in range(2_500)]
    publish(cloud, name, texts[:1_500])
    with running(cloud, name, beam.FlatMap(note)) as (intake, ended):
        publish(cloud, name, texts[1_500:])
        # All messages are acknowledged while the stream runs, not only at its end.
        wait_until(lambda: len(SEEN) == 2_500 and intake.unfinished == 0)
        intake.end()
        assert ended.result(60) == "DONE"
    assert Counter(SEEN) == Counter(texts)
    assert left(cloud, name) == []


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
        # This holds whatever else the runner has done in the meantime.
        assert intake.unfinished >= 1
    assert SEEN.count("good") == 1
    assert {"bad"} <= set(left(cloud, name)) <= {"bad", "beside"}


def test_a_step_that_fails_and_then_works_neither_loses_nor_duplicates_messages(
    mailbox: tuple[Cloud, str],
) -> None:
    cloud, name = mailbox
    TIMES.extend(["m", "m"])
    publish(cloud, name, ["m"])
    with running(cloud, name, beam.FlatMap(note)) as (intake, ended):
        wait_until(lambda: SEEN and intake.unfinished == 0)
        intake.end()
        ended.result(60)
    assert (SEEN, TIMES, left(cloud, name)) == (["m"], [], [])


@beam.ptransform_fn
def in_windows(messages: Any) -> Any:
    """Group messages by hour, as transforms.files.windows does."""
    return (
        messages
        | beam.Map(lambda message: TimestampedValue((0, message), Timestamp.now()))
        | beam.WindowInto(
            FixedWindows(3_600),
            trigger=AfterWatermark(),
            accumulation_mode=AccumulationMode.DISCARDING,
            timestamp_combiner=TimestampCombiner.OUTPUT_AT_EARLIEST,
        )
        | beam.GroupByKey()
        | beam.FlatMap(lambda pair: note(list(pair[1])))
    )


def test_messages_that_wait_for_their_window_are_acknowledged_at_the_end(
    mailbox: tuple[Cloud, str],
) -> None:
    cloud, name = mailbox
    publish(cloud, name, ["a", "b"])
    with running(cloud, name, in_windows()) as (intake, ended):
        wait_until(lambda: intake.unfinished == 2)
        # The source is called many times in this second, and could acknowledge them each time.
        time_before = intake._now
        wait_until(lambda: intake._now > time_before + 1)
        assert (SEEN, intake.unfinished) == ([], 2)
        intake.end()
        ended.result(60)
        intake.finish()
    assert sorted(SEEN) == ["a", "b"]
    assert left(cloud, name) == []


def test_an_interrupted_run_leaves_unacknowledged_messages_to_the_next_reader(
    mailbox: tuple[Cloud, str],
) -> None:
    cloud, name = mailbox
    publish(cloud, name, ["a", "b"])
    with open_intake(cloud, subscription_of(cloud, name)) as intake:
        taken: list[Message] = []
        while len(taken) < 2:
            taken += intake.take(MIN_TIMESTAMP)[1] or ()
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
        open_intake(cloud, subscription_of(cloud, name)) as intake,
    ):
        # Then the next request is in flight, and no message that is given back can answer it.
        wait_until(lambda: intake.take(MIN_TIMESTAMP)[1])
        intake.finish()
        if error:
            raise error
    # No request may be left: the emulator could answer it instead of the next reader's request.
    assert [t.name for t in threading.enumerate() if t.name.endswith("(pull)")] == []
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


def test_gathered_messages_are_acknowledged_when_they_are_emitted_which_the_end_forces(
    mailbox: tuple[Cloud, str],
) -> None:
    cloud, name = mailbox

    @beam.ptransform_fn
    def gathered(messages: Any) -> Any:
        return messages | DropDuplicates(600) | GatherMessages(100, 500) | beam.FlatMap(note)

    publish(cloud, name, ["a", "b"])
    with running(cloud, name, gathered(), hold=0.5) as (intake, ended):
        wait_until(lambda: len(SEEN) == 2 and intake.unfinished == 0)
        publish(cloud, name, ["c"])
        wait_until(lambda: intake.unfinished == 1)
        intake.end()
        ended.result(60)
        assert sorted(SEEN) == ["a", "b", "c"]
        intake.finish()
    assert left(cloud, name) == []
