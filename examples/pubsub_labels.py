"""A front for Google's emulator of Pub/Sub that keeps labels, which the emulator drops.

It speaks gRPC, as the clients do. Every call goes on to the emulator as it came; labels of
topics and subscriptions are kept here, and added to the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from google.pubsub_v1 import types

# Of messages of any size, as the emulator itself takes them.
_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
# A pull occupies a thread while it waits for messages, a streaming pull for as long as it is open.
_THREADS = 256

# A method and a request -> the emulator's answer.
Forward = Callable[[str, bytes], bytes]


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """What has labels. field: of requests; get, update, page: types of requests and lists."""

    field: str
    one: Any
    get: Any
    update: Any
    page: Any

    def asked(self, name: str) -> bytes:
        """A name -> the request for what has it."""
        return bytes(self.get.pb()(**{self.field: name}).SerializeToString())


_KINDS = {
    "Topic": _Kind(
        field="topic",
        one=types.Topic,
        get=types.GetTopicRequest,
        update=types.UpdateTopicRequest,
        page=types.ListTopicsResponse,
    ),
    "Subscription": _Kind(
        field="subscription",
        one=types.Subscription,
        get=types.GetSubscriptionRequest,
        update=types.UpdateSubscriptionRequest,
        page=types.ListSubscriptionsResponse,
    ),
}


class _Labels:
    """Labels by full name, and the calls that they take part in."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, str]] = {}
        self._answers: dict[str, Callable[[str, bytes, Forward], bytes]] = {}
        for name, kind in _KINDS.items():
            self._answers[f"Create{name}"] = partial(self._create, kind)
            self._answers[f"Get{name}"] = partial(self._get, kind)
            self._answers[f"Update{name}"] = partial(self._update, kind)
            self._answers[f"List{name}s"] = partial(self._list, kind)

    def answer(self, method: str, request: bytes, forward: Forward) -> bytes:
        """A call -> its answer, with labels where it has some."""
        found = self._answers.get(method.rpartition("/")[2])
        return found(method, request, forward) if found else forward(method, request)

    def _create(self, kind: _Kind, method: str, request: bytes, forward: Forward) -> bytes:
        asked, answer = kind.one.pb().FromString(request), forward(method, request)
        self._known[asked.name] = dict(asked.labels)
        return self._with_labels(kind, answer)

    def _get(self, kind: _Kind, method: str, request: bytes, forward: Forward) -> bytes:
        return self._with_labels(kind, forward(method, request))

    def _update(self, kind: _Kind, method: str, request: bytes, forward: Forward) -> bytes:
        asked = kind.update.pb().FromString(request)
        new, paths = getattr(asked, kind.field), list(asked.update_mask.paths)
        others = [path for path in paths if path != "labels"]
        if others or not paths:
            asked.update_mask.paths[:] = others
            answer = forward(method, asked.SerializeToString())
        else:
            answer = forward(method.replace("/Update", "/Get"), kind.asked(new.name))
        if len(others) < len(paths):
            self._known[new.name] = dict(new.labels)
        return self._with_labels(kind, answer)

    def _list(self, kind: _Kind, method: str, request: bytes, forward: Forward) -> bytes:
        page = kind.page.pb().FromString(forward(method, request))
        for found in getattr(page, f"{kind.field}s"):
            self._label(found)
        return bytes(page.SerializeToString())

    def _with_labels(self, kind: _Kind, answer: bytes) -> bytes:
        found = kind.one.pb().FromString(answer)
        self._label(found)
        return bytes(found.SerializeToString())

    def _label(self, found: Any) -> None:
        if found.name in self._known:
            # The emulator may know those with which it was made.
            found.labels.clear()
            found.labels.update(self._known[found.name])


class _Front(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Calls of any method, as bytes. channel: to the emulator."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel, self._labels = channel, _Labels()

    def service(self, details: Any) -> Any:
        """A call -> what answers it."""
        method = details.method
        if method.endswith("/StreamingPull"):
            return grpc.stream_stream_rpc_method_handler(partial(self._stream, method))
        return grpc.unary_unary_rpc_method_handler(partial(self._answer, method))

    def _stream(self, method: str, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        call = self._channel.stream_stream(method)(requests, timeout=context.time_remaining())
        context.add_callback(call.cancel)
        try:
            yield from call
        except grpc.RpcError:
            context.abort(call.code(), call.details())

    def _answer(self, method: str, request: bytes, context: Any) -> bytes:
        def forward(method: str, request: bytes) -> bytes:
            left = context.time_remaining()
            call = self._channel.unary_unary(method).future(request, timeout=left)
            # Else a pull that nobody waits for any more would take messages.
            context.add_callback(call.cancel)
            return bytes(call.result())

        try:
            return self._labels.answer(method, request, forward)
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())
            raise


@contextmanager
def keeping_labels(target: str, port: int) -> Iterator[None]:
    """The emulator's host and port -> the front listens on a port of the loopback.

    It ends with the block.
    """
    with grpc.insecure_channel(target, options=_UNLIMITED) as channel:
        server = grpc.server(
            ThreadPoolExecutor(_THREADS), handlers=[_Front(channel)], options=_UNLIMITED
        )
        server.add_insecure_port(f"localhost:{port}")
        server.start()
        try:
            yield
        finally:
            server.stop(None).wait()
