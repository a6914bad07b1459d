"""The routes of the server: predictions, health and metrics.

The app uses Starlette directly. FastAPI, which is built on Starlette, would add validation with
pydantic, which this app does not use.
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

from common.errors import MillraceError, UsageError, one_line
from common.memory import is_of_memory, out_of_memory
from model_handlers.endpoints.numpy_json import dump_objects
from model_handlers.loaded_model import describe_error
from serving.instances import BadInstances, split_keys
from serving.parse_request import parse_request
from serving.predictions import prediction_faults, prediction_values
from serving.refusals import Disconnected, Refusal, json_response
from serving.request_body import read_body
from serving.service import Service, State
from transforms.dead_letters import Fault

logger = logging.getLogger("serving")
# How many bad rows of a request the error lists.
SHOWN_ROWS = 20


def make_app(service: Service) -> Starlette:
    """Return the app of a service; the app loads the model when it starts."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        # In a task, so that the health route answers while the model loads.
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
    """Answer a request whose path or method no route has."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:200]}: {error.detail}"
    return Refusal(error.status_code, message, headers=error.headers or {}).response()


@dataclass(frozen=True)
class Health:
    """The health route: 200 if ready, 503 while loading or draining, 500 if the model failed."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the state of the service as JSON."""
        service = self.service
        status = {State.READY: 200, State.FAILED: 500}.get(service.state, 503)
        content: dict[str, Any] = {"status": service.state.value}
        if service.state is State.FAILED:
            content["reason"] = service.reason
        if service.state is State.READY:
            content["model"] = service.metadata
        response = json_response(orjson.dumps(content), status, service.headers)
        await response(scope, receive, send)


@dataclass(frozen=True)
class Exposition:
    """The metrics route, in Prometheus' text format."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the metrics of the service."""
        text = generate_latest(self.service.metrics.registry)
        headers = {"Content-Type": CONTENT_TYPE_LATEST}
        await Response(text, headers=headers)(scope, receive, send)


@dataclass(frozen=True)
class Predict:
    """The predict route, which answers `{"instances": [...], "parameters": {...}}`.

    The answer is `{"predictions": [...]}`, or `{"error": {...}}` with a status that says why.
    """

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, and count it by its status."""
        service, started = self.service, time.perf_counter()
        try:
            response = await self._respond(scope, receive)
        except Disconnected:
            return
        response.headers.update(service.headers)
        # The request is counted before the answer is sent: a client that has the answer can rely
        # on the metrics to include it.
        service.metrics.requests.labels(str(response.status_code)).inc()
        service.metrics.seconds.observe(time.perf_counter() - started)
        await response(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive) -> Response:
        try:
            self._admit()
            body = await read_body(scope, receive, self.service.settings.max_request_bytes)
            with self._in_flight():
                return json_response(await self._answer(body))
        except Refusal as refused:
            return refused.response()
        except Disconnected:
            raise
        except Exception as error:
            if is_of_memory(error):
                return _too_large(error).response()
            return self._failed(error).response()

    def _failed(self, error: Exception) -> Refusal:
        """Log an error of the machine or the model, and return the refusal for the client."""
        if isinstance(error, MillraceError):
            logger.error("a forward pass failed: %s", one_line(error))
            return Refusal(500, f"the model cannot be run: {one_line(error)}")
        # The message of the error is left out, since it may contain values of a row.
        where = "".join(traceback.format_tb(error.__traceback__))
        logger.error("unexpected %s\n%s", type(error).__name__, where)
        return Refusal(500, f"unexpected {type(error).__name__}; see the server's log")

    def _admit(self) -> None:
        """Raise Refusal unless the server is ready."""
        service = self.service
        if service.state is State.FAILED:
            raise Refusal(500, f"the model cannot be served: {service.reason}")
        if service.state is not State.READY:
            message = f"this server is {service.state.value}"
            raise Refusal(503, message, headers={"Retry-After": "1"})

    @contextmanager
    def _in_flight(self) -> Iterator[None]:
        """Count a completely received request until its answer is ready.

        Raises Refusal if too many requests are in flight.
        """
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
        """Return the body of the answer to a request's body, or raise Refusal."""
        service = self.service
        instances, parameters = parse_request(body)
        try:
            choice = service.choose(parameters.outputs)
        except UsageError as error:
            raise Refusal(400, f"parameters.outputs: {error}") from error
        batcher = service.batcher(choice)
        if batcher is None:
            raise Refusal(
                400,
                "parameters.outputs: this server was started with --fixed_outputs, and computes "
                "no other outputs: leave the parameter out",
            )
        if not instances:
            return b'{"predictions":[]}'
        reader = service.tensor_reader if parameters.prepared else service.reader
        rows, keys = split_keys(instances, service.settings.instance_keys, reader.features)
        try:
            answer = await service.predict(batcher, reader, rows, choice)
        except BadInstances as bad:
            raise self._refuse_rows(bad.faults, len(instances)) from None
        if faults := prediction_faults(choice, answer):
            raise self._refuse_rows(dict(sorted(faults.items())), len(instances))
        service.metrics.rows.inc(len(instances))
        values = prediction_values(choice, batcher.model.outputs, answer)
        return b'{"predictions":%b}' % dump_objects(
            [field.key for field in choice.fields], values, keys
        )

    def _refuse_rows(self, faults: Mapping[int, Fault], rows: int) -> Refusal:
        """Count the bad rows, and return the refusal of the whole request, which lists them."""
        for fault in faults.values():
            self.service.metrics.bad_rows.labels(fault.reason).inc()
        listed = [
            {"index": index, "reason": fault.reason, "message": fault.message}
            for index, fault in list(faults.items())[:SHOWN_ROWS]
        ]
        first = listed[0]
        message = (
            f"no prediction was returned, because {len(faults)} of {rows} instances failed; the "
            f"first is instance {first['index']}: {first['message']}"
        )
        return Refusal(400, message, {"bad_instances": len(faults), "instances": listed})


def _too_large(error: Exception) -> Refusal:
    """Return the refusal of a request for which there was not enough memory.

    It is a 503, since the next request may be smaller, or run when no other one does.
    """
    lack = out_of_memory(
        describe_error(error), "send fewer instances, or allow the server more memory"
    )
    logger.error("%s", lack)
    return Refusal(503, str(lack), headers={"Retry-After": "1"})
