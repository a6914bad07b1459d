"""The subscription of a stream: made if asked for, looked at, and marked as read by one job."""

from __future__ import annotations

import contextlib
import math
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from google.api_core import exceptions

from cloud.clients import Cloud
from cloud.errors import retry, translate_errors
from cloud.reader_labels import LASTING, READER, UNTIL, seconds_left
from common.errors import InputError, MillraceError, UsageError
from pipelines.stream.config import OwnSubscription, Subscription
from transforms.messages.lease import DEADLINE_SECONDS

# How long a run in this process is believed to live after it last said so.
LEASE_SECONDS = 120
# Why a subscription that gives no message is waited for.
HELD = "since a reader that was killed may hold messages for so long (Ctrl-C ends)"


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
    for kind, target in (
        ("pushes its messages", subscription.push_config.push_endpoint),
        ("writes its messages to BigQuery", subscription.bigquery_config.table),
        ("writes its messages to Cloud Storage", subscription.cloud_storage_config.bucket),
        ("is detached from its topic", subscription.detached),
    ):
        if target:
            raise UsageError(f"{name} {kind}: expected a subscription that is pulled")
    lifetime = subscription.expiration_policy.ttl.total_seconds()
    kept = subscription.message_retention_duration.total_seconds()
    if lifetime and lifetime < kept:
        raise UsageError(
            f"{name} expires after {lifetime / 3600:,.0f} hours without a reader, and its messages "
            f"with it, which are kept for {kept / 3600:,.0f}: set --expiration-period=never"
        )


def open_subscription(
    source: Subscription | OwnSubscription, cloud: Cloud, output_topics: list[str]
) -> tuple[str, bool]:
    """A source -> the subscription's name, checked, and whether it was made for this run.

    Raises UsageError, InputError.
    """
    if isinstance(source, Subscription):
        with translate_errors(InputError, f"subscription {source.name} cannot be read"):
            found = cloud.subscriber().get_subscription(
                subscription=source.name, retry=retry(cloud.retry_seconds)
            )
        check_subscription(found, output_topics)
        return source.name, False
    _, project, _, topic = source.topic.split("/")
    name = f"projects/{project}/subscriptions/millrace-{topic[:200]}-{uuid.uuid4().hex[:8]}"
    # The name is new: if it is there, an attempt before this one made it.
    with (
        translate_errors(InputError, f"a subscription of {source.topic} cannot be made"),
        contextlib.suppress(exceptions.AlreadyExists),
    ):
        cloud.subscriber().create_subscription(
            request={"name": name, "topic": source.topic, "ack_deadline_seconds": 60},
            retry=retry(cloud.retry_seconds),
        )
    return name, True


def hidden_seconds(name: str, cloud: Cloud) -> float:
    """A subscription -> how long a reader that is gone may keep its messages from others.

    Its own deadline is not enough: a run of ours sets a longer one, and neither Pub/Sub nor the
    label of the reader tells whether one was killed just now. Raises InputError.
    """
    with translate_errors(InputError, f"subscription {name} cannot be read"):
        found = cloud.subscriber().get_subscription(
            subscription=name, retry=retry(cloud.retry_seconds)
        )
    return float(max(found.ack_deadline_seconds, DEADLINE_SECONDS))


def claim(name: str, reader: str, cloud: Cloud, *, lasting: bool, shared: bool) -> bool:
    """A subscription and who reads it -> whether its label now says so.

    lasting: the reader goes on after this process. shared: another reader is fine.
    Raises UsageError where the label names another reader, InputError. Where labels cannot
    be set, by the emulator or by this account, the answer is False.
    """
    with translate_errors(InputError, f"subscription {name} cannot be read"):
        labels = _labels(name, cloud)
        other, left = labels.get(READER, ""), seconds_left(labels)
        if other != reader and left > 0 and not shared:
            until = "" if math.isinf(left) else f" for {left:,.0f} s more"
            raise UsageError(
                f"{name} is read by {other}, as its label {READER} says{until}: two readers would "
                "each get a part of the messages. Stop that job; if it is gone, remove the label "
                f"({unlabel_command(name)}); or say --allow_shared_subscription"
            )
        labels[READER] = reader
        labels[UNTIL] = LASTING if lasting else str(int(time.time() + LEASE_SECONDS))
        return _set_labels(name, labels, cloud)


def reader_labels(name: str, cloud: Cloud) -> dict[str, str]:
    """A subscription -> its labels that say who reads it. Raises InputError."""
    with translate_errors(InputError, f"subscription {name} cannot be read"):
        labels = _labels(name, cloud)
    return {key: labels[key] for key in (READER, UNTIL) if key in labels}


def _labels(name: str, cloud: Cloud) -> dict[str, str]:
    patient = retry(cloud.retry_seconds)
    return dict(cloud.subscriber().get_subscription(subscription=name, retry=patient).labels)


def unlabel_command(name: str) -> str:
    """A subscription -> the command that removes the label of its reader."""
    return f"gcloud pubsub subscriptions update {name} --remove-labels={READER},{UNTIL}"


def left_behind(name: str, *, made: bool, labelled: bool, followed: bool) -> str:
    """A subscription that a job elsewhere reads -> what is to be done at its end, or nothing.

    made: for the job. followed: `launch --attach` looks after the label.
    """
    if made:
        return f"when the job has ended, delete {name}, which was made for it"
    if not labelled:
        return ""
    if followed:
        end = "launch --attach removes it when it sees the job's end, else remove it then"
    else:
        end = "when the job has ended, remove it"
    return f"the label {READER} keeps other readers from {name}: {end}: {unlabel_command(name)}"


def renew(name: str, reader: str, cloud: Cloud) -> None:
    """A subscription that was claimed -> its label lasts; if not now, then at the next call."""
    with contextlib.suppress(MillraceError):
        claim(name, reader, replace(cloud, retry_seconds=1.0), lasting=False, shared=True)


def release(
    name: str, reader: str, cloud: Cloud, before: Mapping[str, str] = MappingProxyType({})
) -> None:
    """A subscription and who read it -> without its label, if it is still there.

    before: labels of who read it before, and goes on.
    """
    with contextlib.suppress(exceptions.GoogleAPIError):
        labels = _labels(name, replace(cloud, retry_seconds=min(cloud.retry_seconds, 10.0)))
        if labels.pop(READER, None) == reader:
            labels.pop(UNTIL, None)
            _set_labels(name, {**labels, **before}, cloud)


def _set_labels(name: str, labels: dict[str, str], cloud: Cloud) -> bool:
    try:
        cloud.subscriber().update_subscription(
            request={
                "subscription": {"name": name, "labels": labels},
                "update_mask": {"paths": ["labels"]},
            },
            retry=retry(cloud.retry_seconds),
        )
    except (exceptions.InvalidArgument, exceptions.PermissionDenied):
        return False
    return True


@contextlib.contextmanager
def released(
    name: str,
    reader: str,
    cloud: Cloud,
    *,
    always: bool,
    before: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[None]:
    """A subscription that was claimed -> released when the block fails, or always at its end."""
    try:
        yield
    except BaseException:
        release(name, reader, cloud, before)
        raise
    if always:
        release(name, reader, cloud, before)


@contextlib.contextmanager
def temporary(name: str, made: bool, cloud: Cloud) -> Iterator[None]:
    """A subscription that was made for this run -> removed when the block ends."""
    try:
        yield
    finally:
        if made:
            with contextlib.suppress(exceptions.GoogleAPIError):
                cloud.subscriber().delete_subscription(
                    subscription=name, retry=retry(min(cloud.retry_seconds, 10.0))
                )
