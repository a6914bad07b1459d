"""Several DoFns in one step of a graph.

A step costs some 60 microseconds a bundle, however little it does: the runner starts it, ends it,
and collects its counters. That is as much as decoding a message takes, and a bundle of a stream may
have one message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.utils.windowed_value import WindowedValue


class Each(beam.DoFn):
    """A DoFn that yields what a function makes of each element."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def process(self, element: Any) -> Iterable[Any]:
        """Return one element."""
        return (self._function(element),)


class Chain(beam.DoFn):
    """A DoFn that passes what each of several DoFns yields to the next one.

    The tagged outputs of all of them are outputs of the step, so their dead letters are one output.

    Args:
        dofns: The DoFns, in order. Their `process` takes an element and no parameters of Beam.
        on_failures: A function to call with each batch of dead letters, or None.
    """

    def __init__(
        self, *dofns: beam.DoFn, on_failures: Callable[[pa.RecordBatch], None] | None = None
    ) -> None:
        self._dofns, self._on_failures = dofns, on_failures

    def setup(self) -> None:
        """Set up all DoFns."""
        for dofn in self._dofns:
            dofn.setup()

    def start_bundle(self) -> None:
        """Start the bundle of all DoFns, the last one first, as a runner does."""
        for dofn in reversed(self._dofns):
            dofn.start_bundle()

    def process(self, element: Any) -> Iterator[Any]:
        """Yield what becomes of an element."""
        return self._pass((element,), 0)

    def _pass(self, elements: Iterable[Any], start: int) -> Iterator[Any]:
        """Yield what the DoFns from a position on make of elements."""
        if start == len(self._dofns):
            yield from elements
            return
        for element in elements:
            for output in self._dofns[start].process(element) or ():
                if isinstance(output, beam.pvalue.TaggedOutput):
                    yield self._seen(output, output.value)
                else:
                    yield from self._pass((output,), start + 1)

    def _seen(self, output: beam.pvalue.TaggedOutput, value: Any) -> beam.pvalue.TaggedOutput:
        if self._on_failures is not None and output.tag == "failures":
            self._on_failures(value)
        return output

    def finish_bundle(self) -> Iterator[Any]:
        """Finish the bundle of all DoFns, and yield what becomes of the last elements."""
        for i, dofn in enumerate(self._dofns):
            for output in dofn.finish_bundle() or ():
                if isinstance(output, beam.pvalue.TaggedOutput):
                    yield self._seen(output, output.value.value)
                else:
                    for made in self._pass((output.value,), i + 1):
                        yield _windowed_as(output, made)

    def teardown(self) -> None:
        """Tear down all DoFns."""
        for dofn in self._dofns:
            dofn.teardown()


def _windowed_as(element: WindowedValue, output: Any) -> Any:
    """Return an output with the window and the time of an element."""
    if isinstance(output, beam.pvalue.TaggedOutput):
        return beam.pvalue.TaggedOutput(output.tag, element.with_value(output.value))
    return element.with_value(output)
