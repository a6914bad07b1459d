"""The subscription of a stream: made if asked for, looked at, and marked as read by one job."""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from collections.abc import Iterator
from typing import Any

from google.api_core import exceptions

from cloud.clients import Cloud
from cloud.errors import retry, told_as
from model_handlers.errors import InputError, UsageError
from pipelines.options import StreamSourceOptions

READER = "millrace_reader"
UNTIL = "millrace_reader_until"
# How long a run in this process is believed to live after it last said so.
LEASE_SECONDS = 120


def check_subscription(subscription: Any, output_topics: list[str]) -> None:
    """A subscription and the topics written -> nothing, or UsageError if messages would be lost."""
    name = subscription.name
    if subscription.topic in output_topics:
        raise UsageError(
            f"{subscription.topic} is the topic of {name} and an output: each result would be "
            "scored again, for ever; choose another topic"
        )
    if subscription.dead_letter_policy.dead_letter_topic:
        raise UsageError(
            f"{name} has a dead letter policy: Pub/Sub would move messages to "
            f"{subscription.dead_letter_policy.dead_letter_topic} after some deliveries, though "
            "they are only waiting; remove it (gcloud pubsub subscriptions update NAME "
            "--clear-dead-letter-policy), dead letters are what --dead_letter_* is for"
        )
    if subscription.push_config.push_endpoint:
        raise UsageError(f"{name} pushes its messages: expected a subscription that is pulled")
    lifetime = subscription.expiration_policy.ttl.total_seconds()
    kept = subscription.message_retention_duration.total_seconds()
    if lifetime and lifetime < kept:
        raise UsageError(
            f"{name} expires after {lifetime / 3600:,.0f} hours without a reader, and its messages "
            f"with it, which are kept for {kept / 3600:,.0f}: set --expiration-period=never"
        )


def open_subscription(
    options: StreamSourceOptions, cloud: Cloud, output_topics: list[str]
) -> tuple[str, bool]:
    """Flags -> the subscription's name, checked, and whether it was made for this run.

    Raises UsageError, InputError.
    """
    if (options.input_subscription is None) == (options.input_topic is None):
        raise UsageError("expected one of --input_subscription and --input_topic")
    if options.input_topic is None:
        if options.create_subscription:
            raise UsageError("--create_subscription is for --input_topic")
        name = options.input_subscription or ""
        with told_as(InputError, f"subscription {name} cannot be read"):
            found = cloud.subscriber().get_subscription(
                subscription=name, retry=retry(cloud.retry_seconds)
            )
        check_subscription(found, output_topics)
        return name, False
    if not options.create_subscription:
        raise UsageError(
            "--input_topic alone has no messages: say --create_subscription to make a subscription "
            "of its own, or --input_subscription"
        )
    if options.input_topic in output_topics:
        raise UsageError(f"{options.input_topic} is input and output: choose another topic")
    project, topic = re.fullmatch(r"projects/(.+)/topics/(.+)", options.input_topic).groups()  # type: ignore[union-attr]
    name = f"projects/{project}/subscriptions/millrace-{topic[:200]}-{uuid.uuid4().hex[:8]}"
    with told_as(InputError, f"a subscription of {options.input_topic} cannot be made"):
        cloud.subscriber().create_subscription(
            request={"name": name, "topic": options.input_topic, "ack_deadline_seconds": 60},
            retry=retry(cloud.retry_seconds),
        )
    return name, True


def claim(name: str, reader: str, cloud: Cloud, *, lasting: bool, shared: bool) -> bool:
    """A subscription and who reads it -> whether its label now says so.

    lasting: the reader goes on after this process. shared: another reader is fine.
    Raises UsageError where the label names another reader. A server without labels, as
    the emulator, answers False.
    """
    client = cloud.subscriber()
    found = client.get_subscription(subscription=name, retry=retry(cloud.retry_seconds))
    other, until = found.labels.get(READER, ""), found.labels.get(UNTIL, "0")
    alive = until == "0" or float(until) > time.time()
    if other and other != reader and alive and not shared:
        raise UsageError(
            f"{name} is read by {other}, as its label {READER} says: two readers would each get a "
            "part of the messages. Stop that job, or remove the label if it is gone, or say "
            "--allow_shared_subscription"
        )
    labels = dict(found.labels)
    labels[READER] = reader
    labels[UNTIL] = "0" if lasting else str(int(time.time() + LEASE_SECONDS))
    return _set_labels(client, name, labels, cloud)


def release(name: str, reader: str, cloud: Cloud) -> None:
    """A subscription and who read it -> without its label."""
    client = cloud.subscriber()
    with contextlib.suppress(exceptions.GoogleAPICallError):
        labels = dict(client.get_subscription(subscription=name).labels)
        if labels.pop(READER, None) == reader:
            labels.pop(UNTIL, None)
            _set_labels(client, name, labels, cloud)


def _set_labels(client: Any, name: str, labels: dict[str, str], cloud: Cloud) -> bool:
    try:
        client.update_subscription(
            request={
                "subscription": {"name": name, "labels": labels},
                "update_mask": {"paths": ["labels"]},
            },
            retry=retry(cloud.retry_seconds),
        )
    except exceptions.InvalidArgument:
        return False
    return True


@contextlib.contextmanager
def temporary(name: str, made: bool, cloud: Cloud) -> Iterator[None]:
    """A subscription that was made for this run -> removed when the block ends."""
    try:
        yield
    finally:
        if made:
            with contextlib.suppress(exceptions.GoogleAPICallError):
                cloud.subscriber().delete_subscription(subscription=name)
