"""A stream that runs in this process, until Ctrl-C or until no message arrives for some time."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from cloud.clients import Cloud
from common.interrupts import Background
from common.measures import MESSAGES, seen
from pipelines.command import say
from pipelines.options import StreamRunOptions
from pipelines.stream.progress import (
    Tally,
    check_balance,
    fate_of_messages,
    report_line,
    start_tally,
    summary,
    unseen_names,
)
from pipelines.stream.subscription import HELD, LEASE_SECONDS, renew
from transforms.files.sink.unfinished import remove_begun
from transforms.messages.intake import Intake

_POLL_SECONDS = 0.1
STOPPING = (
    "stopping after the received messages are scored and written (Ctrl-C again stops at once)"
)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A subscription that a run in this process reads.

    Attributes:
        subscription: The full name of the subscription.
        reader: The name of the run in the subscription's label.
        made: Whether the subscription was created for this run, and is deleted with it.
        hidden_seconds: For how long messages may still be leased to a reader that was killed.
    """

    subscription: str
    reader: str
    made: bool
    cloud: Cloud
    hidden_seconds: float = 0.0

    def left(self, count: int) -> str:
        """Return a line that says what happens to the messages that are not acknowledged."""
        if not count:
            return "all received messages are acknowledged"
        return f"{count:,} messages are not acknowledged: they {fate_of_messages(self.made)}"


def watch(
    run: Callable[[], object],
    intake: Intake,
    reading: Reading,
    options: StreamRunOptions,
    names: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Run a stream in this process, and report its rates and its balance on standard error.

    Args:
        run: Runs the pipeline, which reads the intake, to its end.
        intake: The messages of the subscription.
        reading: The subscription, and the run as its reader.
        options: When to report.
        names: The names that rows are expected to have, and the flag that names each.

    Raises:
        BalanceError: Messages or rows are missing, or there are too many.
        KeyboardInterrupt: A second Ctrl-C stopped the run at once; the message says how many
            messages are not acknowledged.
        Exception: Whatever the pipeline raised.
    """
    tally, started = start_tally(names), time.monotonic()
    with _terminated_as_interrupted():
        ended = Background(run)
        try:
            try:
                steps = _reported(ended, intake, tally, options.report_seconds)
                for _ in _every(LEASE_SECONDS / 4, steps):
                    renew(reading.subscription, reading.reader, reading.cloud)
            except KeyboardInterrupt:
                say(f"\n{STOPPING}")
            intake.end()
            ended.result()
            tally.pulled, tally.dropped = intake.given, intake.dropped
            tally.decoded = seen(MESSAGES).total
            seconds = time.monotonic() - started
            say(summary(tally, seconds))
            if not intake.given:
                say(f"no message arrived within {seconds:,.0f} s")
            check_balance(tally, made=reading.made)
            intake.finish()
        except KeyboardInterrupt as interrupt:
            remove_begun()
            raise KeyboardInterrupt(reading.left(intake.unfinished)) from interrupt
        except Exception:
            if intake.unfinished:
                say(reading.left(intake.unfinished))
            raise


def follow(run: Callable[[], object], reading: Reading) -> None:
    """Wait for a stream whose workers are other processes, and keep the label of its reader.

    Args:
        run: Waits for the end of the job.
        reading: The subscription, and the run as its reader.

    Raises:
        KeyboardInterrupt: Ctrl-C: the job must be cancelled. The message says what becomes of its
            messages.
        Exception: Whatever the wait raised.
    """
    with _terminated_as_interrupted():
        ended = Background(run)
        try:
            for _ in _every(LEASE_SECONDS / 4, _until(ended)):
                renew(reading.subscription, reading.reader, reading.cloud)
            ended.result()
        except KeyboardInterrupt as interrupt:
            fate = fate_of_messages(reading.made)
            raise KeyboardInterrupt(
                f"the job is cancelled; messages whose rows are not written {fate}"
            ) from interrupt


def _until(ended: Background[Any]) -> Iterator[None]:
    """Yield at intervals until a run has ended."""
    while not ended.wait(_POLL_SECONDS):
        yield


def _reported(
    ended: Background[Any], intake: Intake, tally: Tally, report_seconds: int
) -> Iterator[None]:
    """Yield at intervals until a run has ended, and report its rates."""
    reported, rows, warned, waits = time.monotonic(), 0, False, False
    for _ in _until(ended):
        now = time.monotonic()
        if now - reported >= report_seconds:
            say(report_line(tally, tally.received - rows, now - reported))
            rows, reported = tally.received, now
            for text in () if warned else unseen_names(tally):
                say(f"warning: {text}")
            warned = warned or tally.scored > 0
        if not waits and (until := intake.waits_until) is not None:
            waits = True
            quiet, left = intake.quiet_seconds, until - now
            say(f"no message arrived within {quiet:,.0f} s: waiting {left:,.0f} s more, {HELD}")
        yield


def _every(seconds: float, steps: Iterator[None]) -> Iterator[None]:
    """Yield for steps that are at least `seconds` seconds apart."""
    last = time.monotonic()
    for _ in steps:
        if time.monotonic() - last > seconds:
            last = time.monotonic()
            yield


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Treat each SIGTERM as Ctrl-C: containers and service managers stop a process with it.

    Every Ctrl-C interrupts, whatever Beam does at Ctrl-C.
    """
    before, of_beam = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: Any) -> None:
        # The command's own handler raises only once, and records which signal arrived.
        if callable(before):
            before(number, frame)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    if callable(of_beam):
        # Beam would stop its job server at once, and the run could not end its work.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, of_beam)
