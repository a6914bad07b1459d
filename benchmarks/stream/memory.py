"""Measures the memory of `pipelines.stream_local` over a long run. It must not grow.

python -m benchmarks.stream.memory

Messages are published as fast as their results arrive, with a few thousand in flight.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.bench import Bench
from benchmarks.row_costs import write_results
from benchmarks.stream.run import (
    LIMITS,
    PATIENCE_SECONDS,
    WARM_UP,
    Running,
    local_servers,
    make_bodies,
    numbered,
    streaming,
)
from benchmarks.summary import Record

BODIES = 2_000
# The most messages in flight: published, with a result that has not been received yet.
AHEAD = 5_000
REQUEST_MESSAGES = 500
SAMPLE_SECONDS = 0.25
# Caches and pools fill during the first messages.
SETTLING = 20_000
MB_PER_100_000 = 5.0
METHOD = {
    "growth_mb_per_100_000": "slope of a line through the resident memory of the pipeline's "
    f"process over the results received, after the first {SETTLING:,}",
    "peak_mb": f"largest sample, one every {SAMPLE_SECONDS} s, 10^6 bytes",
    "local_runner": LIMITS,
}


def feed(running: Running, bodies: Sequence[bytes], count: int) -> list[tuple[int, float]]:
    """Publish messages until all results have arrived, and return samples (results, MB)."""
    samples: list[tuple[int, float]] = []
    published, arrived, sampled = 0, time.monotonic(), 0.0
    while (received := running.subscriber.count - WARM_UP) < count:
        now = time.monotonic()
        if samples and received > samples[-1][0]:
            arrived = now
        if now - arrived > PATIENCE_SECONDS:
            break
        if now - sampled > SAMPLE_SECONDS:
            samples.append((received, running.process.memory_info().rss / 1e6))
            sampled = now
        stop = min(count, received + AHEAD, published + REQUEST_MESSAGES)
        if stop > published:
            running.publish(numbered(bodies, range(published, stop)))
            published = stop
        else:
            time.sleep(0.005)
    return samples


def growth(samples: Sequence[tuple[int, float]]) -> float:
    """Return the growth of the memory in MB per 100,000 messages."""
    settled = np.array([sample for sample in samples if sample[0] >= SETTLING])
    return float(np.polyfit(settled[:, 0], settled[:, 1], 1)[0]) * 100_000


def thinned(samples: Sequence[tuple[int, float]], count: int) -> list[list[float]]:
    """Return about ten of the samples, for the results."""
    wanted = [np.searchsorted([n for n, _ in samples], at) for at in np.linspace(0, count, 11)]
    return [[samples[i][0], round(samples[i][1], 1)] for i in wanted if i < len(samples)]


def measure_run(model: Path, bodies: Sequence[bytes], count: int) -> Record:
    """Measure a run, and return its figures."""
    with local_servers() as on:
        with streaming(on, model, bodies) as running:
            cpu, start = running.cpu_seconds, time.monotonic()
            samples = feed(running, bodies, count)
            seconds, used = time.monotonic() - start, running.cpu_seconds - cpu
        arrivals = running.subscriber.stop()
    distinct = len(np.unique(arrivals.numbers))
    return {
        "messages": count,
        "lost": count - distinct,
        "doubled": len(arrivals.numbers) - distinct,
        "seconds": round(seconds, 1),
        "messages_per_second": round(distinct / seconds),
        "cpu_us_per_message": round(used / count * 1e6, 1),
        "peak_mb": round(max(mb for _, mb in samples), 1),
        "growth_mb_per_100_000": round(growth(samples), 2),
        "samples": thinned(samples, count),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure a run, and write stream_memory.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("build/bench"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--messages", type=int, default=200_000)
    args = parser.parse_args(argv)
    args.workdir.mkdir(parents=True, exist_ok=True)
    found = measure_run(Bench(args.workdir, ()).model(), make_bodies(BODIES), args.messages)
    print(
        f"{found['messages']:,} messages in {found['seconds']:,.0f} s, "
        f"{found['messages_per_second']:,}/s, {found['lost']} lost, {found['doubled']} doubled; "
        f"peak {found['peak_mb']:,.0f} MB, {found['growth_mb_per_100_000']:+.2f} MB per 100,000"
    )
    target = {"at_most": MB_PER_100_000, "measured": found["growth_mb_per_100_000"]}
    results = {**found, "targets": {"growth_mb_per_100_000": target}}
    write_results(
        args.output / "stream_memory.json", {"method": METHOD, "environment": {}}, results, 1
    )


if __name__ == "__main__":
    main()
