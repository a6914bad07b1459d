"""The routes: predictions, health and metrics, with status codes that mean what they say.

Starlette, on which FastAPI is built, is used directly: nothing here is declared for
pydantic, and a request passes no layer that it does not need.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cloud.endpoint_client import DIGEST_HEADER
from common.errors import MillraceError, UsageError, one_line
from common.memory import is_of_memory, out_of_memory
from model_handlers.loaded_model import describe_error
from model_handlers.numpy_json import dump_objects
from serving.instances import BadInstances, unique_instances
from serving.refusals import Disconnected, Refusal, json_response
from serving.service import Service, State, arrays_of
from transforms.dead_letters import Fault

logger = logging.getLogger("serving")

# Of a request's bad rows these many are told one by one.
SHOWN_ROWS = 20


def make_app(service: Service) -> Starlette:
    """A service, not yet loaded -> its app, which loads it when it starts."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        # The health route answers meanwhile.
        loading = asyncio.create_task(service.load())
        yield
        loading.cancel()
        service.close()

    predict, health = Predict(service), Health(service)
    settings = service.settings
    predict_routes = ["/predict", "/v1/{endpoint:path}:predict", "/v1/{endpoint:path}:rawPredict"]
    health_routes = ["/health", "/ping", "/v1/endpoints/{endpoint}/deployedModels/{model}"]
    return Starlette(
        routes=[
            *(
                Route(path, predict, methods=["POST"])
                for path in _paths(settings.predict_route, predict_routes)
            ),
            *(
                Route(path, health, methods=["GET"])
                for path in _paths(settings.health_route, health_routes)
            ),
            Route("/metrics", Exposition(service), methods=["GET"]),
        ],
        exception_handlers={HTTPException: _refuse_route},
        lifespan=lifespan,
    )


def _paths(chosen: str | None, others: Sequence[str]) -> list[str]:
    return [chosen, *others] if chosen else list(others)


async def _refuse_route(request: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:200]}: {error.detail}"
    return Refusal(error.status_code, message, headers=error.headers or {}).response()


@dataclass(frozen=True)
class Health:
    """GET -> 200 where predictions are answered, 503 before and after, 500 where they never are."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        service = self.service
        status = {State.READY: 200, State.FAILED: 500}.get(service.state, 503)
        told: dict[str, Any] = {"status": service.state.value}
        if service.state is State.FAILED:
            told["reason"] = service.reason
        if service.state is State.READY:
            manifest = service.manifest
            told["model"] = {
                "name": manifest.name,
                "version": manifest.version,
                "sha256": manifest.sha256,
            }
        await json_response(orjson.dumps(told), status)(scope, receive, send)


@dataclass(frozen=True)
class Exposition:
    """GET -> the metrics in Prometheus' text form."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        text = generate_latest(self.service.metrics.registry)
        headers = {"Content-Type": CONTENT_TYPE_LATEST}
        await Response(text, headers=headers)(scope, receive, send)


