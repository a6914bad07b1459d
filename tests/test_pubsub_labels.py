"""The proxy in front of the Pub/Sub emulator: it stores labels and passes on all other calls."""

import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from google.api_core import exceptions
from google.pubsub_v1 import types

from cloud.clients import Cloud
from examples.local_cloud import LocalCloud


@pytest.fixture
def names(labelled_emulators: LocalCloud) -> Iterator[tuple[Cloud, str, str]]:
    """A cloud, a topic and its subscription, both with the label `team`."""
    cloud, name = labelled_emulators.cloud, f"l{uuid.uuid4().hex}"
    topic = f"projects/{cloud.project}/topics/{name}"
    subscription = f"projects/{cloud.project}/subscriptions/{name}"
    labels = {"team": "fraud"}
    created = cloud.publisher().create_topic(request={"name": topic, "labels": labels})
    assert dict(created.labels) == labels
    request = {"name": subscription, "topic": topic, "labels": labels}
    assert dict(cloud.subscriber().create_subscription(request=request).labels) == labels
    yield cloud, topic, subscription
    cloud.subscriber().delete_subscription(subscription=subscription)
    cloud.publisher().delete_topic(topic=topic)


def test_labels_are_stored_changed_and_listed(names: tuple[Cloud, str, str]) -> None:
    cloud, topic, subscription = names
    publisher, subscriber = cloud.publisher(), cloud.subscriber()
    new = {"team": "fraud", "more": "x"}
    publisher.update_topic(
        request={"topic": {"name": topic, "labels": new}, "update_mask": {"paths": ["labels"]}}
    )
    changed = subscriber.update_subscription(
        request={
            "subscription": {"name": subscription, "labels": {}, "ack_deadline_seconds": 30},
            "update_mask": {"paths": ["labels", "ack_deadline_seconds"]},
        }
    )
    assert (dict(changed.labels), changed.ack_deadline_seconds) == ({}, 30)
    assert dict(publisher.get_topic(topic=topic).labels) == new
    assert dict(subscriber.get_subscription(subscription=subscription).labels) == {}
    place = f"projects/{cloud.project}"
    assert {t.name: dict(t.labels) for t in publisher.list_topics(project=place)}[topic] == new


def test_a_topic_that_is_created_again_has_no_old_labels(names: tuple[Cloud, str, str]) -> None:
    cloud, topic, _ = names
    cloud.publisher().delete_topic(topic=topic)
    with pytest.raises(exceptions.NotFound):
        cloud.publisher().get_topic(topic=topic)
    with pytest.raises(exceptions.NotFound):
        cloud.publisher().update_topic(
            request={"topic": {"name": topic}, "update_mask": {"paths": ["labels"]}}
        )
    cloud.publisher().create_topic(name=topic)
    with pytest.raises(exceptions.AlreadyExists):
        cloud.publisher().create_topic(request={"name": topic, "labels": {"a": "b"}})
    assert dict(cloud.publisher().get_topic(topic=topic).labels) == {}


def test_messages_pass_through_by_pull_and_by_streaming_pull(names: tuple[Cloud, str, str]) -> None:
    cloud, topic, subscription = names
    publisher, subscriber = cloud.publisher(), cloud.subscriber()
    messages: list[Any] = [{"data": b"%d" % n} for n in range(20)]
    publisher.publish(topic=topic, messages=messages)
    pulled = subscriber.pull(subscription=subscription, max_messages=5).received_messages
    subscriber.acknowledge(subscription=subscription, ack_ids=[m.ack_id for m in pulled])
    seen = {m.message.data for m in pulled}
    ended = threading.Event()

    def requests() -> Iterator[types.StreamingPullRequest]:
        yield types.StreamingPullRequest(subscription=subscription, stream_ack_deadline_seconds=60)
        ended.wait(60)

    stream = subscriber.streaming_pull(requests=requests(), timeout=60)
    for response in stream:
        seen |= {m.message.data for m in response.received_messages}
        if len(seen) == 20:
            break
    ended.set()
    stream.cancel()
    assert seen == {b"%d" % n for n in range(20)}
