"""PullMessages: a subscription as the source of a stream that runs in this process.

It replaces the source of Beam's in-process runner of streams, which acknowledges messages before
they are processed, stops silently if no message arrives for two minutes, and delays timers while
it waits.

This source acknowledges a message when all work on it is done: when the watermark of every step
has passed the time at which the last step finished the message. A step that has failed for good
holds its watermark back, and so do rows that wait for their file. A run that crashes therefore
loses nothing: Pub/Sub delivers unacknowledged messages again, to the next reader of the
subscription.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import apache_beam as beam
from apache_beam.pvalue import PBegin, PCollection
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.timestamp import MIN_TIMESTAMP, TIME_GRANULARITY, Timestamp

from cloud.clients import Cloud
from common.interrupts import InterruptibleEvent
from transforms.messages.lease import Lease, leased
from transforms.messages.message import Message

# The limits of a bundle, and of the messages pulled ahead for the next one. A single message may
# be larger.
BUNDLE_MESSAGES = 1_000
BUNDLE_BYTES = 32 << 20
# How long the runner's only thread waits for a message before it fires timers.
POLL_SECONDS = 0.1
# How long the end waits for the last request: a little longer than a request usually takes.
_END_SECONDS = 1.5


@dataclass
class _Taken:
    """The messages of one bundle, and the times at which work on them ended.

    Attributes:
        ids: The ids of the messages.
        settled: When all steps had processed the bundle, or None.
        done: When steps that keep messages in state had also finished with it, `hold_seconds`
            later, or None.
    """

    ids: list[str]
    settled: Timestamp | None = None
    done: Timestamp | None = None


class _Ahead:
    """Messages that one thread has pulled ahead for another; together they form a bundle."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._bytes = 0
        self._changed = threading.Condition()

    def put(self, message: Message) -> bool:
        """Add a message, and return whether there was room for it within POLL_SECONDS."""
        with self._changed:
            if not self._changed.wait_for(self._has_room, POLL_SECONDS):
                return False
            self._messages.append(message)
            self._bytes += len(message.data)
            self._changed.notify()
            return True

    def _has_room(self) -> bool:
        return len(self._messages) < BUNDLE_MESSAGES and self._bytes < BUNDLE_BYTES

    def take(self) -> list[Message]:
        """Return and remove all messages; wait up to POLL_SECONDS for the first one."""
        with self._changed:
            self._changed.wait_for(lambda: self._messages, POLL_SECONDS)
            messages, self._messages, self._bytes = self._messages, [], 0
            self._changed.notify()
            return messages


