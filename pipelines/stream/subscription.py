"""The subscription of a stream: create it if requested, check it, and label it with its reader."""

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
from cloud.errors import lacks_role, retry, translate_errors
from cloud.reader_labels import LASTING, READER, UNTIL, seconds_left
from common.errors import InputError, MillraceError, SubscriptionInUse, UsageError
from pipelines.stream.config import OwnSubscription, Subscription
from transforms.messages.lease import DEADLINE_SECONDS

# A run in this process counts as alive for this many seconds after it last renewed its label.
LEASE_SECONDS = 120
# Why a run waits for a subscription that delivers no messages.
HELD = "because a reader that was killed may hold messages for that long (Ctrl-C stops)"


def check_subscription(subscription: Any, output_topics: list[str]) -> None:
    """Check that a stream can read a subscription without losing messages.

    Args:
        subscription: The Subscription of Google's client.
        output_topics: The topics that the stream writes to.

    Raises:
        UsageError: Messages would be lost, would come back as input, or would not be delivered.
    """
    name = subscription.name
    if subscription.topic in output_topics:
        raise UsageError(
            f"{subscription.topic} is the topic of {name} and also an output: each result would be "
            "scored again, without end; choose another output topic"
        )
    if subscription.dead_letter_policy.dead_letter_topic:
        raise UsageError(
            f"{name} has a dead letter policy: Pub/Sub would move a message to "
            f"{subscription.dead_letter_policy.dead_letter_topic} after several deliveries, even "
            "if nothing is wrong with the message and it only waits to be scored; remove the "
            f"policy (gcloud pubsub subscriptions update {name} --clear-dead-letter-policy), and "
            "use the --dead_letter_* flags for dead letters"
        )
    for kind, target in (
        ("pushes its messages", subscription.push_config.push_endpoint),
        ("writes its messages to BigQuery", subscription.bigquery_config.table),
        ("writes its messages to Cloud Storage", subscription.cloud_storage_config.bucket),
        ("is detached from its topic", subscription.detached),
    ):
        if target:
            raise UsageError(f"{name} {kind}: use a pull subscription")
    lifetime = subscription.expiration_policy.ttl.total_seconds()
    kept = subscription.message_retention_duration.total_seconds()
    if lifetime and lifetime < kept:
        raise UsageError(
            f"{name} expires after {lifetime / 3600:,.0f} hours without a reader, although it "
            f"keeps messages for {kept / 3600:,.0f} hours: run gcloud pubsub subscriptions update "
            f"{name} --expiration-period=never"
        )


def open_subscription(
    source: Subscription | OwnSubscription, cloud: Cloud, output_topics: list[str]
) -> tuple[str, bool]:
    """Check an existing subscription, or create one for a topic.

    Args:
        source: The subscription, or the topic for which to create one.
        cloud: The project, the service addresses and how long to retry.
        output_topics: The topics that the stream writes to.

    Returns:
        The full name of the subscription, and whether it was created for this run.

    Raises:
        UsageError: The subscription cannot be used for a stream.
        InputError: The subscription cannot be read or created.
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
    # The name is random: if it exists, an earlier attempt of this call has created it.
    with (
        translate_errors(InputError, f"a subscription of {source.topic} cannot be created"),
        contextlib.suppress(exceptions.AlreadyExists),
    ):
        cloud.subscriber().create_subscription(
            request={"name": name, "topic": source.topic, "ack_deadline_seconds": 60},
            retry=retry(cloud.retry_seconds),
        )
    return name, True


def hidden_seconds(name: str, cloud: Cloud) -> float:
    """Return for how many seconds a reader that was killed may hold messages of a subscription.

    This can be longer than the deadline of the subscription, because Millrace's readers set a
    longer one. Neither Pub/Sub nor the label says whether a reader was killed just now.

    Args:
        name: The full name of the subscription.
        cloud: The project, the service addresses and how long to retry.

    Raises:
        InputError: The subscription cannot be read.
    """
    with translate_errors(InputError, f"subscription {name} cannot be read"):
        found = cloud.subscriber().get_subscription(
            subscription=name, retry=retry(cloud.retry_seconds)
        )
    return float(max(found.ack_deadline_seconds, DEADLINE_SECONDS))


def claim(name: str, reader: str, cloud: Cloud, *, lasting: bool, shared: bool) -> bool:
    """Label a subscription with its reader.

    Args:
        name: The full name of the subscription.
        reader: The name of the reader, as a label value.
        cloud: The project, the service addresses and how long to retry.
        lasting: Whether the reader continues after this process, as a job does.
        shared: Whether the subscription may have another reader.

    Returns:
        Whether the label is set. It is not if the emulator or this account cannot set labels.

    Raises:
        SubscriptionInUse: The label names another reader that may be alive.
        InputError: The subscription cannot be read.
    """
    with translate_errors(InputError, f"subscription {name} cannot be read"):
        labels = _labels(name, cloud)
        other, left = labels.get(READER, ""), seconds_left(labels)
        if other != reader and left > 0 and not shared:
            expiry = (
                ""
                if math.isinf(left)
                else f", and expires in {left:,.0f} s unless {other} renews it"
            )
            raise SubscriptionInUse(
                f"{name} already has a reader: its label {READER} names {other}{expiry}; each of "
                f"two readers would get only a part of the messages: stop {other}, or remove the "
                f"label if {other} is gone ({unlabel_command(name)}), or pass "
                "--allow_shared_subscription"
            )
        labels[READER] = reader
        labels[UNTIL] = LASTING if lasting else str(int(time.time() + LEASE_SECONDS))
        return _set_labels(name, labels, cloud)


def reader_labels(name: str, cloud: Cloud) -> dict[str, str]:
    """Return the labels of a subscription that name its reader.

    Args:
        name: The full name of the subscription.
        cloud: The project, the service addresses and how long to retry.

    Raises:
        InputError: The subscription cannot be read.
    """
    with translate_errors(InputError, f"subscription {name} cannot be read"):
        labels = _labels(name, cloud)
    return {key: labels[key] for key in (READER, UNTIL) if key in labels}


def _labels(name: str, cloud: Cloud) -> dict[str, str]:
    patient = retry(cloud.retry_seconds)
    return dict(cloud.subscriber().get_subscription(subscription=name, retry=patient).labels)


def unlabel_command(name: str) -> str:
    """Return the command that removes the labels of a subscription's reader."""
    return f"gcloud pubsub subscriptions update {name} --remove-labels={READER},{UNTIL}"


