"""The plan of a scale test: what is sent, at which times, and what counts as good enough.

`plan_file.py` reads a plan from TOML. All values are checked when they are built, so a plan that
exists can be run.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Target = Literal["stream", "endpoint", "batch"]
Instances = Literal["list", "named"]
Share = Annotated[float, Meta(ge=0, le=1)]
# The upper bounds also refuse infinity.
Rate = Annotated[float, Meta(gt=0, le=1e7)]
Seconds = Annotated[float, Meta(gt=0, le=2_592_000)]
Milliseconds = Annotated[float, Meta(gt=0, le=3_600_000)]
Count = Annotated[int, Meta(ge=1, le=10**10)]


class Values(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Values of a table in a plan. A name that the table does not know is an error."""


class Objective(Values, frozen=True, kw_only=True):
    """What a level must reach to count as sustained.

    Attributes:
        percentile: The percentile of the latency that is compared, 0 to 100.
        latency_ms: The largest latency at this percentile, in milliseconds.
        goodput: The share of the messages that must be answered rightly within latency_ms.
    """

    percentile: Annotated[float, Meta(gt=0, lt=100)] = 99.0
    latency_ms: Milliseconds
    goodput: Share = 0.99


class Sender(Values, frozen=True, kw_only=True):
    """The sender processes, and the limits beyond which they did not send what was planned.

    Attributes:
        processes: How many processes send.
        late_ms: How much later than intended 99 of 100 messages may be sent, in milliseconds.
        cpu: The share of a core that a process may use, 0 to 1. A busier sender measures itself.
        in_flight: How many requests to an endpoint may wait for their answers. Further ones are
            not sent, and the level is invalid: to wait for an answer would close the loop.
    """

    processes: Annotated[int, Meta(ge=1, le=256)] = 1
    late_ms: Milliseconds = 50.0
    cpu: Share = 0.8
    in_flight: Annotated[int, Meta(ge=1, le=100_000)] = 1_000


class Rows(Values, frozen=True, kw_only=True):
    """The rows that are sent.

    Attributes:
        source: `statistics` of a model package, the `example`'s generator, or a `file`.
        path: The package, or the Parquet or JSON Lines file. The example needs none.
        faulty: The share of messages with a fault, which must become dead letters. An endpoint
            must refuse a request with a fault.
        instance_format: `list` to send each row to an endpoint as the list of its values, or
            `named` to send an object with the names of the columns as keys.
    """

    source: Literal["statistics", "example", "file"] = "example"
    path: str = ""
    faulty: Share = 0.0
    instance_format: Instances = "named"


class Result(Values, frozen=True, kw_only=True):
    """Where a result is read.

    Attributes:
        source: A `topic`, a `table`, or the `answer` of an endpoint.
        name: The topic or table. An answer needs none.
        dead_letters: The topic of the dead letters of a stream.
        wait_seconds: How long after it was sent the result of a message may arrive. An answer of
            an endpoint is awaited for twice this time.
    """

    source: Literal["topic", "table", "answer"]
    name: str = ""
    dead_letters: str = ""
    wait_seconds: Seconds = 60.0


class Phase(Values, frozen=True, kw_only=True, tag_field="kind"):
    """A part of a test.

    Attributes:
        idle_seconds: How long nothing is sent before the phase, so that it meets a cold system.
        rows: How many rows a request to an endpoint has, or a list of such numbers. The phase runs
            once for each of them.
    """

    idle_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    rows: Count | Annotated[tuple[Count, ...], Meta(min_length=1)] = 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """The rows of a request, one after the other."""
        return self.rows if isinstance(self.rows, tuple) else (self.rows,)


class WarmUp(Phase, frozen=True, kw_only=True, tag="warm_up"):
    """A constant rate whose figures count nowhere."""

    rate: Rate
    seconds: Seconds


class Constant(Phase, frozen=True, kw_only=True, tag="constant"):
    """A constant rate, in messages per second."""

    rate: Rate
    seconds: Seconds


