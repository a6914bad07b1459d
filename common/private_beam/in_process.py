"""Private names of Beam's runners that are needed for a run in this process.

Importing this module changes nothing. The code that starts a run in this process calls these
functions first. Runs elsewhere do not import the module.

tests/test_private_beam.py lists the names and fails if a release of Beam moves one of them.
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
    """Make FnApiRunner send the output of workers only when it is complete.

    With several workers, Beam also sends the output every second, from another thread, while
    elements are added. It loses the elements that are added meanwhile: hundreds of 200,000 with
    Beam 2.77 (TimeBasedBufferingClosableOutputStream in apache_beam/runners/worker/data_plane.py).
    """
    worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = 10**9


def add_polled_source(source: type[beam.PTransform], idle_seconds: float) -> None:
    """Make BundleBasedDirectRunner able to run a polled source, in all pipelines of this process.

    Args:
        source: The class of a root transform with a method `take(passed)`. The runner calls it
            when no step has work, with the lowest output watermark of all steps. It returns the
            current time and the elements of the next bundle, or None instead of the elements at
            the end.
        idle_seconds: How long the runner's thread sleeps before it notices that a pipeline has
            ended.
    """
    TransformEvaluatorRegistry._test_evaluators_overrides |= {
        source: _PollEvaluator,
        beam.ParDo: _StepEvaluator,
    }
    _ExecutorService._ExecutorServiceWorker.TIMEOUT = idle_seconds


class _PollEvaluator(_TransformEvaluator):
    """An evaluator that requests elements from a polled source when no step has work."""

    def process_element(self, element: Any) -> None:
        """Ignore the element, which only keeps the source alive."""

    def finish_bundle(self) -> TransformResult:
        context, source = self._evaluation_context, self._applied_ptransform.transform
        steps = context._watermark_manager._transform_to_watermarks.values()
        now, elements = source.take(min(watermarks.output_watermark for watermarks in steps))
        if elements is None:
            return TransformResult(self, [], [], None, None)
        bundle = context.create_bundle(next(iter(self._outputs)))
        for element in elements:
            bundle.output(GlobalWindows.windowed_value(element, timestamp=now))
        # A pending bundle holds the watermark just before the time of its element.
        again = context.create_bundle(PBegin(source.pipeline))
        again.output(GlobalWindows.windowed_value(None, timestamp=now + TIME_GRANULARITY))
        return TransformResult(self, [bundle] if elements else [], [again], None, None)


class _StepEvaluator(_ParDoEvaluator):
    """An evaluator of a ParDo that does not pickle the DoFn for each bundle.

    Pickling takes half of the time of a bundle of one message. The DoFn is still set up and torn
    down for each bundle.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, perform_dofn_pickle_test=False)
