"""Runs the plan of an endpoint: sends requests, times their answers, and judges each level."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from cloud.endpoint_responses import Passing, RequestRefused
from cloud.vertex import EndpointAddress
from common.errors import EndpointError, InputError
from scale_tests.endpoints.sender import BAD_ANSWER, Floats, Load, failure, prepare, send_all
from scale_tests.endpoints.server_times import metrics_url, read_times, split_parts
from scale_tests.load.plan import Plan
from scale_tests.load.processes import Processes, sender_processes
from scale_tests.load.rows import Instances, make_instances
from scale_tests.measures.accounts import Results, Sent, settle
from scale_tests.measures.level import Level, judge
from scale_tests.measures.outcome import INTERRUPTED, Outcome
from scale_tests.measures.stamps import OF_REQUESTS, breakdown
from scale_tests.phases import LEAD_SECONDS, Phases, Step, cut_short


@dataclass
class EndpointTest:
    """A running test of an endpoint.

    Attributes:
        plan: What is sent.
        address: The endpoint.
        sending: The sender processes.
        instances: The rows.
        metrics: The URL of the server's metrics, or None.
        count: How many requests were due so far.
        load: The requests of the last level.
    """

    plan: Plan
    address: EndpointAddress
    sending: Processes
    instances: Instances
    metrics: str | None
    count: int = field(default=0, init=False)
    load: Load | None = field(default=None, init=False)

    def prepare(self) -> None:
        """Connect the sender processes, so that they send the first requests in time."""
        self.sending.run(prepare, [self._load(np.zeros(0))] * self.sending.count)

    def measure(self, step: Step) -> Level:
        """Send requests, wait for their answers, and return what became of them."""
        first, wait = self.count, self.plan.result.wait_seconds
        counted = read_times(self.metrics)
        start = time.time() + LEAD_SECONDS
        load = self.load = self._load(start + step.due, step.rows)
        self.count += len(step.due)
        done = send_all(self.sending, load)
        answered = np.flatnonzero(~np.isnan(done.arrived))
        found = Results(
            sequence=answered + first,
            at=done.arrived[answered],
            dead=done.refused[answered],
            error=done.failed[answered],
        )
        sent = Sent(first=first, due=load.due, at=done.at, faulty=load.faulty)
        moments = {"due": sent.due, "sent": sent.at, "arrived": done.arrived}
        return Level(
            name=step.name,
            start=start,
            seconds=step.seconds,
            # No answer comes after its request has ended.
            ledger=settle(sent, found, closed=math.inf, wait_seconds=wait),
            cpu=done.cpu,
            rows=step.rows,
            idle_seconds=step.idle_seconds,
            parts=split_parts(breakdown(moments, OF_REQUESTS), counted, read_times(self.metrics)),
            errors=dict(done.errors),
            refused_by_limit=done.over_limit,
            item="request",
        )

    def interrupted(self, step: Step) -> Level:
        """Return the level of a step that was interrupted: its answers are not known."""
        due, faulty = np.zeros(0), np.zeros(0, bool)
        if self.load is not None and len(self.load.due) == len(step.due):
            due, faulty = self.load.due, self.load.faulty
        none = Results(sequence=np.zeros(0, int), at=np.zeros(0), dead=np.zeros(0, bool))
        sent = Sent(first=0, due=due, at=np.full(len(due), np.nan), faulty=faulty)
        return replace(cut_short(step, sent, none, self.plan.result.wait_seconds), item="request")

    def _load(self, due: Floats, rows: int = 1) -> Load:
        end = self.count + len(due)
        return Load(
            address=self.address,
            instances=self.instances,
            rows=rows,
            sequence=np.arange(self.count, end),
            due=due,
            faulty=self.instances.faults(end)[self.count :],
            timeout_seconds=2 * self.plan.result.wait_seconds,
            in_flight=self.plan.sender.in_flight,
        )


def check_endpoint(address: EndpointAddress, instances: Instances, seconds: float) -> str:
    """Send one request of one row, and return the URL for predictions.

    Args:
        address: The endpoint.
        instances: The rows.
        seconds: How long the answer is awaited.

    Raises:
        EndpointError: The endpoint cannot be found, does not answer, or refuses the account.
        CredentialsError: There are no usable credentials.
        InputError: The endpoint refuses the row, or does not answer with a prediction.
    """
    client = address.connect(timeout_seconds=seconds)
    advice = "check rows.source, rows.path and rows.instance_format of the plan"
    try:
        response, answer = client.run(client.ask(instances.request(0, 1, faulty=False)))
        if response.status != 200:
            client.refuse(response, answer)
    except Passing as error:
        raise EndpointError(
            f"endpoint {client.name} does not answer: {error}; check the address, and that a "
            "server is ready there"
        ) from error
    except RequestRefused as error:
        raise InputError(f"endpoint {client.name} refuses a row: {error}; {advice}") from error
    finally:
        client.close()
    if failure(response.status, answer, 1) == BAD_ANSWER:
        raise InputError(
            f"endpoint {client.name}: expected an answer with one prediction for one row; check "
            "that the address is one for predictions"
        )
    return client.url


def run_endpoint(plan: Plan, address: EndpointAddress, report: Callable[[str], None]) -> Outcome:
    """Run the plan of an endpoint and return what it showed, also after Ctrl-C.

    Args:
        plan: The plan.
        address: The endpoint.
        report: Gets a line about each level.

    Raises:
        EndpointError: The endpoint cannot be found, does not answer, or refuses the account.
        CredentialsError: There are no usable credentials.
        InputError: The endpoint refuses a row of the plan, or the rows cannot be read.
    """
    instances = make_instances(plan.rows, plan.seed)
    url = check_endpoint(address, instances, plan.result.wait_seconds)
    with sender_processes(plan.sender.processes) as sending:
        test = EndpointTest(plan, address, sending, instances, metrics_url(url))
        phases = Phases(plan, test.measure, report)
        ended = ""
        try:
            test.prepare()
            phases.run()
        except KeyboardInterrupt:
            ended = INTERRUPTED
            sending.stop()
    levels = [*phases.levels]
    if phases.running is not None:
        level = test.interrupted(phases.running)
        levels.append((level, judge(level, plan.objective, plan.sender)))
    return Outcome(
        test_id=uuid.uuid4().hex[:12],
        levels=tuple(levels),
        knees=tuple(phases.knees),
        strays=0,
        ended=ended,
        interrupted=bool(ended),
    )