class Soak(Phase, frozen=True, kw_only=True, tag="soak"):
    """A constant rate for hours."""

    rate: Rate
    seconds: Seconds


class Ramp(Phase, frozen=True, kw_only=True, tag="ramp"):
    """A rate that changes linearly."""

    from_rate: Annotated[float, Meta(ge=0, le=1e7)]
    to_rate: Rate
    seconds: Seconds


class Burst(Phase, frozen=True, kw_only=True, tag="burst"):
    """Messages that are all due at once."""

    messages: Count


class Spike(Phase, frozen=True, kw_only=True, tag="spike"):
    """A rate that rises to a peak at once, and falls back.

    Attributes:
        rate: The rate before and after the peak.
        peak_rate: The rate during the peak.
        seconds: How long the phase takes.
        peak_seconds: How long the peak takes, in the middle of the phase.
    """

    rate: Rate
    peak_rate: Rate
    seconds: Seconds
    peak_seconds: Seconds

    def __post_init__(self) -> None:
        if self.peak_seconds >= self.seconds:
            raise ValueError(
                f"expected peak_seconds below seconds ({self.seconds:g}), got {self.peak_seconds:g}"
            )


class Bisection(Phase, frozen=True, kw_only=True, tag="bisection"):
    """A search for the largest rate that is sustained.

    Attributes:
        lowest: The rate at which the search starts.
        highest: The largest rate that is tried.
        seconds: How long each rate is tried.
        precision: The search ends when the next failed rate is larger by at most this share.
    """

    lowest: Rate
    highest: Rate
    seconds: Seconds
    precision: Annotated[float, Meta(ge=0.001, le=1)] = 0.05

    def __post_init__(self) -> None:
        if self.highest <= self.lowest:
            raise ValueError(
                f"expected highest above lowest ({self.lowest:g}), got {self.highest:g}"
            )


class Goal(Values, frozen=True, kw_only=True):
    """What the tested system is, and the rate for which its size is recommended.

    Attributes:
        rate: The target rate: messages per second of a stream, rows per second of an endpoint.
        count: How many workers the tested stream has, or replicas the tested endpoint.
        vcpu: The vCPUs of each.
        memory_gb: The memory of each.
        usd_per_hour: The price of each, needed for the cost of replicas. Workers have the list
            prices of Dataflow by default.
        replica_rows: The rows per second that one replica of the endpoint behind a stream sustains,
            as a test of the endpoint has found.
    """

    rate: Rate
    count: Annotated[int, Meta(ge=1, le=10_000)] = 1
    vcpu: Annotated[int, Meta(ge=1, le=1_024)] = 4
    memory_gb: Annotated[float, Meta(gt=0, le=100_000)] = 15.0
    usd_per_hour: Annotated[float, Meta(gt=0, le=100_000)] | None = None
    replica_rows: Rate | None = None


PhaseKind = WarmUp | Constant | Soak | Ramp | Burst | Spike | Bisection


class Plan(Values, frozen=True, kw_only=True):
    """A scale test of a stream or an endpoint. `batch_plan.py` has that of a batch.

    Attributes:
        target: What is tested.
        send_to: The topic, or the URL or the full name of the endpoint.
        seed: What random arrivals and rows follow from.
        arrivals: `poisson` for independent senders, `constant` for equal gaps.
        objective: What a level must reach.
        sender: The sender processes and their limits.
        rows: The rows that are sent.
        result: Where results are read.
        goal: The target rate for which workers or replicas are recommended, or None.
        phases: The phases, in their order.
    """

    target: Target
    send_to: str = ""
    seed: Annotated[int, Meta(ge=0)] = 1
    arrivals: Literal["constant", "poisson"] = "poisson"
    objective: Objective
    sender: Sender = Sender()
    rows: Rows = Rows()
    result: Result
    goal: Goal | None = None
    phases: Annotated[tuple[PhaseKind, ...], Meta(min_length=1)]
