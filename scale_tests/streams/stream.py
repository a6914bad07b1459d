"""Runs the plan of a stream: publishes messages, collects the results, and judges each level."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from cloud.clients import Cloud
from cloud.errors import retry, translate_errors
from common.errors import InputError, JobError
from common.memory import settled
from scale_tests.load.plan import Plan
from scale_tests.load.processes import Processes, sender_processes
from scale_tests.load.rows import Bodies, make_bodies
from scale_tests.measures.accounts import Ledger, Sent, settle, strays
from scale_tests.measures.level import Level, judge
from scale_tests.measures.outcome import INTERRUPTED, Outcome
from scale_tests.measures.stamps import breakdown
from scale_tests.phases import LEAD_SECONDS, Phases, Step, cut_short
from scale_tests.streams.collectors import Collectors, UnreadableResults, collecting
from scale_tests.streams.sender import Load, publish_all

# A pipeline that runs answers a message within this time.
ANSWER_SECONDS = 30.0
POLL_SECONDS = 0.05


@dataclass
class StreamTest:
    """A running test of a stream.

    Attributes:
        plan: What is sent.
        cloud: The project and the addresses.
        collected: The results so far.
        sending: The sender processes.
        bodies: The rows.
        test_id: The id of the test.
    """

    plan: Plan
    cloud: Cloud
    collected: Collectors
    sending: Processes
    bodies: Bodies
    test_id: str
    sent: list[Sent] = field(default_factory=list)

    def find_the_pipeline(self) -> None:
        """Send one message and wait for its result.

        Raises:
            JobError: The pipeline answers no message.
        """
        ledger, _, error = self._send(np.zeros(1), wait=ANSWER_SECONDS)
        if error:
            raise JobError(f"{self.plan.send_to}: no message can be published: {error}")
        if np.isnan(ledger.arrived).any():
            raise JobError(
                f"no result of a message to {self.plan.send_to} arrived within "
                f"{ANSWER_SECONDS:g} s: check that the pipeline runs and writes to "
                f"{self.plan.result.name}"
            )

    def measure(self, step: Step) -> Level:
        """Send messages, wait for their results, and return what became of them."""
        ledger, cpu, _ = self._send(step.due, wait=self.plan.result.wait_seconds)
        sent = ledger.sent
        stamps = self.collected.stamps(sent.first, len(step.due))
        moments = {"due": sent.due, "sent": sent.at, **stamps, "arrived": ledger.arrived}
        return Level(
            name=step.name,
            start=float(sent.due[0] - step.due[0]) if len(step.due) else 0.0,
            seconds=step.seconds,
            ledger=ledger,
            cpu=cpu,
            parts=breakdown(moments),
        )

    def _send(self, offsets: np.ndarray, wait: float) -> tuple[Ledger, float, str]:
        """Publish messages, wait for their results, and return their accounts."""
        first = sum(len(sent.due) for sent in self.sent)
        due = time.time() + LEAD_SECONDS + offsets
        faulty = self.bodies.faults(first + len(due))[first:]
        planned = Sent(first=first, due=due, at=np.full(len(due), np.nan), faulty=faulty)
        self.sent.append(planned)
        load = Load(
            cloud=self.cloud,
            topic=self.plan.send_to,
            test_id=self.test_id,
            bodies=self.bodies,
            sequence=np.arange(first, first + len(due)),
            due=due,
            faulty=faulty,
        )
        before = self.collected.count
        done = publish_all(self.sending, load)
        planned.at[:] = done.at
        ended = float(np.nanmax(done.at, initial=time.time()))
        wanted = int((~np.isnan(done.at)).sum())
        seen = -1
        while True:
            self.collected.check()
            closed, count = time.time(), self.collected.count
            over = closed > ended + wait
            # Settling takes longer the more results there are, and disturbs their collection.
            if over or (count != seen and count - before >= wanted):
                ledger = settle(planned, self.collected.results(), closed, wait)
                if over or int((~np.isnan(ledger.arrived)).sum()) >= wanted:
                    return ledger, done.cpu, done.error
            seen = count
            time.sleep(POLL_SECONDS)

    def outcome(self, phases: Phases, ended: str = "", *, interrupted: bool = False) -> Outcome:
        """Return what the test showed so far, with the results that came after their levels."""
        results, now = self.collected.results(), time.time()
        levels = []
        for level, _ in phases.levels:
            ledger = settle(level.ledger.sent, results, now, self.plan.result.wait_seconds)
            levels.append(replace(level, ledger=ledger))
        step, last = phases.running, self.sent[-1:]
        if step is not None and len(last[0].due) == len(step.due):
            wait = self.plan.result.wait_seconds
            levels.append(cut_short(step, last[0], results, wait))
        plan = self.plan
        return Outcome(
            test_id=self.test_id,
            levels=tuple((one, judge(one, plan.objective, plan.sender)) for one in levels),
            knees=tuple(phases.knees),
            strays=strays(results, self.sent),
            ended=ended,
            interrupted=interrupted,
        )


def run_stream(plan: Plan, cloud: Cloud, report: Callable[[str], None]) -> Outcome:
    """Run the plan of a stream and return what it showed, also after Ctrl-C.

    If the results can no longer be read, it returns the levels before, if there are any.

    Args:
        plan: The plan, with full names of topics and of the table.
        cloud: The project and the addresses.
        report: Gets a line about each level.

    Raises:
        InputError: A topic or the table is missing, or the account may not use it.
        JobError: The pipeline answers no message.
    """
    topics = [plan.send_to, plan.result.dead_letters]
    if plan.result.source == "topic":
        topics.append(plan.result.name)
    for topic in topics:
        _check_topic(cloud, topic)
    bodies = make_bodies(plan.rows, plan.seed)
    test_id = uuid.uuid4().hex[:12]
    with (
        collecting(cloud, test_id, plan.result) as collected,
        sender_processes(plan.sender.processes) as sending,
        # A collection would delay the messages that arrive meanwhile.
        settled(),
    ):
        test = StreamTest(plan, cloud, collected, sending, bodies, test_id)
        phases = Phases(plan, test.measure, report)
        try:
            test.find_the_pipeline()
            phases.run()
        except KeyboardInterrupt:
            sending.stop()
            return test.outcome(phases, INTERRUPTED, interrupted=True)
        except UnreadableResults as error:
            if not phases.levels:
                raise
            # The results of hours must not be lost with the last ones.
            return test.outcome(phases, str(error))
        return test.outcome(phases)


def _check_topic(cloud: Cloud, topic: str) -> None:
    with translate_errors(InputError, f"{topic} cannot be used", "roles/pubsub.editor"):
        cloud.publisher().get_topic(topic=topic, retry=retry(cloud.retry_seconds))
