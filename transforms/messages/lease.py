"""Lease: messages that are pulled from a subscription and reserved until they are done.

Pub/Sub delivers a message to another reader when its deadline has passed. A thread therefore
extends the deadlines until the messages are acknowledged or given back.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from google.api_core import exceptions
from google.pubsub_v1.types import PullResponse

from cloud.clients import Cloud
from cloud.errors import is_passing, retry, translate_errors
from common.errors import InputError
from common.interrupts import InterruptibleEvent, repeating
from transforms.messages.message import Message, parse_message

logger = logging.getLogger("millrace")

# On Linux, this clock also counts the time for which the machine sleeps.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
# The messages of one request. An ack id has about 200 bytes, and a request takes 512 kB.
REQUEST_MESSAGES = 1_000
DEADLINE_SECONDS = 60
RENEW_SECONDS = 20.0
# A subscription counts as empty when it has returned no message for this long. A single response
# without messages does not prove it.
PATIENCE_SECONDS = 10.0
_PAUSE_SECONDS = 0.1
# The timeout of one request. Pub/Sub may assign messages to a request that has been cancelled, and
# then no reader receives them. So no request is cancelled: `stop` lets the last one end.
_WAIT_SECONDS = 1.0
# If the timeout is very short, the server may reset the request before the client gives it up.
_LATE = (exceptions.DeadlineExceeded, exceptions.Cancelled)


class Lease:
    """The messages that were pulled from a subscription and are not acknowledged yet.

    Args:
        cloud: Makes the client, and limits retries.
        subscription: The full name of the subscription.
    """

    def __init__(self, cloud: Cloud, subscription: str) -> None:
        self._cloud, self._subscription = cloud, subscription
        self._client: Any = cloud.subscriber()
        self._held: dict[str, str] = {}
        # The ids of messages whose deadline is still that of the subscription.
        self._new: list[str] = []
        self._lock = threading.Lock()
        self._over = InterruptibleEvent()
        self._wait = _WAIT_SECONDS
        self._renewed = time.clock_gettime(_CLOCK)

    def pull(self, limit: int, first_seconds: float = PATIENCE_SECONDS) -> Iterator[Message]:
        """Yield messages, each once, until the subscription is empty or `stop` is called.

        After `stop` no request is sent, and messages that the last one receives are given back.

        Args:
            limit: The maximum number of messages to hold.
            first_seconds: How long to wait for the first message.

        Raises:
            InputError: The subscription cannot be read.
        """
        until = time.monotonic() + first_seconds
        while len(self._held) < limit and (left := until - time.monotonic()) > 0:
            if self._over.is_set():
                return
            new = self.receive(min(REQUEST_MESSAGES, limit - len(self._held)), left)
            if new is None:
                time.sleep(min(left, _PAUSE_SECONDS))
                continue
            until = time.monotonic() + PATIENCE_SECONDS
            self.renew_new()
            yield from (parse_message(raw) for _, raw in new)

    def receive(
        self, count: int = REQUEST_MESSAGES, seconds: float = PATIENCE_SECONDS
    ) -> list[tuple[str, bytes]] | None:
        """Send one request; return the ids of new messages, and these messages serialized.

        If `stop` is called meanwhile, the messages are given back. `renew_new` must be called
        within the deadline of the subscription, which is at least 10 seconds.

        Args:
            count: The maximum number of messages.
            seconds: How long to wait for the first one at most.

        Returns:
            The messages that are not held already, or None if the request received nothing.

        Raises:
            InputError: The subscription cannot be read.
        """
        received = self._pull(count, min(seconds, self._wait))
        if self._over.is_set():
            self._set_deadline([one.ack_id for one in received], 0)
            return None
        if not received:
            return None
        new = []
        with self._lock:
            for one in received:
                message_id = one.message.message_id
                if message_id not in self._held:
                    new.append((message_id, one.message.SerializeToString()))
                # A message that is delivered again has a new ack id.
                self._held[message_id] = one.ack_id
                self._new.append(message_id)
        return new

    def _pull(self, count: int, seconds: float) -> list[Any]:
        """Pull up to `count` messages in one request, and wait for the first up to `seconds`."""
        request = {"subscription": self._subscription, "max_messages": count}
        again = retry(self._cloud.retry_seconds).with_predicate(
            lambda error: is_passing(error) and not isinstance(error, _LATE)
        )
        with translate_errors(InputError, f"subscription {self._subscription} cannot be read"):
            try:
                answer = self._client.pull(request=request, retry=again, timeout=seconds)
            except _LATE:
                # The response may be large and the connection slow: wait longer the next time.
                self._wait = min(2 * self._wait, PATIENCE_SECONDS)
                return []
        if not answer.received_messages:
            self._wait = _WAIT_SECONDS
        # The bare protobuf messages: proto-plus would wrap each of them.
        return list(PullResponse.pb(answer).received_messages)

    def stop(self) -> None:
        """End a `pull` in another thread after its request, usually within a second."""
        self._over.set()

    def acknowledge(self, message_ids: Iterable[str]) -> None:
        """Acknowledge messages by their ids.

        Messages that have been given back are skipped, because another reader may have them.

        Raises:
            InputError: Messages cannot be acknowledged.
        """
        with self._lock:
            held = {i: self._held[i] for i in message_ids if i in self._held}
        with translate_errors(
            InputError, f"messages of {self._subscription} cannot be acknowledged"
        ):
            for part in _parts(list(held.values())):
                self._acknowledge(part)
        # Only now: a message that could not be acknowledged is still held, and can be given back.
        with self._lock:
            for message_id in held:
                self._held.pop(message_id, None)

    def _acknowledge(self, ack_ids: Sequence[str]) -> None:
        """Acknowledge the messages of one request.

        A subscription with exactly-once delivery names the ids that it refuses. Those of messages
        whose deadline has passed are left out: they are delivered again, as by other subscriptions.
        """
        left = list(ack_ids)

        def send() -> None:
            nonlocal left
            try:
                self._client.acknowledge(
                    request={"subscription": self._subscription, "ack_ids": left}, retry=None
                )
            except exceptions.GoogleAPICallError as error:
                faults = {i: text for i, text in (error.metadata or {}).items() if i in left}
                if not faults:
                    raise
                left = [i for i, text in faults.items() if text.startswith("TRANSIENT_")]
                if left:
                    raise exceptions.Aborted("acknowledgements failed for now") from error

        retry(self._cloud.retry_seconds)(send)()

    def renew(self) -> None:
        """Extend the deadlines of all held messages to DEADLINE_SECONDS from now.

        If they have passed since the last call, because this process was stopped or its machine
        slept, a warning says so.
        """
        with self._lock:
            ack_ids = list(self._held.values())
        now = time.clock_gettime(_CLOCK)
        late, self._renewed = now - self._renewed, now
        if ack_ids and late > DEADLINE_SECONDS:
            logger.warning(
                "the deadlines of %s received messages were not extended for %.0f s, because this "
                "process was stopped or its machine slept: Pub/Sub delivers them again, so their "
                "rows may be written twice, with the same row_id",
                f"{len(ack_ids):,}",
                late,
            )
        self._set_deadline(ack_ids, DEADLINE_SECONDS)

    def renew_new(self) -> None:
        """Extend the deadlines of messages that are new since the last call and still held."""
        with self._lock:
            ack_ids = [self._held[i] for i in self._new if i in self._held]
            self._new.clear()
        self._set_deadline(ack_ids, DEADLINE_SECONDS)

    def give_back(self, message_ids: Iterable[str]) -> None:
        """Give messages back; Pub/Sub can deliver them to any reader at once."""
        with self._lock:
            ack_ids = [self._held.pop(i) for i in message_ids if i in self._held]
        self._set_deadline(ack_ids, 0)

    def release(self) -> None:
        """Give all held messages back."""
        self.give_back(list(self._held))

    def _set_deadline(self, ack_ids: Sequence[str], seconds: int) -> None:
        """Set deadlines; errors are ignored, since a message would only be delivered again."""
        with contextlib.suppress(exceptions.GoogleAPIError):
            for part in _parts(ack_ids):
                self._client.modify_ack_deadline(
                    request={
                        "subscription": self._subscription,
                        "ack_ids": part,
                        "ack_deadline_seconds": seconds,
                    },
                    timeout=RENEW_SECONDS / 2,
                )


def _parts(ack_ids: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(ack_ids), REQUEST_MESSAGES):
        yield list(ack_ids[start : start + REQUEST_MESSAGES])


@contextlib.contextmanager
def leased(cloud: Cloud, subscription: str) -> Iterator[Lease]:
    """Yield a Lease of a subscription, renewed by a thread; at the end, give messages back."""
    lease = Lease(cloud, subscription)
    try:
        with repeating(lease.renew, RENEW_SECONDS):
            yield lease
    finally:
        lease.release()
