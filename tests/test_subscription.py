"""Subscriptions that would lose messages are rejected, and so is a second reader."""

import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2
from google.pubsub_v1.types import (
    DeleteSubscriptionRequest,
    GetSubscriptionRequest,
    Subscription,
    UpdateSubscriptionRequest,
)

from cloud.clients import Cloud
from cloud.endpoints import Endpoints
from cloud.reader_labels import READER, UNTIL
from common.errors import InputError, UsageError
from examples.local_cloud import LocalCloud
from pipelines.stream import subscription as module
from pipelines.stream.config import OwnSubscription
from pipelines.stream.config import Subscription as Existing
from pipelines.stream.subscription import (
    LEASE_SECONDS,
    check_subscription,
    claim,
    left_behind,
    open_subscription,
    reader_labels,
    release,
    released,
    renew,
    temporary,
)

NAME = "projects/some-project/subscriptions/in-sub"
TOPIC = "projects/some-project/topics/in"


class Subscriptions:
    """A stand-in for Pub/Sub's service Subscriber, with labels, which Google's emulator rejects."""

    def __init__(self) -> None:
        self.known: dict[str, Subscription] = {}
        self.errors: dict[str, list[grpc.StatusCode]] = {}

    def _enter(self, method: str, name: str, context: grpc.ServicerContext) -> None:
        if waiting := self.errors.get(method):
            context.abort(waiting.pop(0), "as requested")
        if method != "CreateSubscription" and name not in self.known:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Resource not found (resource={name}).")

    def GetSubscription(self, request: Any, context: Any) -> Subscription:  # noqa: N802
        self._enter("GetSubscription", request.subscription, context)
        return self.known[request.subscription]

    def UpdateSubscription(self, request: Any, context: Any) -> Subscription:  # noqa: N802
        self._enter("UpdateSubscription", request.subscription.name, context)
        assert list(request.update_mask.paths) == ["labels"]
        for text in (*request.subscription.labels, *request.subscription.labels.values()):
            # Pub/Sub has these rules for labels.
            assert len(text) <= 63
            assert all(c.isdigit() or c.islower() or c in "_-" for c in text)
        self.known[request.subscription.name].labels = dict(request.subscription.labels)
        return self.known[request.subscription.name]

    def CreateSubscription(self, request: Any, context: Any) -> Subscription:  # noqa: N802
        if request.name in self.known:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, "it exists")
        # A request may be executed although its response is lost.
        self.known[request.name] = request
        self._enter("CreateSubscription", request.name, context)
        return self.known[request.name]

    def DeleteSubscription(self, request: Any, context: Any) -> empty_pb2.Empty:  # noqa: N802
        self._enter("DeleteSubscription", request.subscription, context)
        del self.known[request.subscription]
        return empty_pb2.Empty()

    def labels(self) -> dict[str, str]:
        return dict(self.known[NAME].labels)


@pytest.fixture
def server() -> Iterator[tuple[Subscriptions, Cloud]]:
    service = Subscriptions()
    requests: dict[str, Any] = {
        "GetSubscription": GetSubscriptionRequest,
        "UpdateSubscription": UpdateSubscriptionRequest,
        "CreateSubscription": Subscription,
        "DeleteSubscription": DeleteSubscriptionRequest,
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            getattr(service, name),
            kind.deserialize,
            empty_pb2.Empty.SerializeToString
            if name == "DeleteSubscription"
            else Subscription.serialize,
        )
        for name, kind in requests.items()
    }
    grpc_server = grpc.server(ThreadPoolExecutor(2))
    grpc_server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("google.pubsub.v1.Subscriber", handlers)]
    )
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    grpc_server.start()
    service.known[NAME] = Subscription(name=NAME, topic=TOPIC, labels={"team": "fraud"})
    yield service, Cloud("some-project", Endpoints(pubsub=f"127.0.0.1:{port}"), 5.0)
    grpc_server.stop(None).wait()


# Subscriptions that would lose messages


