"""PullMessages: a subscription as the source of a stream that runs in this process.

For Beam's in-process runner of streams, whose own source acknowledges messages before
anything is done with them, ends unseen when none comes for two minutes, and keeps
timers waiting while it waits. Here a message is acknowledged when all that comes of
it is done: once the watermark of every step is past the time at which the last of its
steps had ended. A step that failed for good holds its watermark back, and so do rows
that wait for their file. So a run that dies loses nothing: what is not acknowledged
comes again, to whoever reads the subscription next.
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

# Of a bundle, and pulled ahead for the next one; a single message may be larger.
BUNDLE_MESSAGES = 1_000
BUNDLE_BYTES = 32 << 20
# How long the runner's one thread waits for a message before it looks after timers.
POLL_SECONDS = 0.1
# How long the end waits for the last request: a little longer than that mostly takes.
_END_SECONDS = 1.5


@dataclass
class _Taken:
    """Messages that a bundle was made of, and when all that followed at once had been done.

    done: none before `hold_seconds` more were over. Times are None until they are known.
    """

    ids: list[str]
    settled: Timestamp | None = None
    done: Timestamp | None = None


class _Ahead:
    """Messages that were pulled ahead, of one thread for another; together a bundle."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._bytes = 0
        self._changed = threading.Condition()

    def put(self, message: Message) -> bool:
        """A message -> whether there was room for it within POLL_SECONDS."""
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
        """Nothing -> all of them, at least one unless none came within POLL_SECONDS."""
        with self._changed:
            self._changed.wait_for(lambda: self._messages, POLL_SECONDS)
            messages, self._messages, self._bytes = self._messages, [], 0
            self._changed.notify()
            return messages


class Intake:
    """Messages between a subscription and a pipeline: pulled ahead, in work, acknowledged.

    hold_seconds: how long the pipeline may keep messages back in state that holds no
    watermark (transforms/messages/gather.py). once: whether the pipeline drops a message
    whose id it had before.
    given: how many messages the pipeline got. again: how many of these it may have dropped.
    """

    def __init__(self, lease: Lease, hold_seconds: float = 0.0, *, once: bool = False) -> None:
        self._lease, self._hold = lease, hold_seconds
        self.given = self.again = 0
        # The step that drops duplicates keeps them all as well.
        self._ids: set[str] | None = set() if once else None
        self._ahead = _Ahead()
        self._in_work: deque[_Taken] = deque()
        self._now = self._quiet = MIN_TIMESTAMP
        self._over = InterruptibleEvent()
        self._error: Exception | None = None

    def __reduce__(self) -> NoReturn:
        # Beam runs a copy of what can be pickled, and no message would come to it.
        raise TypeError("an Intake stays in its process")

    def pull(self) -> None:
        """Nothing -> messages are pulled ahead until `end`."""
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
        """How far every step is -> the time, and the messages of the next bundle, None at the end.

        Asked for only when no step has anything to do, timers that were due included. Raises
        what the subscription raised.
        """
        if self._error is not None:
            raise self._error
        # A clock that is set back must not make old work look done.
        before, now = self._now, max(self._now + TIME_GRANULARITY, Timestamp.now())
        self._now = now
        # Those that wait for their file alone may be very many, and are the oldest.
        for taken in reversed(self._in_work):
            if taken.done is not None:
                break
            if taken.settled is None:
                taken.settled = now
            # A timer may have become due since it was looked after, but not since `before`.
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
        """What is done is gone from the subscription, or the run ends: it would come for ever."""
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
        """How long no message came, as of when the pipeline last asked for one."""
        quiet = self._quiet
        # While the pipeline waits for its first message, no time without one has passed yet.
        return 0.0 if quiet == MIN_TIMESTAMP else float(self._now - quiet)

    @property
    def unfinished(self) -> int:
        """How many messages are in work, or wait for their file."""
        return sum(len(taken.ids) for taken in list(self._in_work))

    def end(self) -> None:
        """Nothing -> no further message is given; the pipeline ends when the others are done."""
        self._over.set()
        self._lease.stop()

    def finish(self) -> None:
        """The pipeline ended well -> all that it got is acknowledged. Raises InputError."""
        self._lease.acknowledge([i for taken in self._in_work for i in taken.ids])
        self._in_work.clear()


@contextmanager
def open_intake(
    cloud: Cloud, subscription: str, hold_seconds: float = 0.0, *, once: bool = False
) -> Iterator[Intake]:
    """A subscription -> an Intake; what is not acknowledged at the end is given back."""
    with leased(cloud, subscription) as lease:
        intake = Intake(lease, hold_seconds, once=once)
        puller = threading.Thread(target=intake.pull, daemon=True)
        puller.start()
        try:
            yield intake
        finally:
            intake.end()
            # Its last request would take what is given back now.
            puller.join(_END_SECONDS)


class PullMessages(beam.PTransform):
    """An Intake -> its messages, as transforms.messages.message.parse takes them.

    Beam's BundleBasedDirectRunner alone can run it, once it was given to
    `common.private_beam.in_process.add_polled_source`.
    """

    def __init__(self, intake: Intake) -> None:
        super().__init__()
        self.intake = intake

    def take(self, passed: Timestamp) -> tuple[Timestamp, list[Message] | None]:
        """As of the Intake; the runner calls it."""
        return self.intake.take(passed)

    def expand(self, pbegin: PBegin) -> PCollection[Any]:
        """The runner's own step."""
        return PCollection(pbegin.pipeline, element_type=Any, is_bounded=False)

    def get_windowing(self, inputs: Any) -> beam.Windowing:
        """All in one window."""
        return beam.Windowing(GlobalWindows())
