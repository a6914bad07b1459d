"""A lease of messages, on the Pub/Sub emulator with real clients."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from google.api_core import exceptions
from pubsub_mailbox import Mailbox

from common.errors import InputError
from examples.local_cloud import PROJECT, LocalCloud
from transforms.messages import lease as module
from transforms.messages.lease import Lease, leased


@pytest.fixture
def mailbox(stream_emulators: LocalCloud, request: pytest.FixtureRequest) -> Mailbox:
    return Mailbox(stream_emulators.cloud, request.node.name[:200]).create()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.5)


def test_all_messages_are_pulled_once_and_given_back_at_the_end(mailbox: Mailbox) -> None:
    bodies = [b"%04d" % i for i in range(1500)]
    mailbox.publish(bodies[:1000])
    mailbox.publish(bodies[1000:])
    with leased(mailbox.cloud, mailbox.subscription) as lease:
        pulled = [message.data for message in lease.pull(10_000)]
        assert sorted(pulled) == bodies
        assert mailbox.look(1) == []
    with leased(mailbox.cloud, mailbox.subscription) as lease:
        assert sorted(message.data for message in lease.pull(10_000)) == bodies


def test_no_more_messages_are_pulled_than_the_limit(mailbox: Mailbox) -> None:
    mailbox.publish([b"%d" % i for i in range(5)])
    with leased(mailbox.cloud, mailbox.subscription) as lease:
        first = [message.data for message in lease.pull(3)]
        assert len(first) == 3
        assert len(mailbox.look(2)) == 2


def test_only_acknowledged_messages_are_removed(mailbox: Mailbox) -> None:
    mailbox.publish([b"gone", b"left"])
    with leased(mailbox.cloud, mailbox.subscription) as lease:
        ids = {message.data: message.message_id for message in lease.pull(10)}
        lease.acknowledge([ids[b"gone"]])
    assert mailbox.bodies(1, 2.0) == [b"left"]


def test_after_an_error_all_messages_are_given_back(mailbox: Mailbox) -> None:
    mailbox.publish([b"one", b"two"])
    with suppress(RuntimeError), leased(mailbox.cloud, mailbox.subscription) as lease:
        assert len(list(lease.pull(10))) == 2
        raise RuntimeError
    assert mailbox.bodies(2, 2.0) == [b"one", b"two"]


def test_messages_stay_leased_beyond_their_deadline(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEADLINE_SECONDS", 2)
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.5)
    mailbox.publish([b"one", b"two"])
    with leased(mailbox.cloud, mailbox.subscription) as lease:
        assert len(list(lease.pull(10))) == 2
        # For two deadlines, another reader receives nothing.
        assert mailbox.look(1, 4.0) == []
    assert mailbox.bodies(2, 2.0) == [b"one", b"two"]


def test_a_message_that_is_delivered_again_is_acknowledged_by_its_last_ack_id(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lease, "_set_deadline", lambda *_: None)
    client: Any = mailbox.cloud.subscriber()
    mailbox.publish([b"one"])
    lease = Lease(mailbox.cloud, mailbox.subscription)
    (first,) = lease.pull(10)
    (ack_id,) = lease._held.values()
    # As if the deadline had passed.
    client.modify_ack_deadline(
        subscription=mailbox.subscription, ack_ids=[ack_id], ack_deadline_seconds=0
    )
    assert list(lease.pull(10)) == []
    assert list(lease._held) == [first.message_id]
    assert list(lease._held.values()) != [ack_id]
    lease.acknowledge([first.message_id])
    assert mailbox.look(1) == []


def test_stop_ends_a_waiting_pull_and_no_other_request_is_sent(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 3_600.0)
    lease = Lease(mailbox.cloud, mailbox.subscription)
    with ThreadPoolExecutor(1) as executor:
        pulled = executor.submit(lambda: list(lease.pull(10)))
        lease.stop()
        assert pulled.result(30) == []
    mailbox.publish([b"one"])
    assert list(lease.pull(10)) == []
    assert mailbox.bodies(1, 5.0) == [b"one"]


def test_a_missing_subscription_is_reported(stream_emulators: LocalCloud) -> None:
    name = f"projects/{PROJECT}/subscriptions/none"
    with (
        pytest.raises(InputError, match="subscriptions/none cannot be read"),
        leased(stream_emulators.cloud, name) as lease,
    ):
        list(lease.pull(1))


class Stub:
    """A client that sends the given responses and counts calls."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers = answers
        self.calls: Counter[str] = Counter()
        self.sizes: list[int] = []
        self.timeouts: list[float] = []
        self.deadlines: list[tuple[int, int]] = []

    def pull(self, timeout: float, **_: Any) -> Any:
        self.timeouts.append(timeout)
        self.calls["pull"] += 1
        # The last response is repeated.
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def modify_ack_deadline(self, request: dict[str, Any], **_: Any) -> None:
        self.calls["modify"] += 1
        self.deadlines.append((len(request["ack_ids"]), request["ack_deadline_seconds"]))
        self.sizes.append(len(request["ack_ids"]))
        raise exceptions.ServiceUnavailable("not now")

    def acknowledge(self, request: dict[str, Any], **_: Any) -> None:
        self.sizes.append(len(request["ack_ids"]))


