"""A lease of messages, on the Pub/Sub emulator with real clients."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.api_core import exceptions
from google.protobuf import any_pb2, empty_pb2
from google.pubsub_v1.types import AcknowledgeRequest
from google.rpc import code_pb2, status_pb2
from google.rpc.error_details_pb2 import ErrorInfo
from pubsub_mailbox import Mailbox

from cloud.clients import Cloud
from cloud.endpoints import Endpoints
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


def test_deadlines_that_passed_while_the_process_was_stopped_are_reported(
    lease_of: Callable[..., tuple[Lease, Stub]], caplog: pytest.LogCaptureFixture
) -> None:
    lease, _ = lease_of(answer("a", "b"))
    lease._renewed -= 90
    lease.renew()
    assert len(list(lease.pull(2))) == 2
    lease.renew()
    assert not caplog.records
    lease._renewed -= 90
    lease.renew()
    [record] = caplog.records
    assert "the deadlines of 2 received messages were not extended for 90 s" in record.message
    assert "their rows may be written twice" in record.message


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


# A subscription with exactly-once delivery


class ExactlyOnce:
    """A stand-in for a subscription that names the ids that it cannot acknowledge.

    Google's emulator accepts every id.
    """

    def __init__(self, faults: list[dict[str, str]]) -> None:
        self.faults = faults
        self.requests: list[list[str]] = []

    def acknowledge(self, request: Any, context: grpc.ServicerContext) -> empty_pb2.Empty:
        self.requests.append(list(request.ack_ids))
        if faults := self.faults.pop(0) if self.faults else {}:
            detail = any_pb2.Any()
            detail.Pack(ErrorInfo(domain="pubsub.googleapis.com", metadata=faults))
            text = "Some acknowledgement ids in the request were invalid."
            status = status_pb2.Status(
                code=code_pb2.FAILED_PRECONDITION, message=text, details=[detail]
            )
            context.set_trailing_metadata([("grpc-status-details-bin", status.SerializeToString())])
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, text)
        return empty_pb2.Empty()

    @contextmanager
    def lease(self, *ids: str, retry_seconds: float = 20.0) -> Iterator[Lease]:
        """Run a server, and yield a lease that holds messages with these ids."""
        method = grpc.unary_unary_rpc_method_handler(
            self.acknowledge,
            AcknowledgeRequest.deserialize,
            empty_pb2.Empty.SerializeToString,
        )
        handlers = {"Acknowledge": method}
        server = grpc.server(ThreadPoolExecutor(1))
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("google.pubsub.v1.Subscriber", handlers)]
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        lease = Lease(Cloud("p", Endpoints(pubsub=f"127.0.0.1:{port}"), retry_seconds), "s")
        lease._held = {i: f"ack-{i}" for i in ids}
        try:
            yield lease
        finally:
            server.stop(None).wait()


def test_messages_whose_deadline_has_passed_do_not_end_a_run_with_exactly_once_delivery() -> None:
    late = {"ack-b": "PERMANENT_FAILURE_INVALID_ACK_ID"}
    service = ExactlyOnce([late])
    with service.lease("a", "b", "c") as lease:
        lease.acknowledge(["a", "b"])
        assert service.requests == [["ack-a", "ack-b"]]
        assert list(lease._held) == ["c"]


def test_acknowledgements_that_fail_for_now_are_sent_again_alone() -> None:
    first = {
        "ack-a": "TRANSIENT_FAILURE_UNORDERED_ACK_ID",
        "ack-b": "PERMANENT_FAILURE_INVALID_ACK_ID",
    }
    service = ExactlyOnce([first])
    with service.lease("a", "b", "c") as lease:
        lease.acknowledge(["a", "b", "c"])
        assert service.requests == [["ack-a", "ack-b", "ack-c"], ["ack-a"]]
        assert not lease._held


def test_acknowledgements_that_keep_failing_end_the_run() -> None:
    service = ExactlyOnce([{"ack-a": "TRANSIENT_FAILURE"}] * 100)
    with (
        service.lease("a", retry_seconds=1.0) as lease,
        pytest.raises(InputError, match="cannot be acknowledged: failed after repeated attempts"),
    ):
        lease.acknowledge(["a"])
    assert list(lease._held) == ["a"]
