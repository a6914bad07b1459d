"""Several DoFns in one step."""

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import FixedWindows, GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from transforms.chain import Chain, Each


class Halve(beam.DoFn):
    """Yields half of an even number, keeps the last one until the end; odd ones are failures."""

    def start_bundle(self) -> None:
        self._last: int | None = None

    def process(self, number: int) -> Iterator[Any]:
        if number % 2:
            yield beam.pvalue.TaggedOutput("failures", number)
            return
        if self._last is not None:
            yield self._last
        self._last = number // 2

    def finish_bundle(self) -> Iterator[Any]:
        if self._last is not None:
            yield GlobalWindows.windowed_value(self._last, timestamp=7)
        odd = GlobalWindows.windowed_value(-1, timestamp=7)
        yield beam.pvalue.TaggedOutput("failures", odd)


class Time(beam.DoFn):
    """Adds the time of an element."""

    def process(self, element: Any, time: Any = beam.DoFn.TimestampParam) -> Any:
        yield element, int(time)


class Recorder(beam.DoFn):
    """Passes elements on, and records the calls of its methods."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self._name, self._calls = name, calls

    def setup(self) -> None:
        self._calls.append(f"setup {self._name}")

    def start_bundle(self) -> None:
        self._calls.append(f"start {self._name}")

    def process(self, element: Any) -> Any:
        self._calls.append(f"process {self._name}")
        return (element,)

    def finish_bundle(self) -> None:
        self._calls.append(f"finish {self._name}")

    def teardown(self) -> None:
        self._calls.append(f"teardown {self._name}")


def double(number: int) -> int:
    return number * 2


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_a_chain_yields_what_its_dofns_yield_one_after_the_other(length: int) -> None:
    dofns = [Halve(), Each(double), Halve(), Each(str)][:length]

    def outputs(numbers: beam.PCollection, dofns: list[beam.DoFn], label: str) -> Any:
        failures: list[beam.PCollection] = []
        for i, dofn in enumerate(dofns):
            split = numbers | f"{label}{i}" >> beam.ParDo(dofn).with_outputs(
                "failures", main="good"
            )
            numbers, failures = split.good, [*failures, split.failures]
        return (
            numbers | f"{label}Time" >> beam.ParDo(Time()),
            failures | f"{label}Failures" >> beam.Flatten() | f"{label}F" >> beam.ParDo(Time()),
        )

    with beam.Pipeline("FnApiRunner") as pipeline:
        numbers = pipeline | beam.Create([8, 3, 4, 5, 10, 12], reshuffle=False)
        alone = outputs(numbers, dofns, "Alone")
        chained = outputs(numbers, [Chain(*dofns)], "Chained")
        for i, (one, other) in enumerate(zip(alone, chained, strict=True)):
            both = (
                (one | f"One{i}" >> beam.Map(lambda x: (repr(x), 1))),
                (other | f"Other{i}" >> beam.Map(lambda x: (repr(x), -1))),
            ) | f"Both{i}" >> beam.Flatten()
            sums = both | f"Sum{i}" >> beam.CombinePerKey(sum) | f"Values{i}" >> beam.Values()
            assert_that(sums | f"Differ{i}" >> beam.Filter(bool), equal_to([]), label=f"Same{i}")
            count = one | f"Count{i}" >> beam.combiners.Count.Globally()
            assert_that(count, _positive, label=f"Some{i}")


def _positive(found: list[int]) -> None:
    assert found[0] > 0


def test_all_methods_of_all_dofns_are_called_the_last_dofn_starts_first() -> None:
    calls: list[str] = []
    chain = Chain(Recorder("a", calls), Recorder("b", calls))
    chain.setup()
    chain.start_bundle()
    assert list(chain.process(1)) == [1]
    assert list(chain.finish_bundle()) == []
    chain.teardown()
    assert calls == [
        *("setup a", "setup b", "start b", "start a", "process a", "process b"),
        *("finish a", "finish b", "teardown a", "teardown b"),
    ]


def test_a_function_sees_every_batch_of_dead_letters() -> None:
    seen: list[Any] = []
    chain = Chain(Halve(), Halve(), on_failures=seen.append)
    chain.start_bundle()
    outputs = [output for number in (3, 8, 10) for output in chain.process(number)]
    outputs += chain.finish_bundle()
    assert seen == [3, 5, -1, -1]
    assert sum(isinstance(output, beam.pvalue.TaggedOutput) for output in outputs) == len(seen)


def test_elements_at_the_end_of_a_bundle_keep_their_window_and_time() -> None:
    class Late(beam.DoFn):
        def process(self, element: int) -> None:
            pass

        def finish_bundle(self) -> Iterator[WindowedValue]:
            window = FixedWindows(10).assign(FixedWindows.AssignContext(15, 0))
            yield WindowedValue(4, 15, tuple(window))

    chain = Chain(Late(), Each(double))
    chain.start_bundle()
    (found,) = chain.finish_bundle()
    assert found.value == 8
    assert found.timestamp == 15
    assert [int(window.start) for window in found.windows] == [10]
