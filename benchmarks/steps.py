"""Measures the cost of steps, in microseconds per row of one column, in one thread.

python -m benchmarks.steps --output benchmarks/results

Each step runs on columns of 32,768 rows, as in a batch. The rounds of all steps are interleaved.
Before it is measured, each result is compared with that of a plain loop for a few rows.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa

from benchmarks.machine import describe_machine, versions
from benchmarks.summary import spread
from model_handlers.steps.categories import Vocabulary
from model_handlers.steps.chain import BoundChain, Chain
from model_handlers.steps.lists import Pad
from model_handlers.steps.numeric import Log1p, Scale
from model_handlers.steps.raw import become
from model_handlers.steps.step import Cells, Context, Step
from model_handlers.steps.times import TimePart

ROWS, ITEMS, CATEGORIES = 32_768, 50, 20_000


@dataclass(frozen=True)
class Measured:
    """A chain on a column.

    Attributes:
        values: The column, as a source has it.
        raw: The raw type that a manifest declares; None for a dictionary, which stays one.
        chain: The chain.
        expected: What the chain makes of one value.
        limit: The most microseconds per row that it may take, or None.
    """

    values: pa.Array
    raw: str | None
    chain: BoundChain
    expected: Callable[[Any], Any]
    limit: float | None = None

    def run(self) -> pa.Array:
        """Return the result for the whole column."""
        cells = Cells(self.values) if self.raw is None else become(self.values, self.raw)
        return self.chain.run({"x": cells}).values


def bound(*steps: Step) -> BoundChain:
    """Return steps on the column `x`, whose vocabulary has CATEGORIES values."""
    text = "".join(f"category {number}\n" for number in range(CATEGORIES))
    return Chain("x", steps).bind(Context({"categories.txt": text.encode()}))


def cases() -> dict[str, Measured]:
    """Return what is measured, by name."""
    chosen = np.random.default_rng(0)
    return {**_of_categories(chosen), **_of_times(chosen), **_of_numbers(chosen)}


def _of_categories(chosen: np.random.Generator) -> dict[str, Measured]:
    texts = pa.array([f"category {n}" for n in chosen.integers(0, CATEGORIES, ROWS)])
    few = pa.array([f"category {n}" for n in chosen.integers(0, 1000, ROWS)]).dictionary_encode()
    look_up = bound(Vocabulary("categories.txt"))
    return {
        "vocabulary": Measured(texts, "string", look_up, _number_of, 0.03),
        "vocabulary_of_dictionary": Measured(few, None, look_up, _number_of, 0.03),
    }


def _of_times(chosen: np.random.Generator) -> dict[str, Measured]:
    seconds = chosen.integers(1_600_000_000, 1_800_000_000, ROWS)
    times = pa.array(seconds * 10**6).cast(pa.timestamp("us", "UTC"))
    iso = pa.array([f"{t:%Y-%m-%dT%H:%M:%SZ}" for t in times.to_pylist()])
    berlin = "Europe/Berlin"

    def local(time: dt.datetime) -> dt.datetime:
        return time.astimezone(ZoneInfo(berlin))

    measured = {
        "hour_utc": (times, TimePart("hour", "UTC"), lambda time: time.hour),
        "hour_zone": (times, TimePart("hour", berlin), lambda time: local(time).hour),
        "weekday_zone_cyclic": (
            times,
            TimePart("weekday", berlin, cyclic=True),
            lambda time: _on_circle(local(time).weekday(), 7),
        ),
        "hour_utc_of_text": (
            iso,
            TimePart("hour", "UTC"),
            lambda text: dt.datetime.fromisoformat(text).hour,
        ),
    }
    return {
        name: Measured(values, "timestamp", bound(step), expected, 0.1)
        for name, (values, step, expected) in measured.items()
    }


def _of_numbers(chosen: np.random.Generator) -> dict[str, Measured]:
    ends = np.concatenate([[0], np.cumsum(chosen.integers(0, 2 * ITEMS, ROWS))]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(ends), pa.array(chosen.integers(1, 99, ends[-1])))
    amounts = pa.array(chosen.lognormal(3.0, 1.0, ROWS))
    return {
        "pad": Measured(
            lists,
            "list<int64>",
            bound(Pad(ITEMS, keep="last")),
            lambda items: (items[-ITEMS:] + [0] * ITEMS)[:ITEMS],
            0.5,
        ),
        "log1p_scale": Measured(
            amounts,
            "float64",
            bound(Log1p(), Scale(3.0, 1.5)),
            lambda amount: (math.log1p(amount) - 3.0) / 1.5,
            0.03,
        ),
    }


def _number_of(text: str) -> int:
    return int(text.split()[1])


def _on_circle(place: int, cycle: int) -> list[float]:
    angle = 2 * math.pi * place / cycle
    return [math.sin(angle), math.cos(angle)]


def check(case: Measured, rows: int = 500) -> None:
    """Raise AssertionError unless the first rows are what a plain loop computes."""
    found = case.run().slice(0, rows).to_pylist()
    wanted = [case.expected(value) for value in case.values.slice(0, rows).to_pylist()]
    np.testing.assert_allclose(np.array(found), np.array(wanted), rtol=1e-9, atol=1e-12)


def measure(measured: dict[str, Measured], rounds: int) -> dict[str, list[float]]:
    """Return the microseconds per row of each round, by name.

    The time is that of this thread, so other work on the machine counts less.
    """
    found: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(rounds):
        for name, case in measured.items():
            start = time.thread_time()
            case.run()
            found[name].append((time.thread_time() - start) / ROWS * 1e6)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write steps.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--rounds", type=int, default=101)
    args = parser.parse_args(argv)
    pa.set_cpu_count(1)
    measured = cases()
    for case in measured.values():
        check(case)
    figures = {name: spread(times) for name, times in measure(measured, args.rounds).items()}
    result = {
        "microseconds_per_row": figures,
        "rows": ROWS,
        "rounds": args.rounds,
        "versions": versions(),
        "machine": describe_machine(),
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "steps.json").write_text(json.dumps(result, indent=1) + "\n")
    for name, case in measured.items():
        print(f"{name}: {figures[name]['median']} us per row (limit {case.limit})")


if __name__ == "__main__":
    main()