def subscription(**fields: Any) -> Subscription:
    """Return a subscription with defaults: it keeps messages for 7 days, and expires after 31."""
    kept, lasts = timedelta(days=7), {"ttl": timedelta(days=31)}
    values = {"message_retention_duration": kept, "expiration_policy": lasts} | fields
    return Subscription(name=NAME, topic=TOPIC, **values)


def test_a_subscription_with_defaults_is_accepted() -> None:
    check_subscription(subscription(), ["projects/some-project/topics/out"])
    check_subscription(subscription(expiration_policy={}), [])
    check_subscription(subscription(expiration_policy={"ttl": timedelta(days=7)}), [])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"dead_letter_policy": {"dead_letter_topic": "projects/p/topics/d"}},
            "has a dead letter policy: Pub/Sub would move a message to projects/p/topics/d "
            "after several deliveries, even if nothing is wrong with the message and it only waits "
            "to be scored; .*--clear-dead-letter-policy",
        ),
        (
            {"expiration_policy": {"ttl": timedelta(days=1)}},
            "expires after 24 hours without a reader, although it keeps messages for 168 hours: "
            "run gcloud pubsub subscriptions update .* --expiration-period=never",
        ),
        ({"push_config": {"push_endpoint": "https://x"}}, "pushes its messages: use a pull subsc"),
        ({"bigquery_config": {"table": "p.d.t"}}, "writes its messages to BigQuery: use a pull"),
        ({"cloud_storage_config": {"bucket": "b"}}, "writes its messages to Cloud Storage: "),
        ({"detached": True}, "is detached from its topic: use a pull"),
    ],
)
def test_a_subscription_that_loses_or_never_delivers_messages_is_rejected(
    fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=rf"^{NAME} {words}"):
        check_subscription(subscription(**fields), [])


def test_an_output_that_is_also_the_input_is_rejected(server: tuple[Subscriptions, Cloud]) -> None:
    _, cloud = server
    source = Existing(name=NAME)
    with pytest.raises(
        UsageError, match=f"{TOPIC} is the topic of {NAME} and also an output: each"
    ):
        open_subscription(source, cloud, ["projects/some-project/topics/out", TOPIC])


# Which subscription


def test_an_existing_subscription_is_used_and_kept(
    server: tuple[Subscriptions, Cloud],
) -> None:
    service, cloud = server
    name, made = open_subscription(Existing(name=NAME), cloud, [])
    assert (name, made) == (NAME, False)
    with temporary(name, made, cloud):
        pass
    assert NAME in service.known


def test_a_missing_or_forbidden_subscription_is_reported(
    server: tuple[Subscriptions, Cloud],
) -> None:
    service, cloud = server
    missing = NAME + "-2"
    with pytest.raises(InputError, match=f"subscription {missing} cannot be read: Resource not fo"):
        open_subscription(Existing(name=missing), cloud, [])
    service.errors["GetSubscription"] = [grpc.StatusCode.PERMISSION_DENIED]
    with pytest.raises(
        InputError, match="cannot be read: as requested; grant the account the missing role"
    ):
        open_subscription(Existing(name=NAME), cloud, [])


def test_a_subscription_is_created_for_a_topic_and_deleted_however_the_run_ends(
    server: tuple[Subscriptions, Cloud],
) -> None:
    service, cloud = server
    # The response to the first attempt is lost.
    service.errors["CreateSubscription"] = [grpc.StatusCode.UNAVAILABLE]
    source = OwnSubscription(topic=TOPIC)
    name, made = open_subscription(source, cloud, [])
    assert made
    assert name.startswith("projects/some-project/subscriptions/millrace-in-")
    assert service.known[name].topic == TOPIC
    assert open_subscription(source, cloud, [])[0] != name

    def fail() -> None:
        with temporary(name, made, cloud):
            raise ValueError("the run failed")

    service.errors["DeleteSubscription"] = [grpc.StatusCode.UNAVAILABLE]
    with pytest.raises(ValueError, match="the run failed"):
        fail()
    assert name not in service.known
    # Deleting it again, after someone else has deleted it, is no error.
    with pytest.raises(ValueError, match="the run failed"):
        fail()


