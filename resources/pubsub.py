"""Topics and subscriptions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from google.api_core import exceptions

from resources.declaration import Resource
from resources.kind import Found, Kept, Kind, is_ours

if TYPE_CHECKING:
    from google.pubsub_v1.types import Subscription

_MASKS = {
    "acknowledge deadline": "ack_deadline_seconds",
    "expires": "expiration_policy",
    "dead letter policy": "dead_letter_policy",
}


class Topics(Kind):
    """Topics, which are removed only when no subscription but ours is left."""

    role: ClassVar = "roles/pubsub.editor"

    def look(self, resource: Resource) -> Found | None:
        """That it is there."""
        try:
            topic = self.cloud.publisher().get_topic(topic=resource.name, retry=self._retry)
        except exceptions.NotFound:
            return None
        return Found(ours=is_ours(topic.labels))

    def create(self, resource: Resource) -> None:
        """With the labels."""
        request = {"name": resource.name, "labels": dict(self.labels)}
        self.cloud.publisher().create_topic(request=request, retry=self._retry)

    def delete(self, resource: Resource) -> None:
        """The topic, unless a subscription would be left without one."""
        if left := self.subscriptions(resource):
            raise Kept(f"{left[0]} still subscribes to it")
        self.cloud.publisher().delete_topic(topic=resource.name, retry=self._retry)

    def subscriptions(self, resource: Resource) -> list[str]:
        """A topic -> the names of all subscriptions to it."""
        publisher = self.cloud.publisher()
        return list(publisher.list_topic_subscriptions(topic=resource.name, retry=self._retry))


class Subscriptions(Kind):
    """Subscriptions that are pulled."""

    role: ClassVar = "roles/pubsub.editor"

    def look(self, resource: Resource) -> Found | None:
        """Its topic and how it keeps messages."""
        try:
            found = self.cloud.subscriber().get_subscription(
                subscription=resource.name, retry=self._retry
            )
        except exceptions.NotFound:
            return None
        properties = {
            "topic": found.topic,
            "acknowledge deadline": f"{found.ack_deadline_seconds} s",
            "expires": _expiry(found),
            "dead letter policy": found.dead_letter_policy.dead_letter_topic or "none",
        }
        return Found(properties, is_ours(found.labels))

    def create(self, resource: Resource) -> None:
        """With its topic, which must be there."""
        self.cloud.subscriber().create_subscription(
            request=self._wanted(resource), retry=self._retry
        )

    def mends(self, name: str, found: str | None) -> bool:
        """All but the topic."""
        return name in _MASKS

    def mend(self, resource: Resource, names: list[str]) -> None:
        """These set to what they shall be."""
        request = {
            "subscription": self._wanted(resource),
            "update_mask": {"paths": [_MASKS[name] for name in names]},
        }
        self.cloud.subscriber().update_subscription(request=request, retry=self._retry)

    def delete(self, resource: Resource) -> None:
        """The subscription with its messages, unless it is another topic's."""
        found = self.look(resource)
        if found and found.properties["topic"] not in (
            resource.properties["topic"],
            "_deleted-topic_",
        ):
            raise Kept(f"it is a subscription of {found.properties['topic']}, not of ours")
        self.cloud.subscriber().delete_subscription(subscription=resource.name, retry=self._retry)

    def _wanted(self, resource: Resource) -> dict[str, Any]:
        deadline = resource.properties["acknowledge deadline"].removesuffix(" s")
        return {
            "name": resource.name,
            "topic": resource.properties["topic"],
            "ack_deadline_seconds": int(deadline),
            # One without a time to live.
            "expiration_policy": {},
            "labels": dict(self.labels),
        }


def _expiry(subscription: Subscription) -> str:
    lifetime = subscription.expiration_policy.ttl.total_seconds()
    kept = subscription.message_retention_duration.total_seconds()
    if lifetime and lifetime < kept:
        return f"after {lifetime / 3600:,.0f} hours without a reader"
    return "not before its messages"
