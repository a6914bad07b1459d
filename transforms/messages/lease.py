"""Lease: messages pulled from a subscription that stay ours until all is done with them.

Pub/Sub gives a message to another reader when its deadline has passed; so deadlines
are set anew, in a thread, until the messages are acknowledged or given back.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from google.api_core import exceptions
from google.pubsub_v1.types import PubsubMessage

from cloud.clients import Cloud
from cloud.errors import is_passing, retry, translate_errors
from common.errors import InputError
from common.interrupts import InterruptibleEvent
from transforms.messages.message import Message, parse_message

# Of one request: ids of acknowledgement have some 200 bytes, a request 512 kB.
REQUEST_MESSAGES = 1_000
DEADLINE_SECONDS = 60
RENEW_SECONDS = 20.0
# A subscription that gave nothing for so long is empty; an answer without messages does not
# say so.
PATIENCE_SECONDS = 10.0
_PAUSE_SECONDS = 0.1
# Of one request. A request that is cancelled may still be given messages, which nobody has then:
# so one is let end, and who stops waits for it.
_WAIT_SECONDS = 1.0


class Lease:
    """The messages that were pulled, by their ids."""

    def __init__(self, cloud: Cloud, subscription: str) -> None:
        self._cloud, self._subscription = cloud, subscription
        self._client: Any = cloud.subscriber()
        self._held: dict[str, str] = {}
        self._lock = threading.Lock()
        self._over = InterruptibleEvent()
        self._wait = _WAIT_SECONDS

    def pull(self, limit: int, first_seconds: float = PATIENCE_SECONDS) -> Iterator[Message]:
        """How many at most -> messages, each once, until there are no more. Raises InputError.

        first_seconds: how long to wait for the first one. After `stop` no request begins, and
        what the last one brings is given back.
        """
        until = time.monotonic() + first_seconds
        while len(self._held) < limit and (left := until - time.monotonic()) > 0:
            if self._over.is_set():
                return
            count = min(REQUEST_MESSAGES, limit - len(self._held))
            received = self._pull(count, min(left, self._wait))
            if self._over.is_set():
                self._set_deadline([one.ack_id for one in received], 0)
                return
            if not received:
                time.sleep(min(left, _PAUSE_SECONDS))
                continue
            until = time.monotonic() + PATIENCE_SECONDS
            new = []
            with self._lock:
                for one in received:
                    if one.message.message_id not in self._held:
                        new.append(one.message)
                    # A message that came again has another id of acknowledgement.
                    self._held[one.message.message_id] = one.ack_id
            self._set_deadline([one.ack_id for one in received], DEADLINE_SECONDS)
            yield from (parse_message(PubsubMessage.serialize(message)) for message in new)

    def _pull(self, count: int, seconds: float) -> list[Any]:
        """How many messages at most, and how long to wait for one -> those that came."""
        request = {"subscription": self._subscription, "max_messages": count}
        again = retry(self._cloud.retry_seconds).with_predicate(
            lambda error: is_passing(error) and not isinstance(error, exceptions.DeadlineExceeded)
        )
        with translate_errors(InputError, f"subscription {self._subscription} cannot be read"):
            try:
                answer = self._client.pull(request=request, retry=again, timeout=seconds)
            except exceptions.DeadlineExceeded:
                # An answer may be large and the line slow: in time it must come through.
                self._wait = min(2 * self._wait, PATIENCE_SECONDS)
                return []
        if not answer.received_messages:
            self._wait = _WAIT_SECONDS
        return list(answer.received_messages)

    def stop(self) -> None:
        """Nothing -> a `pull` in another thread ends with its request, mostly within a second."""
        self._over.set()

    def acknowledge(self, message_ids: Iterable[str]) -> None:
        """Ids of messages -> they are gone from the subscription. Raises InputError.

        Those that were given back meanwhile are not: somebody else may have them.
        """
        with self._lock:
            held = {i: self._held[i] for i in message_ids if i in self._held}
        with translate_errors(
            InputError, f"messages of {self._subscription} cannot be acknowledged"
        ):
            for part in _parts(list(held.values())):
                self._client.acknowledge(
                    request={"subscription": self._subscription, "ack_ids": part},
                    retry=retry(self._cloud.retry_seconds),
                )
        # Not before: what could not be acknowledged is still ours, to keep or to give back.
        with self._lock:
            for message_id in held:
                self._held.pop(message_id, None)

    def renew(self) -> None:
        """All that is held stays so for DEADLINE_SECONDS from now."""
        with self._lock:
            ack_ids = list(self._held.values())
        self._set_deadline(ack_ids, DEADLINE_SECONDS)

    def release(self) -> None:
        """All that is held is given back: any reader may have it at once."""
        with self._lock:
            ack_ids = list(self._held.values())
            self._held.clear()
        self._set_deadline(ack_ids, 0)

    def _set_deadline(self, ack_ids: Sequence[str], seconds: int) -> None:
        """A deadline that cannot be set leaves the old one; the message may come again then."""
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
    """A subscription -> a lease of its messages; what is held at the end is given back."""
    lease, over = Lease(cloud, subscription), InterruptibleEvent()

    def keep() -> None:
        while not over.wait(RENEW_SECONDS):
            lease.renew()

    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    try:
        yield lease
    finally:
        over.set()
        keeper.join()
        lease.release()