def test_on_the_emulator_a_subscription_is_created_and_deleted(
    stream_emulators: LocalCloud,
) -> None:
    cloud = stream_emulators.cloud
    topic = f"projects/{cloud.project}/topics/made-of"
    source = OwnSubscription(topic=topic)
    with pytest.raises(
        InputError, match=f"a subscription of {topic} cannot be created: .*not exist"
    ):
        open_subscription(source, cloud, [])
    cloud.publisher().create_topic(name=topic)
    name, made = open_subscription(source, cloud, [])

    def subscriptions() -> list[str]:
        return list(cloud.publisher().list_topic_subscriptions(topic=topic))

    with temporary(name, made, cloud):
        assert subscriptions() == [name]
        # The emulator cannot set labels; the service can.
        assert not claim(name, "me", cloud, lasting=False, shared=False)
    assert subscriptions() == []


# One reader


def test_a_second_reader_is_rejected_while_the_first_is_alive(
    server: tuple[Subscriptions, Cloud],
) -> None:
    service, cloud = server
    assert claim(NAME, "one", cloud, lasting=False, shared=False)
    assert service.labels().keys() == {"team", READER, UNTIL}
    assert int(service.labels()[UNTIL]) == pytest.approx(time.time() + LEASE_SECONDS, abs=30)
    message = (
        f"{NAME} already has a reader: its label {READER} names one, and expires in [0-9]+ s "
        "unless one renews it; each of two readers would get only a part of the messages: stop "
        f"one, or remove the label if one is gone .*--remove-labels={READER},{UNTIL}.*"
        "--allow_shared_subscription"
    )
    with pytest.raises(UsageError, match=message):
        claim(NAME, "two", cloud, lasting=False, shared=False)
    # The same reader may start again.
    assert claim(NAME, "one", cloud, lasting=False, shared=False)
    assert claim(NAME, "two", cloud, lasting=False, shared=True)
    assert service.labels()[READER] == "two"


