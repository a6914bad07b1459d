"""The source of a stream in this process: nothing is acknowledged before all is done with it."""

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
    """The runner can run PullMessages, as in a stream."""
    add_polled_source(PullMessages, module.POLL_SECONDS)


# When a message is acknowledged


class Leased:
    """A lease of messages that are there from the start."""

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


def test_messages_are_acknowledged_when_every_step_is_past_the_time_they_were_done(
    clock: type[Clock],
) -> None:
    with intake_of("a", "b") as (intake, lease):
        assert ids(intake.take(MIN_TIMESTAMP)) == ["a", "b"]
        # However far the steps had been before.
        for clock.seconds in (1_001, 1_002):
            assert ids(intake.take(Timestamp(clock.seconds - 0.1))) == []
        assert (lease.acknowledged, intake.unfinished) == ([], 2)
        intake.take(Timestamp(1_001.9))
        assert lease.acknowledged == []
        intake.take(Timestamp(1_002))
        assert (lease.acknowledged, intake.unfinished) == (["a", "b"], 0)


def test_what_may_be_kept_back_in_state_is_not_done_before_that_time_is_over(
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


def test_a_timer_that_became_due_just_before_the_source_was_asked_is_waited_for(
    clock: type[Clock],
) -> None:
    with intake_of("a", hold=5.0) as (intake, lease):
        intake.take(MIN_TIMESTAMP)
        clock.seconds = 1_001
        intake.take(MIN_TIMESTAMP)
        # Timers were last looked after at some time since 1,001.
        clock.seconds = 1_007
        now, _ = intake.take(MIN_TIMESTAMP)
        intake.take(now)
        assert lease.acknowledged == []
        intake.take(intake._now)
        assert lease.acknowledged == ["a"]


def test_what_cannot_be_acknowledged_ends_the_run_and_is_not_taken_for_done(
    clock: type[Clock],
) -> None:
    with intake_of("a") as (intake, lease):
        lease.refusal = InputError("messages of s cannot be acknowledged: denied")
        intake.take(MIN_TIMESTAMP)
        for clock.seconds in (1_001, 1_002):
            intake.take(MIN_TIMESTAMP)
        # The runner asks four times.
        for _ in range(4):
            with pytest.raises(InputError, match="denied"):
                intake.take(Timestamp(1_002))
        assert (lease.acknowledged, intake.unfinished) == ([], 1)


def test_messages_pulled_ahead_are_bounded_by_number_and_by_bytes(
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


def test_at_the_end_nothing_more_is_given_and_what_waits_comes_first(clock: type[Clock]) -> None:
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
def test_messages_that_are_given_are_counted_and_those_that_come_again(
    once: bool, clock: type[Clock]
) -> None:
    with intake_of("a", "b", once=once) as (intake, lease):
        intake.take(MIN_TIMESTAMP)
        for name in ("b", "c"):
            lease.waiting.append(Message(b"", {}, name, 0, ""))
        wait_until(lambda: not lease.waiting)
        assert ids(intake.take(MIN_TIMESTAMP)) == ["b", "c"]
        assert (intake.given, intake.again) == (4, once)


def test_quiet_is_how_long_no_message_came(clock: type[Clock]) -> None:
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


def test_waiting_for_the_first_message_is_no_time_without_one(
    clock: type[Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    take = module._Ahead.take
    with intake_of("a") as (intake, _):

        def look_and_take(ahead: module._Ahead) -> list[Message]:
            # As whoever watches the run may look while the pipeline waits.
            seen.append(intake.quiet_seconds)
            return take(ahead)

        monkeypatch.setattr(module._Ahead, "take", look_and_take)
        intake.take(MIN_TIMESTAMP)
    assert seen == [0.0]


def test_what_the_subscription_raised_is_raised_each_time(clock: type[Clock]) -> None:
    with intake_of() as (intake, lease):
        lease.error = InputError("subscription s cannot be read: gone")
        wait_until(lambda: intake._error)
        for _ in range(4):
            with pytest.raises(InputError, match="gone"):
                intake.take(MIN_TIMESTAMP)


def test_a_pipeline_gets_its_messages_from_the_intake_itself_and_not_from_a_copy() -> None:
    # That of a real subscription cannot be pickled, which hides it.
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
# As often as a text is in here.
TIMES: list[str] = []


def note(element: Any) -> list[str]:
    """Messages, or lists of them -> their data, which is kept. Raises for those in FAILING."""
    messages = [parse_message(one) for one in (element if type(element) is list else [element])]
    texts = [message.data.decode() for message in messages]
    for text in set(TIMES).intersection(texts):
        TIMES.remove(text)
        raise OSError("try again")
    if FAILING.intersection(texts):
        raise ValueError(f"cannot take {texts}")
    SEEN.extend(texts)
    return texts


@pytest.fixture
def mailbox(stream_emulators: LocalCloud) -> tuple[Cloud, str]:
    """A Cloud and a name, which a topic and its subscription have."""
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
    """What another reader gets of a subscription now."""
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
    """A step over the messages of a subscription -> its intake and its end, while it runs."""
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


def test_every_message_comes_once_and_is_acknowledged(mailbox: tuple[Cloud, str]) -> None:
    cloud, name = mailbox
    texts = [f"m{i}" for i in range(2_500)]
    publish(cloud, name, texts[:1_500])
    with running(cloud, name, beam.FlatMap(note)) as (intake, ended):
        publish(cloud, name, texts[1_500:])
        # All acknowledged while it runs, not at its end.
        wait_until(lambda: len(SEEN) == 2_500 and intake.unfinished == 0)
        intake.end()
        assert ended.result(60) == "DONE"
    assert Counter(SEEN) == Counter(texts)
    assert left(cloud, name) == []


def test_what_a_failed_step_had_taken_comes_again_and_the_run_ends_with_its_error(
    mailbox: tuple[Cloud, str],
) -> None:
    cloud, name = mailbox
    publish(cloud, name, ["good"])
    with running(cloud, name, beam.FlatMap(note)) as (intake, ended):
        wait_until(lambda: SEEN and intake.unfinished == 0)
        FAILING.add("bad")
        publish(cloud, name, ["bad", "beside"])
        with pytest.raises(ValueError, match="cannot take"):
            ended.result(60)
        # Whatever the runner does meanwhile.
        assert intake.unfinished >= 1
    assert SEEN.count("good") == 1
    assert {"bad"} <= set(left(cloud, name)) <= {"bad", "beside"}


def test_a_step_that_fails_and_then_works_loses_and_doubles_nothing(
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
    """Messages -> those of the same hour together, as transforms.files.windows has them."""
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


def test_what_waits_for_its_window_is_not_acknowledged_and_comes_out_at_the_end(
    mailbox: tuple[Cloud, str],
) -> None:
    cloud, name = mailbox
    publish(cloud, name, ["a", "b"])
    with running(cloud, name, in_windows()) as (intake, ended):
        wait_until(lambda: intake.unfinished == 2)
        # So often the source was asked since, and each time it could have acknowledged them.
        asked = intake._now
        wait_until(lambda: intake._now > asked + 1)
        assert (SEEN, intake.unfinished) == ([], 2)
        intake.end()
        ended.result(60)
        intake.finish()
    assert sorted(SEEN) == ["a", "b"]
    assert left(cloud, name) == []


def test_a_run_that_is_cut_off_leaves_what_waits_for_its_window_to_the_next(
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
def test_what_is_published_after_the_end_goes_to_the_next_reader_at_once(
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
        # The next request is on its way then, and nothing that is given back answers it.
        wait_until(lambda: intake.take(MIN_TIMESTAMP)[1])
        intake.finish()
        if error:
            raise error
    # The emulator need not give what comes to the request that waited first.
    assert [t.name for t in threading.enumerate() if t.name.endswith("(pull)")] == []
    # As if the process had gone: whoever still waits for messages gives none of them back.
    monkeypatch.setattr(Lease, "_set_deadline", lambda *_: None)
    texts = [f"m{i}" for i in range(100)]
    publish(cloud, name, texts)
    found: list[str] = []

    def complete() -> bool:
        found.extend(left(cloud, name, 0.2))
        return len(found) == len(texts)

    # Half of the subscription's deadline, at which messages that nobody has come again.
    wait_until(complete, seconds=5)
    assert sorted(found) == sorted(texts)


def test_what_is_gathered_is_acknowledged_when_it_came_out_and_comes_out_at_the_end(
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
