"""What a run in this process needs of Beam's runners, and Beam does not promise.

Nothing changes when this module is imported: whoever starts a run in this process calls the
functions first. A run elsewhere imports nothing of it.

tests/test_private_beam.py lists the names, and fails for each that a release of Beam moves.
"""

from __future__ import annotations

from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PBegin
from apache_beam.runners.direct.executor import _ExecutorService
from apache_beam.runners.direct.transform_evaluator import (
    TransformEvaluatorRegistry,
    _ParDoEvaluator,
    _TransformEvaluator,
)
from apache_beam.runners.direct.util import TransformResult
from apache_beam.runners.portability.fn_api_runner import worker_handlers
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.timestamp import TIME_GRANULARITY


def keep_buffers_whole() -> None:
    """Nothing -> FnApiRunner sends what workers put out when it is complete.

    With several workers a clock sends it every second as well, from another thread, while
    elements are added: those added meanwhile are lost (apache_beam/runners/worker/data_plane.py,
    TimeBasedBufferingClosableOutputStream; seen with Beam 2.77, hundreds of 200,000 elements).
    """
    worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = 10**9


def add_polled_source(source: type[beam.PTransform], idle_seconds: float) -> None:
    """A kind of source -> BundleBasedDirectRunner can run it, all pipelines of this process.

    source: a root transform with `take(passed)`: the time up to which every step has come -> the
    time now, and the elements of the next bundle, None at the end. It is called when no step has
    work. idle_seconds: how long the runner's thread sleeps before it sees that a pipeline ended.
    """
    TransformEvaluatorRegistry._test_evaluators_overrides |= {
        source: _PollEvaluator,
        beam.ParDo: _StepEvaluator,
    }
    _ExecutorService._ExecutorServiceWorker.TIMEOUT = idle_seconds


class _PollEvaluator(_TransformEvaluator):
    """What the runner does for such a source: asks it for elements when no step has work."""

    def process_element(self, element: Any) -> None:
        """What keeps the source alive is no element."""

    def finish_bundle(self) -> TransformResult:
        context, source = self._evaluation_context, self._applied_ptransform.transform
        steps = context._watermark_manager._transform_to_watermarks.values()
        now, elements = source.take(min(watermarks.output_watermark for watermarks in steps))
        if elements is None:
            return TransformResult(self, [], [], None, None)
        bundle = context.create_bundle(next(iter(self._outputs)))
        for element in elements:
            bundle.output(GlobalWindows.windowed_value(element, timestamp=now))
        # A bundle that waits holds the watermark just before the time of what is in it.
        again = context.create_bundle(PBegin(source.pipeline))
        again.output(GlobalWindows.windowed_value(None, timestamp=now + TIME_GRANULARITY))
        return TransformResult(self, [bundle] if elements else [], [again], None, None)


class _StepEvaluator(_ParDoEvaluator):
    """What the runner does for a ParDo, without pickling it for each bundle: half of the time
    that a bundle of one message takes. It is set up and torn down with each as before.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, perform_dofn_pickle_test=False)
