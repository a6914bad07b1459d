"""Publishes messages when they are due, from several processes."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import Any

import numpy as np
from google.pubsub_v1.types import PublishRequest
from numpy.typing import NDArray

from cloud.clients import Cloud
from cloud.errors import explain, retry
from common.memory import settle
from scale_tests.load.processes import Processes
from scale_tests.load.rows import Bodies

Floats = NDArray[np.float64]
# Requests of a process that run at the same time. Messages that become due while all of them run
# are published together.
IN_FLIGHT = 4
# How long after the start of a request the next one starts at the earliest. Messages that become
# due meanwhile share it, because a request takes half a millisecond of CPU time, and each of its
# messages hardly any. So a message is sent later by at most this time, at a low rate hardly ever.
GAP_SECONDS = 0.001
# How long a request is retried. A load that is that late does not count anyway.
PATIENCE_SECONDS = 10.0
# Pub/Sub's limit for the messages of a request.
PER_REQUEST = 1_000


@dataclass(frozen=True, kw_only=True)
class Load:
    """Messages to publish.

    Attributes:
        cloud: The project and the addresses.
        topic: The full name of the topic.
        test_id: The id of the test, in each message.
        bodies: The rows.
        sequence: [n] The sequence numbers.
        due: [n] When each message is due, in seconds since 1970, ascending.
        faulty: [n] Which messages have a fault.
    """

    cloud: Cloud
    topic: str
    test_id: str
    bodies: Bodies
    sequence: NDArray[np.int64]
    due: Floats
    faulty: NDArray[np.bool_]

    def part(self, number: int, of: int) -> Load:
        """Return the messages that one of several processes publishes."""
        return Load(
            cloud=self.cloud,
            topic=self.topic,
            test_id=self.test_id,
            bodies=self.bodies,
            sequence=self.sequence[number::of],
            due=self.due[number::of],
            faulty=self.faulty[number::of],
        )

    def request(self, start: int, stop: int) -> PublishRequest:
        """Return the request that publishes some of the messages."""
        # Filling the bare protobuf message takes a tenth of the time that proto-plus takes.
        request = PublishRequest.pb(PublishRequest(topic=self.topic))
        for number in range(start, stop):
            bad = bool(self.faulty[number])
            body = self.bodies.message(self.test_id, int(self.sequence[number]), bad)
            request.messages.add(data=body)
        return PublishRequest.wrap(request)


@dataclass(frozen=True)
class Published:
    """What became of a load.

    Attributes:
        at: [n] When each message was published, in seconds since 1970; NaN if that failed.
        cpu: The share of a core that the process used.
        error: The first error, in one line; empty without one.
    """

    at: Floats
    cpu: float
    error: str = ""


def publish(load: Load) -> Published:
    """Publish each message when it is due. An error costs the messages of its request."""
    at = np.full(len(load.due), np.nan)
    errors: list[str] = []
    free = BoundedSemaphore(IN_FLIGHT)
    client: Any = load.cloud.publisher()
    patient = retry(PATIENCE_SECONDS)
    # Otherwise a collection could delay a message.
    settle()

    def send(start: int, stop: int) -> None:
        try:
            request = load.request(start, stop)
            now = time.time()
            client.publish(request=request, retry=patient, timeout=PATIENCE_SECONDS)
            at[start:stop] = now
        except Exception as error:  # the account shows which messages were not sent
            errors.append(explain(error))
        finally:
            free.release()

    began, used = time.monotonic(), time.process_time()
    start, again = 0, 0.0
    with ThreadPoolExecutor(IN_FLIGHT) as threads:
        while start < len(load.due):
            time.sleep(max(0.0, max(load.due[start], again) - time.time()))
            free.acquire()
            stop = int(np.searchsorted(load.due, time.time(), "right"))
            stop = min(max(stop, start + 1), start + PER_REQUEST)
            threads.submit(send, start, stop)
            again = time.time() + GAP_SECONDS
            start = stop
    wall = max(time.monotonic() - began, 1e-9)
    return Published(at, (time.process_time() - used) / wall, *errors[:1])


def publish_all(processes: Processes, load: Load) -> Published:
    """Publish a load from all processes. The share of a core is that of the busiest one.

    Raises:
        JobError: A process was killed.
    """
    count = processes.count
    done = processes.run(publish, [load.part(number, count) for number in range(count)])
    at = np.empty(len(load.due))
    for number, one in enumerate(done):
        at[number::count] = one.at
    failed = [one.error for one in done if one.error]
    return Published(at, max(one.cpu for one in done), *failed[:1])
