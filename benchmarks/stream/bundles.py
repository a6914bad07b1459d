"""Compares the cost of a bundle, from the bytes of messages to their scores, with stock Beam.

python -m benchmarks.stream.bundles --output benchmarks/results

benchmarks.stream.core sends all messages in one bundle, and so pays for the start and the end of a
bundle once. Here each bundle has 1, 10, 100 or 1,000 messages: one request of the runner for each,
as on Dataflow with its own source. The pipelines are those of benchmarks.stream.core. The cost of
a pipeline that only passes messages on is part of each figure, and stands beside them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import torch
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.core import RestrictionProvider

from benchmarks.cpu_clock import CPU_SECONDS, CpuClock
from benchmarks.machine import describe_machine, versions
from benchmarks.stream.core import OPTIONS, SIZES, Step, contestants, gate, passed_on, prepare
from benchmarks.summary import spread

# The first bundles load the model and fill caches.
WARM_UP = 20
# Millrace takes as many messages of a bundle as there are.
_BATCH_ROWS = 4_096


class _Ranges(RestrictionProvider):
    """A provider of ranges of the list of messages. The runner never splits one by itself."""

    def initial_restriction(self, count: int) -> OffsetRange:
        return OffsetRange(0, count)

    def create_tracker(self, restriction: OffsetRange) -> OffsetRestrictionTracker:
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, _: int, restriction: OffsetRange) -> int:
        return restriction.size()


class InBundles(beam.DoFn):
    """A DoFn that yields messages, `size` in each bundle. Its element is their number."""

    def __init__(self, messages: Sequence[bytes], size: int) -> None:
        self._messages, self._size = messages, size

    def process(
        self,
        _: int,
        tracker: Any = beam.DoFn.RestrictionParam(_Ranges()),  # noqa: B008
    ) -> Iterator[bytes]:
        """Yield the messages of one bundle."""
        start = tracker.current_restriction().start
        for position in range(start, start + self._size):
            if not tracker.try_claim(position):
                return
            yield self._messages[position]
        tracker.defer_remainder()


def run(messages: Sequence[bytes], step: Step, size: int) -> list[float]:
    """Run a step on the messages, and return the CPU seconds of each bundle after the first."""
    CPU_SECONDS.clear()
    with beam.Pipeline("FnApiRunner", PipelineOptions(OPTIONS)) as pipeline:
        source = pipeline | beam.Create([len(messages)], reshuffle=False)
        read = source | "Read" >> beam.ParDo(InBundles(list(messages), size))
        started = read | "Begin" >> beam.ParDo(CpuClock(at_end=False))
        step(started)
    starts = CPU_SECONDS[WARM_UP:]
    return [end - start for start, end in itertools.pairwise(starts)]


def compare(folder: Path, everything: Sequence[bytes], size: int, rounds: int) -> dict[str, Any]:
    """Compare the contestants at one number of messages per bundle."""
    bundles = 400 if size < 1_000 else 60
    messages = [everything[i % len(everything)] for i in range((bundles + WARM_UP) * size)]
    steps = {**contestants(folder, _BATCH_ROWS, size), "passed_on": passed_on}
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            found[name].append(statistics.mean(run(messages, step, size)) * 1e6)
    costs = {name: spread(values) for name, values in found.items()}
    own = costs["millrace"]["median"]
    ratios = {name: round(costs[name]["median"] / own, 2) for name in steps if name != "millrace"}
    text = "; ".join(f"{name} {costs[name]['median']:,.0f}" for name in ratios)
    print(f"{size:>5} per bundle: {own:8,.0f} us per bundle; {text}", flush=True)
    return {"messages_a_bundle": size, **costs, "ratios": ratios}


def main(argv: Sequence[str] | None = None) -> None:
    """Write stream_bundles.json, again after each size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.ERROR)
    results: dict[str, Any] = {
        "unit": "microseconds of CPU a bundle",
        "rounds": args.rounds,
        "versions": versions(),
        "machine": describe_machine(),
        "sizes": [],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        everything = prepare(folder, 20_000)
        gate(everything[:2_000], contestants(folder, _BATCH_ROWS, 100), folder)
        for size in args.sizes:
            results["sizes"].append(compare(folder, everything, size, args.rounds))
            text = json.dumps(results, indent=1)
            args.output.mkdir(parents=True, exist_ok=True)
            (args.output / "stream_bundles.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