@dataclass(frozen=True)
class Predict:
    """POST `{"instances": [...], "parameters": {...}}` -> `{"predictions": [...]}`."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        service, started = self.service, time.perf_counter()
        try:
            response = await self._respond(scope, receive)
        except Disconnected:
            return
        # Counted before it is sent: whoever has the answer finds it in the metrics.
        service.metrics.requests.labels(str(response.status_code)).inc()
        service.metrics.seconds.observe(time.perf_counter() - started)
        await response(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive) -> Response:
        try:
            self._admit()
            body = await _read_body(scope, receive, self.service.settings.max_request_bytes)
            digest = {DIGEST_HEADER: self.service.manifest.sha256}
            with self._in_flight():
                return json_response(await self._answer(body), headers=digest)
        except Refusal as refused:
            return refused.response()
        except Disconnected:
            raise
        except Exception as error:
            if is_of_memory(error):
                return _too_large(error).response()
            return self._failed(error).response()

    def _failed(self, error: Exception) -> Refusal:
        """What the machine or the model raised -> the answer, and a line in the log."""
        if isinstance(error, MillraceError):
            logger.error("a pass failed: %s", one_line(error))
            return Refusal(500, f"the model cannot be run: {one_line(error)}")
        # Without its message, which may hold values of a row.
        where = "".join(traceback.format_tb(error.__traceback__))
        logger.error("unexpected %s\n%s", type(error).__name__, where)
        return Refusal(500, f"unexpected {type(error).__name__}; see the log")

    def _admit(self) -> None:
        """Raises Refused where no request can be taken now."""
        service = self.service
        if service.state is State.FAILED:
            raise Refusal(500, f"the model cannot be served: {service.reason}")
        if service.state is not State.READY:
            message = f"this server is {service.state.value}"
            raise Refusal(503, message, headers={"Retry-After": "1"})

    @contextmanager
    def _in_flight(self) -> Iterator[None]:
        """A request that has arrived whole counts until its answer is made. Raises Refused."""
        service = self.service
        if service.in_flight >= service.settings.max_in_flight:
            message = f"{service.settings.max_in_flight} requests are in flight: try again later"
            raise Refusal(503, message, headers={"Retry-After": "1"})
        service.in_flight += 1
        try:
            yield
        finally:
            service.in_flight -= 1

    async def _answer(self, body: bytes) -> bytes:
        """A request's body -> its answer's. Raises Refused."""
        service = self.service
        instances, outputs = parse_request(body)
        try:
            fields = service.choose(outputs)
        except UsageError as error:
            raise Refusal(400, f"parameters.outputs: {error}") from error
        batcher = service.batcher(fields)
        if batcher is None:
            raise Refusal(400, "parameters.outputs: this server was started with --fixed_outputs")
        if not instances:
            return b'{"predictions":[]}'
        try:
            inputs = service.reader.read(instances)
        except BadInstances as bad:
            raise self._refuse_rows(bad.faults, len(instances)) from None
        answer = await service.predict(batcher, inputs)
        if answer.faults:
            faults = {i: Fault("model_error", describe_error(e)) for i, e in answer.faults.items()}
            raise self._refuse_rows(faults, len(instances))
        service.metrics.rows.inc(len(instances))
        return b'{"predictions":%b}' % dump_objects(
            [wanted.key for wanted in fields], arrays_of(batcher, answer, fields)
        )

    def _refuse_rows(self, faults: Mapping[int, Fault], rows: int) -> Refusal:
        """Bad rows by index -> the refusal of the whole request, which names them."""
        for fault in faults.values():
            self.service.metrics.bad_rows.labels(fault.reason).inc()
        told = [
            {"index": index, "reason": fault.reason, "message": fault.message}
            for index, fault in list(faults.items())[:SHOWN_ROWS]
        ]
        first = told[0]
        message = f"{len(faults)} of {rows} instances cannot be predicted: instance "
        message += f"{first['index']}: {first['message']}"
        return Refusal(400, message, {"bad_instances": len(faults), "instances": told})


def _too_large(error: Exception) -> Refusal:
    """Lack of memory for a request -> its refusal. The next one may be smaller, or alone."""
    told = out_of_memory(
        describe_error(error), "send fewer instances, or allow the server more memory"
    )
    logger.error("%s", told)
    return Refusal(503, str(told), headers={"Retry-After": "1"})


async def _read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """A request -> its body. Raises Refused above the limit, before more is kept; Disconnected."""
    too_large = Refusal(
        413,
        f"the request has more than {limit:,} bytes: send fewer instances",
        headers={"Connection": "close"},
    )
    declared = next((v for k, v in scope["headers"] if k == b"content-length"), b"0")
    if int(declared) > limit:
        raise too_large
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk = message.get("body", b"")
        if len(body) + len(chunk) > limit:
            raise too_large
        if not message.get("more_body", False):
            return bytes(body + chunk) if body else chunk
        body += chunk


def parse_request(body: bytes) -> tuple[list[Any], str | list[str] | None]:
    """A request's body -> its instances, and `parameters.outputs` if given. Raises Refused."""
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f"the body is not JSON: {error}{_nan_advice(body)}") from error
    if not isinstance(request, dict) or not isinstance(request.get("instances"), list):
        raise Refusal(400, 'expected {"instances": [...]}, a list of rows')
    try:
        instances = unique_instances(request, body)
    except ValueError as error:
        raise Refusal(400, str(error)) from error
    parameters = request.get("parameters")
    if parameters is None:
        return instances, None
    if not isinstance(parameters, dict):
        raise Refusal(400, f"parameters: expected an object, got {type(parameters).__name__}")
    for name in parameters:
        if name != "outputs":
            raise Refusal(400, f"unknown parameter {name[:40]!r}: there is only outputs")
    outputs = parameters.get("outputs")
    names = outputs if isinstance(outputs, list) else [outputs]
    if outputs is not None and not all(isinstance(name, str) for name in names):
        raise Refusal(400, "parameters.outputs: expected all, score, or a list of names")
    return instances, outputs


def _nan_advice(body: bytes) -> str:
    """A body that is no JSON -> what to do, where it may be so for the sake of a number."""
    if b"NaN" in body or b"Infinity" in body:
        return "; NaN and the infinities are no numbers of JSON: leave such rows out"
    return ""
