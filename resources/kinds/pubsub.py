"""Topics and subscriptions of Pub/Sub."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from google.api_core import exceptions

from cloud.reader_labels import seconds_left
from common.interrupts import InterruptibleEvent
from resources.declaration import Resource
from resources.kinds.base import Found, Kept, Kind, merged_labels

if TYPE_CHECKING:
    from google.pubsub_v1.types import Subscription

# How long `peek` waits for the messages of a subscription.
_PEEK_SECONDS = 5.0
_MASKS = {
    "acknowledge deadline": "ack_deadline_seconds",
    "expiration": "expiration_policy",
    "dead letter policy": "dead_letter_policy",
}


class Topics(Kind):
    """Topics. Only one without subscriptions is removed."""

    role: ClassVar = "roles/pubsub.editor"
    held: ClassVar = "{} still subscribes to it"

    def look(self, resource: Resource) -> Found | None:
        """Return the topic, None if it does not exist."""
        try:
            topic = self.cloud.publisher().get_topic(topic=resource.name, retry=self._retry)
        except exceptions.NotFound:
            return None
        return Found.labelled(topic.labels, {})

    def create(self, resource: Resource) -> None:
        """Create the topic with the labels."""
        request = {"name": resource.name, "labels": dict(self.labels)}
        self.cloud.publisher().create_topic(request=request, retry=self._retry)

    def relabel(self, resource: Resource, labels: Mapping[str, str | None]) -> None:
        """Read, change and write the labels."""
        topic = self.cloud.publisher().get_topic(topic=resource.name, retry=self._retry)
        new = {"name": resource.name, "labels": merged_labels(topic.labels, labels)}
        request = {"topic": new, "update_mask": {"paths": ["labels"]}}
        self.cloud.publisher().update_topic(request=request, retry=self._retry)

    def holds(self, resource: Resource) -> tuple[str, ...]:
        """Return the names of its subscriptions."""
        return tuple(self.subscriptions(resource))

    def delete(self, resource: Resource) -> None:
        """Delete the topic, or raise Kept if it still has a subscription."""
        for name in self.holds(resource):
            raise Kept(self.held_by(name))
        self.cloud.publisher().delete_topic(topic=resource.name, retry=self._retry)

    def subscriptions(self, resource: Resource) -> list[str]:
        """Return the full names of all subscriptions to a topic."""
        publisher = self.cloud.publisher()
        return list(publisher.list_topic_subscriptions(topic=resource.name, retry=self._retry))


class Subscriptions(Kind):
    """Pull subscriptions."""

    role: ClassVar = "roles/pubsub.editor"

    def look(self, resource: Resource) -> Found | None:
        """Return the subscription with its topic and settings, None if it does not exist."""
        try:
            found = self.cloud.subscriber().get_subscription(
                subscription=resource.name, retry=self._retry
            )
        except exceptions.NotFound:
            return None
        properties = {
            "topic": found.topic,
            "acknowledge deadline": f"{found.ack_deadline_seconds} s",
            "expiration": _expiry(found),
            "dead letter policy": found.dead_letter_policy.dead_letter_topic or "none",
        }
        return Found.labelled(found.labels, properties)

    def create(self, resource: Resource) -> None:
        """Create a subscription to its topic, which must exist."""
        self.cloud.subscriber().create_subscription(
            request=self._wanted(resource), retry=self._retry
        )

    def repairs(self, name: str, found: str | None) -> bool:
        """Return whether the property is a setting other than the topic."""
        return name in _MASKS

    def repair(self, resource: Resource, names: list[str]) -> None:
        """Set the named settings to their declared values."""
        request = {
            "subscription": self._wanted(resource),
            "update_mask": {"paths": [_MASKS[name] for name in names]},
        }
        self.cloud.subscriber().update_subscription(request=request, retry=self._retry)

    def relabel(self, resource: Resource, labels: Mapping[str, str | None]) -> None:
        """Read, change and write the labels."""
        subscriber = self.cloud.subscriber()
        found = subscriber.get_subscription(subscription=resource.name, retry=self._retry)
        new = {"name": resource.name, "labels": merged_labels(found.labels, labels)}
        request = {"subscription": new, "update_mask": {"paths": ["labels"]}}
        subscriber.update_subscription(request=request, retry=self._retry)

    def peek(self, resource: Resource) -> int | None:
        """Return how many messages a subscription delivers in one response.

        The messages are released again right away.

        Args:
            resource: The subscription.

        Returns:
            The number of messages. None if the subscription cannot be read, or if it delivers no
            message and its label names a reader that may hold some, even if it was killed.
        """
        count = self._handed_over(resource)
        return None if count == 0 and self._is_read(resource) else count

    def _is_read(self, resource: Resource) -> bool:
        try:
            found = self.cloud.subscriber().get_subscription(
                subscription=resource.name, retry=self._retry
            )
        except exceptions.NotFound:
            return False
        # The label of a Dataflow job never expires (infinity) and may outlive the job. It does not
        # count here, because cleanup finds running jobs in another way.
        return 0 < seconds_left(found.labels) < math.inf

    def _handed_over(self, resource: Resource) -> int | None:
        subscriber, ended = self.cloud.subscriber(), InterruptibleEvent()

        def requests() -> Iterator[dict[str, Any]]:
            yield {"subscription": resource.name, "stream_ack_deadline_seconds": 10}
            # The server closes a stream whose requests have ended.
            ended.wait(2 * _PEEK_SECONDS)

        try:
            tickets = self._first(
                subscriber.streaming_pull(requests=requests(), timeout=_PEEK_SECONDS, retry=None)
            )
            if tickets:
                subscriber.modify_ack_deadline(
                    subscription=resource.name, ack_ids=tickets, ack_deadline_seconds=0
                )
        except (exceptions.NotFound, exceptions.DeadlineExceeded):
            return 0
        except exceptions.GoogleAPICallError:
            return None
        finally:
            ended.set()
        return len(tickets)

    @staticmethod
    def _first(stream: Any) -> list[str]:
        """Return the acknowledgement ids in the first response that has messages."""
        for answer in stream:
            if answer.received_messages:
                stream.cancel()
                return [message.ack_id for message in answer.received_messages]
        return []

    def delete(self, resource: Resource) -> None:
        """Delete the subscription with its messages."""
        self.cloud.subscriber().delete_subscription(subscription=resource.name, retry=self._retry)

    def _wanted(self, resource: Resource) -> dict[str, Any]:
        deadline = resource.properties["acknowledge deadline"].removesuffix(" s")
        return {
            "name": resource.name,
            "topic": resource.properties["topic"],
            "ack_deadline_seconds": int(deadline),
            # Empty means that the subscription never expires.
            "expiration_policy": {},
            "labels": dict(self.labels),
        }


def _expiry(subscription: Subscription) -> str:
    lifetime = subscription.expiration_policy.ttl.total_seconds()
    kept = subscription.message_retention_duration.total_seconds()
    if lifetime and lifetime < kept:
        return f"after {lifetime / 3600:,.0f} hours without a reader"
    return "later than its messages"