class Intake:
    """The messages between a subscription and a pipeline: pulled ahead, in work, or acknowledged.

    Args:
        lease: The lease that pulls and acknowledges messages.
        hold_seconds: How long the pipeline may keep messages in state that does not hold a
            watermark back (transforms/messages/gather.py).
        once: Whether the pipeline drops messages whose id it has seen before.

    Attributes:
        given: The number of messages that the pipeline has received.
        again: How many of them it may have dropped as duplicates.
    """

    def __init__(self, lease: Lease, hold_seconds: float = 0.0, *, once: bool = False) -> None:
        self._lease, self._hold = lease, hold_seconds
        self.given = self.again = 0
        # The step that drops duplicates keeps all ids too.
        self._ids: set[str] | None = set() if once else None
        self._ahead = _Ahead()
        self._in_work: deque[_Taken] = deque()
        self._now = self._quiet = MIN_TIMESTAMP
        self._over = InterruptibleEvent()
        self._error: Exception | None = None

    def __reduce__(self) -> NoReturn:
        # Beam runs a copy of an object that can be pickled, and a copy would receive no messages.
        raise TypeError("an Intake stays in its process")

    def pull(self) -> None:
        """Pull messages ahead until `end` is called; an error is raised by `take`."""
        try:
            while not self._over.is_set():
                for message in self._lease.pull(1 << 40):
                    while not (self._over.is_set() or self._ahead.put(message)):
                        pass
                    if self._over.is_set():
                        break
        except Exception as error:
            self._error = error

    def take(self, passed: Timestamp) -> tuple[Timestamp, list[Message] | None]:
        """Acknowledge messages that are done, and return the next bundle.

        The runner calls it only when no step has work and all due timers have fired.

        Args:
            passed: The time that the watermark of every step has reached.

        Returns:
            The present time, and the messages of the next bundle, or None at the end.

        Raises:
            InputError: The subscription cannot be read, or messages cannot be acknowledged.
        """
        if self._error is not None:
            raise self._error
        # Time must not run backwards when the clock is set back: old work would look done.
        before, now = self._now, max(self._now + TIME_GRANULARITY, Timestamp.now())
        self._now = now
        # Bundles that only wait for their file are the oldest, and may be very many: skip them.
        for taken in reversed(self._in_work):
            if taken.done is not None:
                break
            if taken.settled is None:
                taken.settled = now
            # All timers that were due at `before` have fired; later ones may not have.
            elif before - taken.settled >= self._hold:
                taken.done = now
        self._acknowledge(passed)
        if self._over.is_set():
            waiting = self._in_work and self._in_work[-1].done is None
            return now, [] if waiting else None
        messages = self._ahead.take()
        if messages:
            self._count(ids := [message.message_id for message in messages])
            self._in_work.append(_Taken(ids))
        if messages or self._quiet == MIN_TIMESTAMP:
            self._quiet = now
        return now, messages

    def _count(self, ids: list[str]) -> None:
        self.given += len(ids)
        if self._ids is not None:
            before = len(self._ids)
            self._ids.update(ids)
            self.again += len(ids) - (len(self._ids) - before)

    def _acknowledge(self, passed: Timestamp) -> None:
        """Acknowledge the messages that are done.

        An error ends the run, because Pub/Sub would deliver the messages again and again.
        """
        done = []
        for taken in self._in_work:
            if taken.done is None or taken.done > passed:
                break
            done.append(taken)
        if not done:
            return
        try:
            self._lease.acknowledge([i for taken in done for i in taken.ids])
        except Exception as error:
            self._error = error
            raise
        for _ in done:
            self._in_work.popleft()

    @property
    def quiet_seconds(self) -> float:
        """How long no message had arrived, in seconds, when `take` was last called."""
        quiet = self._quiet
        # The time does not start before the pipeline is ready for its first message.
        return 0.0 if quiet == MIN_TIMESTAMP else float(self._now - quiet)

    @property
    def unfinished(self) -> int:
        """The number of messages that are in work or wait for their file."""
        return sum(len(taken.ids) for taken in list(self._in_work))

    def end(self) -> None:
        """Return no more messages from `take`; the pipeline ends when the others are done."""
        self._over.set()
        self._lease.stop()

    def finish(self) -> None:
        """Acknowledge all messages that the pipeline received, after it has succeeded.

        Raises:
            InputError: Messages cannot be acknowledged.
        """
        self._lease.acknowledge([i for taken in self._in_work for i in taken.ids])
        self._in_work.clear()


@contextmanager
def open_intake(
    cloud: Cloud, subscription: str, hold_seconds: float = 0.0, *, once: bool = False
) -> Iterator[Intake]:
    """Yield an Intake of a subscription; at the end, give back unacknowledged messages.

    Args:
        cloud: Makes the client, and limits retries.
        subscription: The full name of the subscription.
        hold_seconds: See Intake.
        once: See Intake.
    """
    with leased(cloud, subscription) as lease:
        intake = Intake(lease, hold_seconds, once=once)
        puller = threading.Thread(target=intake.pull, daemon=True)
        puller.start()
        try:
            yield intake
        finally:
            intake.end()
            # Its last request could receive the messages that are about to be given back.
            puller.join(_END_SECONDS)


class PullMessages(beam.PTransform):
    """A source of the messages of an Intake.

    Only Beam's BundleBasedDirectRunner can run it, and only after the class has been passed to
    `common.private_beam.in_process.add_polled_source`.
    """

    def __init__(self, intake: Intake) -> None:
        super().__init__()
        self.intake = intake

    def take(self, passed: Timestamp) -> tuple[Timestamp, list[Message] | None]:
        """Return the next bundle of the Intake; the runner calls this."""
        return self.intake.take(passed)

    def expand(self, pbegin: PBegin) -> PCollection[Any]:
        """Return an unbounded collection, which the runner fills."""
        return PCollection(pbegin.pipeline, element_type=Any, is_bounded=False)

    def get_windowing(self, inputs: Any) -> beam.Windowing:
        """Put all messages into the global window."""
        return beam.Windowing(GlobalWindows())
