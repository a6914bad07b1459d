"""PullMessages: a subscription as the source of a stream, on every runner except Dataflow.

It is an unbounded splittable DoFn. A bundle is what an Intake has pulled ahead, and the messages of
a bundle are acknowledged when the runner has committed it (transforms/bundles.py). Pub/Sub delivers
messages that are not acknowledged again, so a run that crashes loses none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Duration, Timestamp

from transforms.bundles import Bundle, begin_bundle
from transforms.messages import intake
from transforms.messages.intake import Intake, PullOptions, intake_of

_READ, _END = True, False


class _Reading(RestrictionTracker):
    """A tracker of whether a reader may still read. It is never split into two readers."""

    def __init__(self, reads: bool) -> None:
        self._reads = reads

    def current_restriction(self) -> bool:
        """Return whether there is more to read."""
        return self._reads

    def current_progress(self) -> RestrictionProgress:
        """Return that nobody knows how much is left."""
        return RestrictionProgress(completed=0, remaining=1)

    def check_done(self) -> None:
        """Raise ValueError if the reader has neither ended nor passed on its work."""
        if self._reads:
            raise ValueError("a reader of messages has ended before its stream")

    def try_split(self, fraction_of_remainder: float) -> tuple[bool, bool] | None:
        """Pass on the work to the next bundle, if that is requested."""
        if fraction_of_remainder or not self._reads:
            return None
        self._reads = False
        return False, True

    def try_claim(self, position: bool) -> bool:
        """Claim the next messages (_READ) or the end (_END)."""
        if self._reads and position is _END:
            self._reads = False
            return True
        return self._reads

    def is_bounded(self) -> bool:
        """Return that a stream has no end."""
        return False


class _Endless(RestrictionProvider):
    """A provider of trackers for readers. If the pipeline is drained, a reader ends."""

    def initial_restriction(self, _: int) -> bool:
        return True

    def create_tracker(self, restriction: bool) -> _Reading:
        return _Reading(restriction)

    def restriction_size(self, _: int, restriction: bool) -> int:
        return int(restriction)

    def split(self, _: int, restriction: bool) -> Iterator[bool]:
        yield restriction

    def truncate(self, _: int, __: bool) -> None:
        return None


class _PullDoFn(beam.DoFn):
    """A DoFn that yields the serialized messages of a bundle, as one list.

    Its elements are the numbers of readers.
    """

    def __init__(self, options: PullOptions) -> None:
        self._options = options

    def setup(self) -> None:
        self._intake: Intake = intake_of(self._options)
        self._bundle = Bundle(self._intake)

    def start_bundle(self) -> None:
        self._bundle, self._registered = Bundle(self._intake), False
        begin_bundle(self._bundle)

    @beam.DoFn.unbounded_per_element()  # type: ignore[untyped-decorator]
    def process(
        self,
        reader: int,
        # These are the parameters of a DoFn as Beam requires them: the class, and this order.
        finalizer: Any = beam.DoFn.BundleFinalizerParam,
        tracker: Any = beam.DoFn.RestrictionParam(_Endless()),  # noqa: B008
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(  # noqa: B008
            ManualWatermarkEstimator.default_provider()  # noqa: B008
        ),
    ) -> Iterator[TimestampedValue]:
        # Prism finalizes every bundle of this step, and fails if there is no callback.
        if not self._registered:
            finalizer.register(self._bundle.finalize)
            self._registered = True
        if not tracker.try_claim(_READ):
            return
        self._intake.serve(reader)
        # Another reader may have filled this bundle already: then its messages must not wait.
        found = self._intake.take(0.0 if self._bundle.ids else intake.IDLE_SECONDS)
        if found is None:
            self._intake.drain()
            tracker.try_claim(_END)
            return
        # A watermark never goes back, but the clock of a machine may be set back.
        now = max(Timestamp.now(), watermark.current_watermark() or MIN_TIMESTAMP)
        if found:
            self._bundle.ids += [message_id for message_id, _ in found]
            yield TimestampedValue([raw for _, raw in found], now)
        watermark.set_watermark(now)
        tracker.defer_remainder(Duration.of(0))

    def teardown(self) -> None:
        # The bundle was neither committed nor is it running: it has failed.
        self._bundle.abandon()


@dataclass
class PullMessages(beam.PTransform):
    """A source of lists of serialized messages.

    All steps that follow must be in its stage: no shuffle, no state, no Flatten.

    Attributes:
        options: How the subscription is read.
        readers: How many requests for messages are sent at once.
    """

    options: PullOptions
    readers: int = 1

    def expand(self, pbegin: Any) -> beam.PCollection[list[bytes]]:
        """Create the readers, spread them over workers, and let them pull."""
        return (
            pbegin
            | "Readers" >> beam.Create(list(range(self.readers)), reshuffle=self.readers > 1)
            | "Pull" >> beam.ParDo(_PullDoFn(self.options)).with_output_types(list[bytes])
        )
