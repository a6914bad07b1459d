"""Estimates the cost of a million rows on Dataflow from measured CPU seconds and list prices.

python -m benchmarks.cost     # prints the tables of docs/explanation/cost.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloud.prices import BATCH, PRICES_AS_OF, READ_GB, STREAMING, Prices, Workers

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Measured:
    """The cost of a row: CPU microseconds from table to table, and bytes that BigQuery sends."""

    cpu_us: float
    bytes: float


@dataclass(frozen=True)
class Assumptions:
    """Values that cannot be measured here.

    Attributes:
        start_seconds: How long a worker is billed before its first row and after its last one. In
            this time the machine starts, pulls the image, loads the model and stops.
        slower: How many times longer a vCPU of n1 (half a core) takes than a core of the machine
            of the benchmarks.
        engine_bytes: How many bytes per message pass through Streaming Engine.
    """

    start_seconds: float = 180.0
    slower: float = 2.0
    engine_bytes: float = 1_000.0


def batch_dollars(
    rows: float,
    measured: Measured,
    prices: Prices = BATCH,
    workers: Workers | None = None,
    assumed: Assumptions | None = None,
) -> dict[str, float]:
    """Return the cost of a job in USD: `start`, `rows` and `read`.

    The workers share the work evenly. Only counts and names of files pass through Dataflow Shuffle,
    which is too little to matter.
    """
    workers, assumed = workers or Workers(), assumed or Assumptions()
    seconds = rows * measured.cpu_us * 1e-6 * assumed.slower / workers.vcpu / workers.count
    return {
        "start": workers.dollars(prices, assumed.start_seconds),
        "rows": workers.dollars(prices, seconds),
        "read": rows * measured.bytes / 2**30 * READ_GB,
    }


def stream_dollars(
    messages_per_second: float,
    workers: Workers | None = None,
    assumed: Assumptions | None = None,
) -> dict[str, float]:
    """Return USD per million messages at a steady rate: `workers` and `engine`."""
    workers, assumed = workers or Workers(), assumed or Assumptions()
    seconds = 1e6 / messages_per_second
    return {
        "workers": workers.dollars(STREAMING, seconds),
        "engine": 1e6 * assumed.engine_bytes / 2**30 * STREAMING.data,
    }


def read_measured() -> Measured:
    """Return the cost of a row from the results of the benchmarks, without start-up."""

    def read(name: str) -> Any:
        return json.loads((RESULTS / f"{name}.json").read_text())

    recording = read("bigquery_read")["recordings"]["arrow"]
    return Measured(
        cpu_us=read("bigquery_table")["runs"][0]["run_cpu_seconds_per_million_rows"],
        bytes=recording["bytes"] / recording["rows"],
    )


def batch_table(measured: Measured) -> list[str]:
    """Return the lines of the Markdown table for batch jobs."""
    lines = ["| rows of a job | start | rows | read | together | a million rows |"]
    lines.append("|--:|--:|--:|--:|--:|--:|")
    for rows in (1e5, 1e6, 1e7, 1e8, 1e9):
        parts = batch_dollars(rows, measured)
        total = sum(parts.values())
        lines.append(
            _line([f"{rows:,.0f}", *map(usd, parts.values()), usd(total), usd(total / rows * 1e6)])
        )
    return lines


def stream_table() -> list[str]:
    """Return the lines of the Markdown table for streams."""
    lines = ["| messages a second | workers | engine | a million messages |", "|--:|--:|--:|--:|"]
    for rate in (10, 100, 1_000, 5_000):
        parts = stream_dollars(rate)
        lines.append(_line([f"{rate:,}", *map(usd, parts.values()), usd(sum(parts.values()))]))
    return lines


def usd(amount: float) -> str:
    """Return an amount with two to six decimals, enough for two significant digits."""
    digits = 2
    while digits < 6 and amount < 10 ** (1 - digits):
        digits += 1
    return f"{amount:,.{digits}f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def tables() -> Mapping[str, str]:
    """Return the tables of docs/explanation/cost.md, by name."""
    return {
        "batch": "\n".join(batch_table(read_measured())),
        "stream": "\n".join(stream_table()),
    }


def main() -> None:
    """Print the tables."""
    for name, table in tables().items():
        print(f"{name}, USD, prices of us-central1 as of {PRICES_AS_OF}\n\n{table}\n")


if __name__ == "__main__":
    main()
