"""A scale test of a stream whose requests Pub/Sub refuses, on the emulator behind a proxy."""

import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from command_line import assert_one_line_error, words
from libraries import need_library
from pubsub_mailbox import Mailbox

from examples.local_cloud import LocalCloud
from scale_tests import __main__ as scale_command

PLAN = """\
target = "stream"
send_to = "lacking-in-{id}"

[objective]
latency_ms = 60_000

[result]
source = "topic"
name = "lacking-out-{id}"
dead_letters = "lacking-dead-{id}"

[[phases]]
kind = "burst"
messages = 3

[[phases]]
kind = "burst"
messages = 4
"""


class Refusing(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Forwards requests to a server, and refuses some.

    Attributes:
        codes: By the method, the errors of its next requests. The last one stays.
    """

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self.codes: dict[str, list[grpc.StatusCode | None]] = {}

    def service(self, details: Any) -> Any:
        def forward(request: bytes, context: Any) -> Any:
            codes = self.codes.get(details.method.rpartition("/")[2], [None])
            if code := codes.pop(0) if len(codes) > 1 else codes[0]:
                context.abort(code, "as requested")
            try:
                return self._channel.unary_unary(details.method)(request, timeout=10)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())

        return grpc.unary_unary_rpc_method_handler(forward)


class Stand:
    """Topics behind a proxy, and the plan of a test of them."""

    def __init__(self, on: LocalCloud, proxy: Refusing, folder: Path) -> None:
        self.proxy, self.project, self.folder = proxy, on.cloud.project, folder
        id = uuid.uuid4().hex[:12]
        self.input, self.output, _ = (
            Mailbox(on.cloud, f"lacking-{name}-{id}").create() for name in ("in", "out", "dead")
        )
        (folder / "plan.toml").write_text(PLAN.format(id=id))

    def run(self) -> int:
        flags = {"plan": self.folder / "plan.toml", "project": self.project, "output": self.out}
        return scale_command.main(["stream", *words(flags)])

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def answer(self, count: int) -> None:
        """Answer messages until there were as many as named, or 20 s pass without one."""
        while count > 0 and (found := self.input.take(1, seconds=20.0)):
            for one in found:
                row = json.loads(one.data)
                result = {name: row[name] for name in ("test_id", "sequence")}
                self.output.publish([json.dumps(result).encode()])
            count -= len(found)


@pytest.fixture
def stand(
    stream_emulators: LocalCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stand]:
    need_library("hdrh")
    need_library("scipy")
    for name, value in stream_emulators.environment.items():
        monkeypatch.setenv(name, value)
    proxy = Refusing(stream_emulators.environment["PUBSUB_EMULATOR_HOST"])
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers([proxy])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", f"127.0.0.1:{port}")
    yield Stand(stream_emulators, proxy, tmp_path)
    server.stop(None).wait()


@pytest.mark.parametrize("method", ["GetTopic", "CreateSubscription", "Publish", "Pull"])
def test_a_missing_permission_is_one_line_within_seconds(
    stand: Stand, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stand.proxy.codes = {method: [grpc.StatusCode.PERMISSION_DENIED]}
    code = stand.run()
    parts = ("lacking-" if method != "Pull" else "millrace-scale-", "as requested", "role")
    assert_one_line_error((code, *capsys.readouterr()), 1, *parts)
    assert not stand.out.exists()


def test_transient_errors_of_requests_do_not_end_a_test(stand: Stand) -> None:
    unavailable: list[grpc.StatusCode | None] = [grpc.StatusCode.UNAVAILABLE, None]
    stand.proxy.codes = {name: [*unavailable] for name in ("Pull", "Acknowledge", "Publish")}
    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(stand.answer, 8)
        assert stand.run() == 0
        answering.result()
    levels = json.loads((stand.out / "result.json").read_text())["levels"]
    assert [level["accounts"]["scored"] for level in levels] == [3, 4]


def test_results_that_can_no_longer_be_read_leave_the_levels_before(
    stand: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer() -> None:
        stand.answer(4)
        # The first burst is over when the first message of the second one arrives.
        stand.input.take(1)
        stand.proxy.codes = {"Pull": [grpc.StatusCode.PERMISSION_DENIED]}

    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(answer)
        assert stand.run() == 1
        answering.result()
    assert "cannot be read: as requested; grant" in capsys.readouterr().out
    result = json.loads((stand.out / "result.json").read_text())
    assert [level["accounts"]["scored"] for level in result["levels"]] == [3, 0]
    assert [level["interrupted"] for level in result["levels"]] == [False, True]
    assert not result["interrupted"]
    assert f"This page is partial: {result['ended']}" in (stand.out / "report.html").read_text()
