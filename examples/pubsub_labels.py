"""A proxy for Google's emulator of Pub/Sub that keeps labels, which the emulator drops.

It speaks gRPC, as the clients do. It forwards every call to the emulator. It keeps the labels of
topics and subscriptions itself, and adds them to the answers.
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

# The emulator accepts messages of any size, so the proxy does too.
_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
# A pull occupies a thread while it waits for messages, and a streaming pull while it is open.
_THREADS = 256

# Sends a request to a method of the emulator, and returns the answer.
Forward = Callable[[str, bytes], bytes]


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A kind of resource that has labels.

    Attributes:
        field: The field of requests that holds the resource or its name.
        one: The type of the resource.
        get: The type of the request that reads one.
        update: The type of the request that changes one.
        page: The type of the answer that lists several.
    """

    field: str
    one: Any
    get: Any
    update: Any
    page: Any

    def read_request(self, name: str) -> bytes:
        """Return the request that reads the resource with this name."""
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
    """The labels of resources by full name, and the calls that read or change them."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, str]] = {}
        self._answers: dict[str, Callable[[str, bytes, Forward], bytes]] = {}
        for name, kind in _KINDS.items():
            self._answers[f"Create{name}"] = partial(self._create, kind)
            self._answers[f"Get{name}"] = partial(self._get, kind)
            self._answers[f"Update{name}"] = partial(self._update, kind)
            self._answers[f"List{name}s"] = partial(self._list, kind)

    def answer(self, method: str, request: bytes, forward: Forward) -> bytes:
        """Answer a call, with the labels of the resources in the answer."""
        found = self._answers.get(method.rpartition("/")[2])
        return found(method, request, forward) if found else forward(method, request)

    def _create(self, kind: _Kind, method: str, request: bytes, forward: Forward) -> bytes:
        wanted, answer = kind.one.pb().FromString(request), forward(method, request)
        self._known[wanted.name] = dict(wanted.labels)
        return self._with_labels(kind, answer)

    def _get(self, kind: _Kind, method: str, request: bytes, forward: Forward) -> bytes:
        return self._with_labels(kind, forward(method, request))

    def _update(self, kind: _Kind, method: str, request: bytes, forward: Forward) -> bytes:
        wanted = kind.update.pb().FromString(request)
        new, paths = getattr(wanted, kind.field), list(wanted.update_mask.paths)
        others = [path for path in paths if path != "labels"]
        if others or not paths:
            wanted.update_mask.paths[:] = others
            answer = forward(method, wanted.SerializeToString())
        else:
            answer = forward(method.replace("/Update", "/Get"), kind.read_request(new.name))
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
            # The emulator may still have the labels with which the resource was created.
            found.labels.clear()
            found.labels.update(self._known[found.name])


class _Front(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A handler of calls of any method, as bytes, which it forwards to the emulator's channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel, self._labels = channel, _Labels()

    def service(self, details: Any) -> Any:
        """Return the function that answers calls of a method."""
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
            # Otherwise, a pull whose client has left would still take messages.
            context.add_callback(call.cancel)
            return bytes(call.result())

        try:
            return self._labels.answer(method, request, forward)
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())
            raise


@contextmanager
def keeping_labels(target: str, port: int) -> Iterator[None]:
    """Run the proxy on a port of the loopback interface until the block ends.

    Args:
        target: The host and port of the emulator.
        port: The port on which the proxy listens.
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