def left_behind(name: str, *, made: bool, labelled: bool, followed: bool) -> str:
    """Return what the user must do when a job has ended; an empty text if there is nothing.

    Args:
        name: The full name of the subscription that the job reads.
        made: Whether the subscription was created for the job.
        labelled: Whether a label names the job as the reader.
        followed: Whether `launch --attach` can remove the label.
    """
    if made:
        return f"when the job has ended, delete {name}, which was created for it"
    if not labelled:
        return ""
    if followed:
        end = (
            "launch --attach removes the label if it sees the job end; otherwise, remove it when "
            "the job has ended"
        )
    else:
        end = "remove the label when the job has ended"
    return (
        f"the label {READER} of {name} names this job, so other readers are refused: {end}: "
        f"{unlabel_command(name)}"
    )


def renew(name: str, reader: str, cloud: Cloud) -> None:
    """Renew the label of a reader in this process; ignore errors, since the next call may succeed.

    Args:
        name: The full name of the subscription.
        reader: The name of the reader, as for `claim`.
        cloud: The project and the service addresses.
    """
    with contextlib.suppress(MillraceError):
        claim(name, reader, replace(cloud, retry_seconds=1.0), lasting=False, shared=True)


def release(
    name: str, reader: str, cloud: Cloud, before: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Remove the label of a reader from a subscription, if it still names that reader.

    Args:
        name: The full name of the subscription.
        reader: The name of the reader, as for `claim`.
        cloud: The project, the service addresses and how long to retry.
        before: The labels of an earlier reader that continues, to set instead.
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
    except exceptions.InvalidArgument:
        return False
    except exceptions.PermissionDenied as error:
        if lacks_role(error):
            return False
        raise
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
    """Release a claimed subscription when the block fails, or at its end if `always` is set.

    Args:
        name: The full name of the subscription.
        reader: The name of the reader, as for `claim`.
        cloud: The project, the service addresses and how long to retry.
        always: Whether to release it also after a block that succeeds.
        before: As for `release`.
    """
    try:
        yield
    except BaseException:
        release(name, reader, cloud, before)
        raise
    if always:
        release(name, reader, cloud, before)


@contextlib.contextmanager
def temporary(name: str, made: bool, cloud: Cloud) -> Iterator[None]:
    """Delete a subscription when the block ends, if it was created for this run.

    Args:
        name: The full name of the subscription.
        made: Whether it was created for this run.
        cloud: The project, the service addresses and how long to retry.
    """
    try:
        yield
    finally:
        if made:
            with contextlib.suppress(exceptions.GoogleAPIError):
                cloud.subscriber().delete_subscription(
                    subscription=name, retry=retry(min(cloud.retry_seconds, 10.0))
                )