def test_a_reader_that_did_not_renew_its_label_counts_as_dead(
    server: tuple[Subscriptions, Cloud], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, cloud = server
    with monkeypatch.context() as patched:
        patched.setattr(module, "LEASE_SECONDS", -1)
        claim(NAME, "one", cloud, lasting=False, shared=False)
    assert claim(NAME, "two", cloud, lasting=False, shared=False)
    renew(NAME, "two", cloud)
    with pytest.raises(UsageError, match=r"already has a reader: .* names two,"):
        claim(NAME, "three", cloud, lasting=False, shared=False)
    assert service.labels()["team"] == "fraud"


def test_a_job_elsewhere_reads_until_its_label_is_removed(
    server: tuple[Subscriptions, Cloud],
) -> None:
    service, cloud = server
    claim(NAME, "job", cloud, lasting=True, shared=False)
    assert service.labels()[UNTIL] == "0"
    with pytest.raises(
        UsageError, match=f"already has a reader: its label {READER} names job; each of two"
    ):
        claim(NAME, "two", cloud, lasting=False, shared=False)
    service.known[NAME].labels = {READER: "someone"}
    with pytest.raises(UsageError, match=r"already has a reader: .* names someone;"):
        claim(NAME, "two", cloud, lasting=False, shared=False)


def test_the_command_that_cleans_up_after_a_job_is_printed() -> None:
    command = f"gcloud pubsub subscriptions update {NAME} --remove-labels={READER},{UNTIL}"
    followed = left_behind(NAME, made=False, labelled=True, followed=True)
    refused = f"the label {READER} of {NAME} names this job, so other readers are refused: "
    assert followed.startswith(f"{refused}launch --attach removes the label if it sees the job end")
    assert "otherwise, remove it when the job has ended: " in followed
    assert followed.endswith(command)
    alone = left_behind(NAME, made=False, labelled=True, followed=False)
    assert alone.startswith(f"{refused}remove the label when the job has ended: ")
    assert "--attach" not in alone
    assert alone.endswith(command)
    assert left_behind(NAME, made=False, labelled=False, followed=True) == ""
    assert f"delete {NAME}" in left_behind(NAME, made=True, labelled=True, followed=True)


def test_a_reader_removes_only_its_own_label(server: tuple[Subscriptions, Cloud]) -> None:
    service, cloud = server
    claim(NAME, "one", cloud, lasting=False, shared=False)
    release(NAME, "two", cloud)
    assert service.labels()[READER] == "one"
    release(NAME, "one", cloud)
    assert service.labels() == {"team": "fraud"}
    release(NAME + "-gone", "one", cloud)


@pytest.mark.parametrize(("always", "fails"), [(True, False), (True, True), (False, True)])
def test_a_run_that_ends_here_or_does_not_start_elsewhere_removes_its_label(
    server: tuple[Subscriptions, Cloud], always: bool, fails: bool
) -> None:
    service, cloud = server
    claim(NAME, "one", cloud, lasting=not always, shared=False)

    def run() -> None:
        with released(NAME, "one", cloud, always=always):
            if fails:
                raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            run()
    else:
        run()
    assert service.labels() == {"team": "fraud"}


def test_a_job_that_is_not_replaced_after_all_gets_its_label_back(
    server: tuple[Subscriptions, Cloud],
) -> None:
    service, cloud = server
    claim(NAME, "old", cloud, lasting=True, shared=False)
    before, labels = reader_labels(NAME, cloud), service.labels()
    claim(NAME, "new", cloud, lasting=True, shared=True)
    with (
        pytest.raises(KeyboardInterrupt),
        released(NAME, "new", cloud, always=False, before=before),
    ):
        raise KeyboardInterrupt
    assert service.labels() == labels


def test_a_job_that_started_elsewhere_keeps_its_label(server: tuple[Subscriptions, Cloud]) -> None:
    service, cloud = server
    claim(NAME, "one", cloud, lasting=True, shared=False)
    with released(NAME, "one", cloud, always=False):
        pass
    assert service.labels()[READER] == "one"


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT]
)
def test_an_account_that_may_only_read_runs_without_a_label(
    server: tuple[Subscriptions, Cloud], code: grpc.StatusCode
) -> None:
    service, cloud = server
    service.errors["UpdateSubscription"] = [code]
    assert not claim(NAME, "one", cloud, lasting=False, shared=False)
    assert service.labels() == {"team": "fraud"}


def test_a_label_that_cannot_be_renewed_now_does_not_stop_a_run(
    server: tuple[Subscriptions, Cloud],
) -> None:
    service, cloud = server
    for method in ("GetSubscription", "UpdateSubscription"):
        service.errors = {method: [grpc.StatusCode.UNAVAILABLE] * 20}
        renew(NAME, "one", cloud)
    service.errors = {"GetSubscription": [grpc.StatusCode.PERMISSION_DENIED]}
    renew(NAME, "one", cloud)
    renew(NAME, "one", cloud)
    assert service.labels()[READER] == "one"


# A server that ends the connection


def _frame(kind: int, payload: bytes) -> bytes:
    """Return a frame of HTTP/2 for the whole connection."""
    return len(payload).to_bytes(3, "big") + bytes([kind, 0]) + bytes(4) + payload


# Sends a request to a server after a command has prepared its output.
CALL = """
import sys
from common.addresses import guard_output
guard_output()
from google.api_core import exceptions
from cloud.clients import Cloud
from cloud.endpoints import Endpoints
client = Cloud("p", Endpoints(pubsub=sys.argv[1])).subscriber()
try:
    client.get_subscription(subscription="projects/p/subscriptions/s", retry=None, timeout=2)
except exceptions.GoogleAPICallError as error:
    print("failed")
"""


def test_a_server_that_ends_the_connection_makes_grpc_print_nothing() -> None:
    settings, ping_timeout = _frame(4, b""), struct.pack(">II", 0, 11)

    def serve() -> None:
        # The listening socket is closed at the end.
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                connection.recv(1000)
                connection.sendall(settings + _frame(7, ping_timeout))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        ran = subprocess.run(
            [sys.executable, "-c", CALL, f"127.0.0.1:{listening.getsockname()[1]}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert (ran.stdout, ran.stderr) == ("failed\n", "")
