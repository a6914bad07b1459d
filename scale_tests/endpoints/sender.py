"""Sends requests to an endpoint when they are due, and times the answers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloud.endpoint_client import EndpointClient
from cloud.endpoint_responses import REFUSING, Passing
from cloud.vertex import EndpointAddress
from common.errors import CredentialsError, EndpointError
from common.memory import settle
from scale_tests.load.processes import Processes
from scale_tests.load.rows import Instances

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
BAD_ANSWER = "bad answer"


class _Predictions(msgspec.Struct):
    predictions: list[msgspec.Raw]


_read = msgspec.json.Decoder(_Predictions).decode


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests to send.

    Attributes:
        address: The endpoint.
        instances: The rows.
        rows: How many of them a request has.
        sequence: [n] The sequence numbers.
        due: [n] When each request is due, in seconds since 1970, ascending.
        faulty: [n] Which requests have a row with a fault.
        timeout_seconds: How long an answer is awaited.
        in_flight: How many requests may wait for their answers. Further ones are not sent.
    """

    address: EndpointAddress
    instances: Instances
    rows: int
    sequence: NDArray[np.int64]
    due: Floats
    faulty: Flags
    timeout_seconds: float
    in_flight: int

    def part(self, number: int, of: int) -> Load:
        """Return the requests that one of several processes sends."""
        return replace(
            self,
            sequence=self.sequence[number::of],
            due=self.due[number::of],
            faulty=self.faulty[number::of],
            in_flight=self.in_flight // of + (number < self.in_flight % of),
        )

    def body(self, number: int) -> bytes:
        """Return the body of a request."""
        bad = bool(self.faulty[number])
        return self.instances.request(int(self.sequence[number]), self.rows, bad)


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What became of a load.

    Attributes:
        at: [n] When each request was sent, in seconds since 1970; NaN if it was not.
        arrived: [n] When its answer was complete; NaN without an answer.
        refused: [n] Whether it was refused because of its rows.
        failed: [n] Whether the answer was an error of any kind.
        errors: How many requests got no prediction, by the kind of the failure: the status of the
            answer, `timeout`, `connection` or BAD_ANSWER.
        over_limit: How many requests were not sent because too many waited for answers.
        cpu: The share of a core that the process used.
    """

    at: Floats
    arrived: Floats
    refused: Flags
    failed: Flags
    errors: Counter[str] = field(default_factory=Counter)
    over_limit: int = 0
    cpu: float = 0.0


def failure(status: int, answer: bytes, rows: int) -> str:
    """Return the kind of failure that an answer is; empty if it has a prediction for each row."""
    if status != 200:
        return str(status)
    try:
        return "" if len(_read(answer).predictions) == rows else BAD_ANSWER
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return BAD_ANSWER


class _Sending:
    """A load that a process sends."""

    def __init__(self, client: EndpointClient, load: Load) -> None:
        self._client, self._load = client, load
        count = len(load.due)
        self.at, self.arrived = np.full((2, count), np.nan)
        self.refused, self.failed = np.zeros((2, count), bool)
        self.errors: Counter[str] = Counter()
        self.over_limit = self._waiting = 0

    async def run(self) -> None:
        """Start each request when it is due, however long the answers before it take."""
        async with asyncio.TaskGroup() as group:
            for number, due in enumerate(self._load.due.tolist()):
                await asyncio.sleep(max(0.0, due - time.time()))
                if self._waiting >= self._load.in_flight:
                    self.over_limit += 1
                    continue
                self._waiting += 1
                group.create_task(self._request(number))

    async def _request(self, number: int) -> None:
        body = self._load.body(number)
        self.at[number] = time.time()
        try:
            response, answer = await self._client.ask(body)
        except Passing as error:
            self.errors["timeout" if error.overloaded else "connection"] += 1
            return
        except (EndpointError, CredentialsError):
            self.errors["connection"] += 1
            return
        finally:
            self._waiting -= 1
        self.arrived[number] = time.time()
        if kind := failure(response.status, answer, self._load.rows):
            self.errors[kind] += 1
            self.failed[number] = True
            self.refused[number] = response.status in REFUSING


@lru_cache
def _client(address: EndpointAddress, timeout_seconds: float) -> EndpointClient:
    """Return the client of this process, whose connections stay open from level to level."""
    return address.connect(timeout_seconds=timeout_seconds)


def prepare(load: Load) -> None:
    """Connect the client of this process. Raises as `send`."""
    _client(load.address, load.timeout_seconds)
    # Otherwise a collection could delay a request.
    settle()
    # Meanwhile the other processes take the same task.
    time.sleep(0.1)


def send(load: Load) -> Answered:
    """Send each request when it is due, and wait for all answers.

    Raises:
        EndpointError: The endpoint cannot be found.
        CredentialsError: There are no usable credentials.
    """
    client = _client(load.address, load.timeout_seconds)
    sending = _Sending(client, load)
    used = time.process_time()
    client.run(sending.run())
    used = time.process_time() - used
    # To wait for an answer that does not come takes no CPU time.
    start = load.due[0] if len(load.due) else 0.0
    last = float(np.nanmax(np.concatenate([sending.at, sending.arrived]), initial=start))
    return Answered(
        at=sending.at,
        arrived=sending.arrived,
        refused=sending.refused,
        failed=sending.failed,
        errors=sending.errors,
        over_limit=sending.over_limit,
        cpu=used / max(last - start, used, 1e-9),
    )


def send_all(processes: Processes, load: Load) -> Answered:
    """Send a load from all processes. The share of a core is that of the busiest one.

    Raises:
        JobError: A process was killed.
        EndpointError: The endpoint cannot be found.
        CredentialsError: There are no usable credentials.
    """
    count = processes.count
    done = processes.run(send, [load.part(number, count) for number in range(count)])
    at, arrived = np.full((2, len(load.due)), np.nan)
    refused, failed = np.zeros((2, len(load.due)), bool)
    for number, one in enumerate(done):
        own = slice(number, None, count)
        at[own], arrived[own] = one.at, one.arrived
        refused[own], failed[own] = one.refused, one.failed
    return Answered(
        at=at,
        arrived=arrived,
        refused=refused,
        failed=failed,
        errors=sum((one.errors for one in done), Counter()),
        over_limit=sum(one.over_limit for one in done),
        cpu=max(one.cpu for one in done),
    )