@dataclass(frozen=True)
class StubCloud:
    client: Stub
    retry_seconds: float = 1.0

    def subscriber(self) -> Stub:
        return self.client


def answer(*ids: str) -> Any:
    from google.pubsub_v1.types import PubsubMessage, PullResponse, ReceivedMessage

    return PullResponse(
        received_messages=[
            ReceivedMessage(ack_id=f"ack-{i}", message=PubsubMessage(message_id=i)) for i in ids
        ]
    )


@pytest.fixture
def lease_of() -> Callable[..., tuple[Lease, Stub]]:
    def make(*answers: Any) -> tuple[Lease, Stub]:
        stub = Stub(list(answers))
        return Lease(StubCloud(stub), "projects/p/subscriptions/s"), stub  # type: ignore[arg-type]

    return make


@pytest.mark.parametrize("kind", [exceptions.DeadlineExceeded, exceptions.Cancelled])
@pytest.mark.slow
def test_a_subscription_is_not_empty_after_one_response_without_messages(
    lease_of: Callable[..., tuple[Lease, Stub]], kind: type[Exception]
) -> None:
    late = kind("no message arrived")
    lease, stub = lease_of(answer("a"), answer(), late, answer("b"), answer())
    assert [message.message_id for message in lease.pull(10)] == ["a", "b"]
    assert stub.calls["pull"] >= 5


def test_messages_received_after_stop_are_given_back_and_earlier_ones_are_kept(
    lease_of: Callable[..., tuple[Lease, Stub]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, stub = lease_of(answer("a"), answer("b", "c"))
    pulled = lease.pull(10)
    assert next(pulled).message_id == "a"
    pull = stub.pull

    def stopped(**request: Any) -> Any:
        lease.stop()
        return pull(**request)

    monkeypatch.setattr(stub, "pull", stopped)
    assert list(pulled) == []
    assert stub.deadlines == [(1, module.DEADLINE_SECONDS), (2, 0)]
    assert list(lease._held) == ["a"]


@pytest.mark.slow
def test_the_timeout_of_requests_grows_until_a_response_arrives(
    lease_of: Callable[..., tuple[Lease, Stub]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 30.0)
    late = exceptions.DeadlineExceeded("no message arrived")
    lease, stub = lease_of(late, late, late, answer("a"), answer(), answer("b"))
    assert [message.message_id for message in lease.pull(2)] == ["a", "b"]
    assert stub.timeouts == [1, 2, 4, 8, 8, 1]


@pytest.mark.slow
def test_deadlines_that_cannot_be_set_do_not_end_the_run(
    lease_of: Callable[..., tuple[Lease, Stub]],
) -> None:
    lease, stub = lease_of(answer("a"), answer())
    assert len(list(lease.pull(10))) == 1
    lease.renew()
    lease.release()
    assert stub.calls["modify"] == 3


@pytest.mark.slow
def test_messages_that_cannot_be_acknowledged_are_kept_until_they_are_given_back(
    lease_of: Callable[..., tuple[Lease, Stub]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, stub = lease_of(answer("a", "b"), answer())
    assert len(list(lease.pull(10))) == 2

    def denied(**_: Any) -> None:
        raise exceptions.PermissionDenied("no")

    with monkeypatch.context() as patched:
        patched.setattr(stub, "acknowledge", denied)
        with pytest.raises(InputError, match="cannot be acknowledged: no"):
            lease.acknowledge(["a"])
    assert sorted(lease._held) == ["a", "b"]
    lease.acknowledge(["a"])
    lease.release()
    stub.sizes.clear()
    lease.acknowledge(["b"])
    assert stub.sizes == []


@pytest.mark.slow
def test_requests_are_limited_to_the_size_that_the_service_accepts(
    lease_of: Callable[..., tuple[Lease, Stub]],
) -> None:
    ids = [f"m{i}" for i in range(2_500)]
    lease, stub = lease_of(answer(*ids[:1_000]), answer(*ids[1_000:]), answer())
    assert len(list(lease.pull(10_000))) == 2_500
    stub.sizes.clear()
    lease.acknowledge(ids)
    assert stub.sizes == [1_000, 1_000, 500]
