"""Intake: the messages between a subscription and the pipeline of this process.

Each process that reads a subscription has one. Its threads pull messages ahead, acknowledge those
on which all work is done, and extend the deadlines of the others.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from cloud.clients import Cloud
from common.errors import RunnerError
from common.interrupts import InterruptibleEvent
from transforms.bundles import Sink
from transforms.messages.ahead import BUNDLE_MESSAGES, Ahead
from transforms.messages.lease import RENEW_SECONDS, Lease
from transforms.messages.message import duplicate_key

# How long a bundle waits for its first message. An empty bundle costs a few milliseconds.
IDLE_SECONDS = 5.0
# Acknowledgements are sent together, at most this often.
_ACK_SECONDS = 0.05
# When the deadline of a new message is extended. The shortest deadline of a subscription is 10
# seconds, and most messages are done before.
_EXTEND_SECONDS = 2.0
# The longest pause between two requests, when the first has received nothing.
_PAUSE_SECONDS = 0.1
# A wait that takes so much longer than it should means that the process was stopped meanwhile.
_STOPPED_SECONDS = 1.0
# How long the end waits for the last request: a little longer than a request usually takes.
_END_SECONDS = 1.5


@dataclass(frozen=True, kw_only=True)
class PullOptions:
    """How a subscription is read.

    Attributes:
        cloud: Makes the client, and limits retries.
        subscription: The full name of the subscription.
        run: The name of the run. Each process has one Intake for each run.
        wait_seconds: How long a message may wait for others, to build larger bundles.
        wait_messages: How many messages end the wait.
        remember_seconds: For how long the id of a message is remembered, to drop duplicates; None
            to keep them.
        remember_attribute: The attribute that identifies a message; None for its id.
        stop_after_seconds: The stream ends after this time without a message; None for never.
        hidden_seconds: Until when it does not end if there was no message at all: for so long, a
            reader that was killed may hold messages.
    """

    cloud: Cloud
    subscription: str
    run: str
    wait_seconds: float = 0.0
    wait_messages: int = BUNDLE_MESSAGES
    remember_seconds: float | None = None
    remember_attribute: str | None = None
    stop_after_seconds: float | None = None
    hidden_seconds: float = 0.0


class Intake:
    """The messages of a subscription: pulled ahead, in work, or acknowledged.

    Args:
        options: How the subscription is read.
        lease: The lease that pulls and acknowledges messages.
        parent: The process that started this worker process; the run ends with it. None if this
            process itself was started for the run.

    Attributes:
        given: The number of messages that the pipeline has received.
        dropped: The number of duplicates that it did not receive.
        waits_until: When the stream ends, in seconds of `time.monotonic`, although it should have
            ended by now: messages may be held by a reader that was killed. None otherwise.
    """

    def __init__(self, options: PullOptions, lease: Lease, parent: int | None = None) -> None:
        self._options, self._lease, self._parent = options, lease, parent
        self.given = self.dropped = 0
        self.waits_until: float | None = None
        self._ahead = Ahead()
        self._pullers: dict[int, threading.Thread] = {}
        # By what identifies a message: the id of the first message, and when it arrived.
        self._remembered: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._lock = threading.Lock()
        self._in_work: set[str] = set()
        self._done: list[str] = []
        self._work, self._sending = threading.Event(), threading.Lock()
        self._quiet_since: float | None = None
        self._sinks: dict[Hashable, Sink] = {}
        self._over, self._closed = InterruptibleEvent(), InterruptibleEvent()
        self._error: Exception | None = None
        for work in (self._keep, self._renew):
            threading.Thread(target=work, daemon=True).start()

    def __reduce__(self) -> NoReturn:
        # Beam runs a copy of an object that can be pickled, and a copy would receive no messages.
        raise TypeError("an Intake stays in its process")

    def serve(self, reader: int) -> None:
        """Start a thread that pulls messages for a reader, unless it runs already."""
        with self._lock:
            if reader not in self._pullers:
                thread = threading.Thread(target=self._pull, daemon=True)
                self._pullers[reader] = thread
                thread.start()

    def _pull(self) -> None:
        """Pull messages ahead until `end` is called; an error is raised by `take`."""
        try:
            while not self._over.is_set():
                received = self._lease.receive()
                if received is None:
                    # Google's emulator does not wait for messages.
                    self._over.wait(min(_PAUSE_SECONDS, self.quiet_seconds / 50))
                for message_id, raw in received or ():
                    if self._is_known(message_id, raw):
                        self.acknowledge([message_id])
                    elif not self._ahead.put(message_id, raw):
                        return
        except Exception as error:
            self.fail(error)

    def _is_known(self, message_id: str, raw: bytes) -> bool:
        """Return whether a message is a duplicate that must be dropped, and remember it."""
        seconds, attribute = self._options.remember_seconds, self._options.remember_attribute
        if seconds is None:
            return False
        key = message_id if attribute is None else duplicate_key(raw, attribute)
        now = time.monotonic()
        with self._lock:
            while self._remembered and next(iter(self._remembered.values()))[1] < now - seconds:
                self._remembered.popitem(last=False)
            known = key in self._remembered
            self._remembered.setdefault(key, (message_id, now))
            self.dropped += known
        return known

    def take(self, seconds: float) -> list[tuple[str, bytes]] | None:
        """Return the ids and the serialized messages of a bundle, or None at the end.

        Args:
            seconds: How long to wait for the first message. There may be none.

        Raises:
            InputError: The subscription cannot be read, or messages cannot be acknowledged.
            BalanceError: Messages of an earlier bundle were not decoded.
        """
        options = self._options
        if options.stop_after_seconds is not None:
            seconds = min(seconds, options.stop_after_seconds / 4)
        if self._quiet_since is None:
            self._quiet_since = time.monotonic()
        began = time.monotonic()
        found = self._ahead.take(seconds, options.wait_seconds, options.wait_messages)
        if time.monotonic() - began > seconds + options.wait_seconds + _STOPPED_SECONDS:
            # The process was stopped, and could receive nothing.
            self._quiet_since = time.monotonic()
        if self._error is not None:
            raise self._error
        if self._over.is_set():
            return None
        if found:
            self._quiet_since = time.monotonic()
            with self._lock:
                self._in_work.update(message_id for message_id, _ in found)
                self.given += len(found)
        elif self._should_end():
            self.end()
            return None
        return found

    def _should_end(self) -> bool:
        """Return whether the stream has been without a message for long enough."""
        patience, quiet = self._options.stop_after_seconds, self.quiet_seconds
        if patience is None or quiet <= patience:
            return False
        if self.given or quiet > self._options.hidden_seconds:
            return True
        self.waits_until = time.monotonic() + self._options.hidden_seconds - quiet
        return False

    @property
    def quiet_seconds(self) -> float:
        """How long no message has arrived, in seconds, since the pipeline was ready for one."""
        return 0.0 if self._quiet_since is None else time.monotonic() - self._quiet_since

    @property
    def unfinished(self) -> int:
        """The number of messages that the pipeline has received and that are not acknowledged."""
        return len(self._in_work)

    def acknowledge(self, ids: Sequence[str]) -> None:
        """Acknowledge messages soon, in another thread; `take` raises its error."""
        with self._lock:
            self._done.extend(ids)
        self._work.set()

    def give_back(self, ids: Sequence[str]) -> None:
        """Let messages be delivered again, because their bundle has failed.

        After the end, only `close` gives messages back: the last bundle may be final soon.
        """
        if self._over.is_set():
            return
        gone = set(ids)
        with self._lock:
            for key in [key for key, (first, _) in self._remembered.items() if first in gone]:
                del self._remembered[key]
        self._lease.give_back(ids)

    def fail(self, error: Exception) -> None:
        """Make `take` raise an error."""
        self._error = self._error or error
        self._ahead.close()

    def sink(self, key: Hashable, make: Callable[[], Sink]) -> Any:
        """Return the sink of this process with a key; the first call makes it."""
        with self._lock:
            if key not in self._sinks:
                self._sinks[key] = make()
            return self._sinks[key]

    def drain(self) -> None:
        """Let sinks write everything, because the source has ended."""
        for sink in list(self._sinks.values()):
            sink.finish()

    def _keep(self) -> None:
        """Acknowledge messages that are done, and extend the deadlines of new ones."""
        extended = time.monotonic()
        while self._error is None and not self._closed.is_set():
            self._work.wait(_EXTEND_SECONDS)
            try:
                self._send()
            except Exception as error:
                self.fail(error)
            if self._parent not in (None, os.getppid()):
                # Without this, the runner and its workers would read on without end.
                self.fail(RunnerError("the process that started the stream has ended"))
            if time.monotonic() - extended > _EXTEND_SECONDS:
                extended = time.monotonic()
                self._lease.renew_new()
            time.sleep(_ACK_SECONDS)

    def _renew(self) -> None:
        """Extend the deadlines of all messages, which may be very many if they wait for files."""
        while not self._closed.wait(RENEW_SECONDS):
            self._lease.renew()

    def _send(self) -> None:
        """Acknowledge the messages that are done, after a request that is already running."""
        self._work.clear()
        with self._sending:
            with self._lock:
                done, self._done = self._done, []
            if done:
                self._lease.acknowledge(done)
                with self._lock:
                    self._in_work.difference_update(done)

    def end(self) -> None:
        """Return no more messages from `take`; the pipeline ends when the others are done."""
        self._over.set()
        self._lease.stop()
        self._ahead.close()

    def finish(self) -> None:
        """Acknowledge all messages that the pipeline received, after it has succeeded.

        Raises:
            InputError: Messages cannot be acknowledged.
        """
        self.acknowledge(list(self._in_work))
        self._send()

    def close(self) -> None:
        """End, and give back the messages that are not acknowledged."""
        self.end()
        # Its last request could receive the messages that are about to be given back.
        for puller in self._pullers.values():
            puller.join(_END_SECONDS)
        for sink in self._sinks.values():
            sink.stop()
        self._closed.set()
        self._lease.release()


_intakes: dict[str, Intake] = {}
_lock = threading.Lock()


def intake_of(options: PullOptions) -> Intake:
    """Return the Intake of a run in this process, which the first call creates."""
    with _lock:
        if options.run not in _intakes:
            lease = Lease(options.cloud, options.subscription)
            _intakes[options.run] = Intake(options, lease, os.getppid())
        return _intakes[options.run]


@contextmanager
def open_intake(options: PullOptions) -> Iterator[Intake]:
    """Yield the Intake of a run in this process; at the end, give messages back."""
    intake = Intake(options, Lease(options.cloud, options.subscription))
    with _lock:
        _intakes[options.run] = intake
    try:
        yield intake
    finally:
        with _lock:
            del _intakes[options.run]
        intake.close()
