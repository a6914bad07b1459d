"""A stream that runs in this process: until Ctrl-C, or until no message came for long enough."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from cloud.clients import Cloud
from model_handlers.batch_handler import BatchHandler
from pipelines.command import say
from pipelines.options import StreamRunOptions
from pipelines.stream.progress import Tally, check_balance, report_line, start_tally, summary
from pipelines.stream.subscription import HELD, LEASE_SECONDS, renew
from transforms.files.unfinished import remove_begun
from transforms.messages.in_process_source import Intake

_POLL_SECONDS = 0.1
STOPPING = "stopping: what was taken is scored and written first (Ctrl-C again: at once)"


# Models of this process. Beam keeps the last object alive that it shares, and with each bundle
# shares two: without another reference it would load the model anew for every bundle.
_loaded: list[Any] = []


class KeptModelHandler(BatchHandler[Any]):
    """Another handler, whose model stays loaded for the life of the process."""

    def __init__(self, handler: BatchHandler[Any]) -> None:
        super().__init__(handler.manifest, handler.outputs, handler.batch_rows)
        self._handler = handler

    def load_model(self) -> Any:
        """The model, which Beam finds again."""
        model = self._handler.load_model()
        _loaded.append(model)
        return model

    def predict(
        self, model: Any, arrays: Sequence[np.ndarray], rows: int
    ) -> tuple[pa.StructArray, pa.StructArray]:
        """As the other handler."""
        return self._handler.predict(model, arrays, rows)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A subscription and who reads it. made: it was made for this run, and goes with it.

    hidden_seconds: how long a reader that is gone may keep messages from this one.
    """

    subscription: str
    reader: str
    made: bool
    cloud: Cloud
    hidden_seconds: float = 0.0

    def left(self, count: int) -> str:
        """How many messages are not acknowledged -> what becomes of them."""
        fate = "they are gone with the run's own subscription" if self.made else "they come again"
        return f"{count:,} messages are not acknowledged: {fate}"


def watch(
    pipeline: beam.Pipeline, intake: Intake, reading: Reading, options: StreamRunOptions
) -> None:
    """A pipeline that reads an Intake -> run; its rates and its balance on standard error.

    Raises what the pipeline raised, KeyboardInterrupt where it was not let end.
    """
    tally, begin = start_tally(), time.monotonic()
    with _terminated_as_interrupted():
        # wait_until_finish alone tells that a step failed for good.
        ended = ThreadPoolExecutor(1).submit(pipeline.run().wait_until_finish)
        try:
            try:
                ending = _Ending(options.stop_after_seconds, reading.hidden_seconds)
                steps = _reported(ended, intake, tally, options.report_seconds, ending)
                for _ in _every(LEASE_SECONDS / 4, steps):
                    renew(reading.subscription, reading.reader, reading.cloud)
            except KeyboardInterrupt:
                say(f"\n{STOPPING}")
            intake.end()
            _wait(ended)
            tally.pulled = intake.given
            seconds = time.monotonic() - begin
            say(summary(tally, seconds))
            if not intake.given:
                say(f"no message came within {seconds:,.0f} s")
            # Before the rest is acknowledged: what got lost may still come again.
            check_balance(tally, intake.again)
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
    """When a run ends by itself: when no message came for `patience` seconds, None for never.

    Where none came at all, messages may be there that a reader which is gone still holds: the
    run goes on until they come, `hidden` seconds at most.
    """

    patience: int | None
    hidden: float
    told: bool = False

    def is_now(self, intake: Intake) -> bool:
        """Whether the run is to end; tells once why it does not yet."""
        quiet = intake.quiet_seconds
        if self.patience is None or quiet <= self.patience:
            return False
        if intake.given or quiet > self.hidden:
            return True
        if not self.told:
            self.told = True
            left = self.hidden - quiet
            say(f"no message came within {quiet:,.0f} s: waiting {left:,.0f} s more, {HELD}")
        return False


def _reported(
    ended: Future[Any], intake: Intake, tally: Tally, report_seconds: int, ending: _Ending
) -> Iterator[None]:
    """A run -> nothing, again and again until it has ended or is to end; tells its rates."""
    told, rows = time.monotonic(), 0
    while not wait([ended], _POLL_SECONDS).done:
        now = time.monotonic()
        if now - told >= report_seconds:
            say(report_line(tally, tally.received - rows, now - told))
            rows, told = tally.received, now
        if ending.is_now(intake):
            return
        yield


def _every(seconds: float, steps: Iterator[None]) -> Iterator[None]:
    """Steps -> those of them that are so far apart."""
    last = time.monotonic()
    for _ in steps:
        if time.monotonic() - last > seconds:
            last = time.monotonic()
            yield


def _wait(ended: Future[Any]) -> None:
    """Waits as Ctrl-C may interrupt it. Raises what the pipeline raised."""
    while not wait([ended], _POLL_SECONDS).done:
        pass
    ended.result()


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Containers and service managers end a process by SIGTERM: as Ctrl-C, a second time too."""
    before = signal.getsignal(signal.SIGTERM)

    def interrupt(number: int, frame: Any) -> None:
        # The command's own handler interrupts once, and keeps which signal it was.
        if callable(before):
            before(number, frame)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
