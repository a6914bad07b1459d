"""A Pub/Sub topic with a subscription, for tests that publish messages or read them."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from google.api_core import exceptions

from cloud.clients import Cloud


@dataclass
class Mailbox:
    """A topic with a subscription, and the bodies of published messages by message id."""

    cloud: Cloud
    name: str
    sent: dict[str, bytes] = field(default_factory=dict)

    @property
    def topic(self) -> str:
        return f"projects/{self.cloud.project}/topics/{self.name}"

    @property
    def subscription(self) -> str:
        return f"projects/{self.cloud.project}/subscriptions/{self.name}"

    def create(self) -> "Mailbox":
        """Create both; messages that are not acknowledged are delivered again after 10 s."""
        self.cloud.publisher().create_topic(name=self.topic)
        self.cloud.subscriber().create_subscription(
            name=self.subscription, topic=self.topic, ack_deadline_seconds=10
        )
        return self

    def publish(self, bodies: Sequence[bytes], **attributes: str) -> None:
        # A message without data must have an attribute.
        attributes = attributes or {"from": "a test"}
        for start in range(0, len(bodies), 100):
            part = bodies[start : start + 100]
            messages = [{"data": body, "attributes": attributes} for body in part]
            answer = self.cloud.publisher().publish(topic=self.topic, messages=messages)
            self.sent |= dict(zip(answer.message_ids, part, strict=True))

    def hold(self, count: int, seconds: int) -> None:
        """Pull messages and hold them for some seconds, like a reader that was killed."""
        held: dict[str, str] = {}
        while len(held) < count:
            for one in self._pull(count, None):
                held[one.message.message_id] = one.ack_id
        self._set_deadline([*held.values()], seconds)

    def take(self, count: int, seconds: float = 3.0) -> list[Any]:
        """Pull and acknowledge up to `count` messages, until none arrives for some seconds."""
        found: list[Any] = []
        while len(found) < count and (pulled := self._pull(1000, seconds)):
            ids = [one.ack_id for one in pulled]
            self.cloud.subscriber().acknowledge(subscription=self.subscription, ack_ids=ids)
            found += [one.message for one in pulled]
        return found

    def look(self, count: int = 1000, seconds: float = 1.0) -> list[Any]:
        """Return up to `count` messages that arrive within some seconds, and give them back."""
        found: dict[str, Any] = {}
        until = time.monotonic() + seconds
        # The emulator may respond early, without a message.
        while len(found) < count and (left := until - time.monotonic()) > 0:
            found |= {one.message.message_id: one for one in self._pull(1000, left)}
        if found:
            self._set_deadline([one.ack_id for one in found.values()], 0)
        return [one.message for one in found.values()]

    def bodies(self, count: int = 1000, seconds: float = 1.0) -> list[bytes]:
        """Return the sorted bodies of the messages that `look` finds."""
        return sorted(message.data for message in self.look(count, seconds))

    def _pull(self, count: int, seconds: float | None) -> list[Any]:
        client: Any = self.cloud.subscriber()
        request = {"subscription": self.subscription, "max_messages": count}
        options = {} if seconds is None else {"timeout": seconds, "retry": None}
        # If the timeout is very short, the server resets the request.
        with suppress(exceptions.DeadlineExceeded, exceptions.Cancelled):
            return list(client.pull(request=request, **options).received_messages)
        return []

    def _set_deadline(self, ack_ids: list[str], seconds: int) -> None:
        self.cloud.subscriber().modify_ack_deadline(
            subscription=self.subscription, ack_ids=ack_ids, ack_deadline_seconds=seconds
        )
