"""A stream that runs in this process, until Ctrl-C or until no message arrives for some time."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from cloud.clients import Cloud
from common.interrupts import Background
from model_handlers.batch_handler import BatchHandler
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
from transforms.files.unfinished import remove_begun
from transforms.messages.in_process_source import Intake

_POLL_SECONDS = 0.1
STOPPING = (
    "stopping after the received messages are scored and written (Ctrl-C again stops at once)"
)


# The models of this process. Beam keeps only the last shared object alive, and shares two for each
# bundle. Without another reference it would load the model again for every bundle.
_loaded: list[Any] = []


class KeptModelHandler(BatchHandler[Any]):
    """A handler that keeps the model of another handler loaded as long as the process lives."""

    def __init__(self, handler: BatchHandler[Any]) -> None:
        super().__init__(handler.manifest, handler.outputs, handler.batch_rows, handler.batch_bytes)
        self.package, self.code = handler.package, handler.code
        self._handler = handler
        self.package, self.code = handler.package, handler.code

    def load_model(self) -> Any:
        """Load the model, and keep a reference to it."""
        model = self._handler.load_model()
        _loaded.append(model)
        return model

    def predict(
        self, model: Any, arrays: Sequence[np.ndarray], rows: int
    ) -> tuple[pa.StructArray, pa.StructArray]:
        """Predict with the other handler."""
        return self._handler.predict(model, arrays, rows)

    def answer(
        self, model: Any, batches: Sequence[pa.RecordBatch], arrays: Sequence[np.ndarray]
    ) -> tuple[pa.StructArray, pa.StructArray]:
        """Answer batches with the other handler."""
        return self._handler.answer(model, batches, arrays)


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
        return f"{count:,} messages are not acknowledged: they {fate_of_messages(self.made)}"


def watch(
    pipeline: beam.Pipeline,
    intake: Intake,
    reading: Reading,
    options: StreamRunOptions,
    names: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Run a stream in this process, and report its rates and its balance on standard error.

    Args:
        pipeline: The pipeline, which reads the intake.
        intake: The messages of the subscription.
        reading: The subscription, and the run as its reader.
        options: When to report and when to stop.
        names: The names that rows are expected to have, and the flag that names each.

    Raises:
        BalanceError: Messages or rows are missing, or there are too many.
        KeyboardInterrupt: A second Ctrl-C stopped the run at once; the message says how many
            messages are not acknowledged.
        Exception: Whatever the pipeline raised.
    """
    tally, started = start_tally(names), time.monotonic()
    with _terminated_as_interrupted():
        # Only wait_until_finish reports that a step has failed for good.
        ended = Background(pipeline.run().wait_until_finish)
        try:
            try:
                ending = _Ending(options.stop_after_seconds, reading.hidden_seconds)
                steps = _reported(ended, intake, tally, options.report_seconds, ending)
                for _ in _every(LEASE_SECONDS / 4, steps):
                    renew(reading.subscription, reading.reader, reading.cloud)
            except KeyboardInterrupt:
                say(f"\n{STOPPING}")
            intake.end()
            ended.result()
            tally.pulled = intake.given
            seconds = time.monotonic() - started
            say(summary(tally, seconds))
            if not intake.given:
                say(f"no message arrived within {seconds:,.0f} s")
            # Check before the last messages are acknowledged: lost ones can be delivered again.
            check_balance(tally, intake.again, made=reading.made)
            intake.finish()
        except KeyboardInterrupt as interrupt:
            remove_begun()
            raise KeyboardInterrupt(reading.left(intake.unfinished)) from interrupt
        except Exception:
            if intake.unfinished:
                say(reading.left(intake.unfinished))
            raise


@dataclass
class _Ending:
    """When a run ends by itself: after `patience` seconds without a message; None for never.

    If no message has arrived at all, a reader that was killed may still hold messages. The run
    then waits for them, at most `hidden` seconds.
    """

    patience: int | None
    hidden: float
    announced: bool = False

    def is_now(self, intake: Intake) -> bool:
        """Return whether the run should end now; print once why it waits longer."""
        quiet = intake.quiet_seconds
        if self.patience is None or quiet <= self.patience:
            return False
        if intake.given or quiet > self.hidden:
            return True
        if not self.announced:
            self.announced = True
            left = self.hidden - quiet
            say(f"no message arrived within {quiet:,.0f} s: waiting {left:,.0f} s more, {HELD}")
        return False


def _reported(
    ended: Background[Any], intake: Intake, tally: Tally, report_seconds: int, ending: _Ending
) -> Iterator[None]:
    """Yield at intervals until a run has ended or should end, and report its rates."""
    reported, rows, warned = time.monotonic(), 0, False
    while not ended.wait(_POLL_SECONDS):
        now = time.monotonic()
        if now - reported >= report_seconds:
            say(report_line(tally, tally.received - rows, now - reported))
            rows, reported = tally.received, now
            for text in () if warned else unseen_names(tally):
                say(f"warning: {text}")
            warned = warned or tally.scored > 0
        if ending.is_now(intake):
            return
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
    """Treat each SIGTERM as Ctrl-C: containers and service managers stop a process with it."""
    before = signal.getsignal(signal.SIGTERM)

    def interrupt(number: int, frame: Any) -> None:
        # The command's own handler raises only once, and records which signal arrived.
        if callable(before):
            before(number, frame)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
