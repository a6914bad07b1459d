"""Measures the latency of messages through `pipelines.stream_local` at fixed rates.

python -m benchmarks.stream.latency

This is an open loop: a seed determines when each message is to be sent (a Poisson process), no
matter how fast the pipeline is. Latency is the time from then until a subscriber of the output
topic, in another process than the pipeline, receives the result. The reference measured the same on
Dataflow with one worker.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil

from benchmarks.bench import Bench
from benchmarks.row_costs import write_results
from benchmarks.stream.run import (
    LIMITS,
    WARM_UP,
    Arrivals,
    local_servers,
    make_bodies,
    numbered,
    streaming,
)
from benchmarks.summary import Record

# Messages per second, and for how many seconds.
RATES = ((10, 60), (50, 60), (200, 20), (1_000, 20))
SEED = 20_261_121
BODIES = 2_000
# Milliseconds that the reference recorded, by messages per second. It has no result for 80.
REFERENCE: dict[int, Record] = {
    10: {"mean": 331, "p50": 282, "p95": 837, "p99": 1_216},
    25: {"mean": 372, "p50": 347, "p95": 651, "p99": 979},
    40: {"mean": 414, "p95": 674, "p99": 1_252},
    60: {"mean": 455, "p95": 693, "p99": 830},
}
METHOD = {
    "latency_ms": "from the time at which a message was to be sent until a subscriber of the "
    "output topic receives its result",
    "sent_late_ms": "how much later than intended a message was sent; part of its latency",
    "kept_up": "results per second that arrived while messages were still being sent",
    "pipeline_cpu": "CPU seconds per second of the pipeline's process",
    "machine_busy": "share of the machine that all processes on it used",
    "local_runner": LIMITS,
}


def schedule(rate: float, seconds: float, seed: int) -> np.ndarray:
    """Return the seconds at which each message is to be sent."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds * 2) + 100)
    times = np.cumsum(gaps)
    return times[times < seconds]


def send(publish: Callable[[range], object], due: np.ndarray) -> np.ndarray:
    """Send each message when it is due, and return when it was sent, in seconds since 1970.

    Args:
        publish: Publishes the messages with the given numbers, up to a thousand, in one request.
        due: When each message is to be sent, in seconds since 1970 and ascending.
    """
    sent = np.empty(len(due))
    start = 0
    while start < len(due):
        time.sleep(max(0.0, due[start] - time.time()))
        now = time.time()
        stop = min(int(np.searchsorted(due, now, "right")), start + 1_000)
        stop = max(stop, start + 1)
        publish(range(start, stop))
        sent[start:stop] = now
        start = stop
    return sent


def figures(due: np.ndarray, sent: np.ndarray, arrivals: Arrivals) -> Record:
    """Return the figures of a rate.

    If a result arrives more than once, the first one counts.
    """
    numbers, first = np.unique(arrivals.numbers, return_index=True)
    latency = (arrivals.times[first] - due[numbers]) * 1e3
    return {
        "sent": len(due),
        "lost": len(due) - len(numbers),
        "doubled": len(arrivals.numbers) - len(numbers),
        "latency_ms": _percentiles(latency),
        "sent_late_ms": _percentiles((sent - due) * 1e3),
        "kept_up": round(float(np.sum(arrivals.times[first] <= due[-1]) / (due[-1] - due[0])), 1),
    }


def _percentiles(values: np.ndarray) -> Record:
    found = {f"p{q}": float(np.percentile(values, q)) for q in (50, 95, 99)}
    return {
        name: round(value, 1)
        for name, value in {"mean": float(values.mean()), **found, "max": values.max()}.items()
    }


def run_rate(model: Path, bodies: Sequence[bytes], rate: int, seconds: int) -> Record:
    """Measure a rate with new servers and a new pipeline."""
    with local_servers() as on:
        with streaming(on, model, bodies) as running:
            due = time.time() + 1.0 + schedule(rate, seconds, SEED + rate)
            cpu, start = running.cpu_seconds, time.monotonic()
            psutil.cpu_percent()
            sent = send(lambda numbers: running.publish(numbered(bodies, numbers)), due)
            load = {
                "pipeline_cpu": round((running.cpu_seconds - cpu) / (time.monotonic() - start), 2),
                "machine_busy": round(psutil.cpu_percent() / 100, 2),
            }
            running.subscriber.wait_for(WARM_UP + len(due))
        arrivals = running.subscriber.stop()
    return {"rate": rate, "seconds": seconds, **figures(due, sent, arrivals), **load}


def beside(rate: int) -> dict[str, Record]:
    """Return what the reference recorded at a rate, or at the next lower and higher rates.

    The result is empty if the rate is outside the range of the reference.
    """
    below = [r for r in REFERENCE if r <= rate]
    above = [r for r in REFERENCE if r >= rate]
    near = {max(below), min(above)} if below and above else set()
    return {str(r): REFERENCE[r] for r in sorted(near)}


def line(record: Record) -> str:
    """Return a line about the figures of a rate."""
    latency = record["latency_ms"]
    return (
        f"{record['rate']:>5}/s for {record['seconds']} s: {record['sent']:>6,} sent, "
        f"{record['lost']} lost, {record['doubled']} doubled; latency ms p50 {latency['p50']:,.0f} "
        f"p95 {latency['p95']:,.0f} p99 {latency['p99']:,.0f}, {record['kept_up']:,.0f} results/s, "
        f"{record['pipeline_cpu']:.2f} CPUs, machine {record['machine_busy']:.0%} busy"
    )


def targets(records: Sequence[Record]) -> Record:
    """Return the targets, and the measured values for them."""
    found: Record = {}
    for record in records:
        beaten = [r["p95"] for r in beside(record["rate"]).values()]
        if beaten:
            found[f"p95_ms at {record['rate']}/s"] = {
                "below": min(beaten),
                "measured": record["latency_ms"]["p95"],
            }
    found["lost or doubled"] = {
        "at_most": 0,
        "measured": sum(record["lost"] + record["doubled"] for record in records),
    }
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every rate, and write stream_latency.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("build/bench"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument(
        "--rates", type=int, nargs="+", default=[rate for rate, _ in RATES], choices=dict(RATES)
    )
    args = parser.parse_args(argv)
    args.workdir.mkdir(parents=True, exist_ok=True)
    model, bodies = Bench(args.workdir, ()).model(), make_bodies(BODIES)
    records: list[Record] = []
    for rate in args.rates:
        record = run_rate(model, bodies, rate, dict(RATES)[rate])
        print(line(record), flush=True)
        for load, recorded in beside(rate).items():
            print(f"      the reference at {load}/s, on Dataflow: {recorded}", flush=True)
        records.append({**record, "reference_ms": beside(rate)})
    found = targets(records)
    results = {"rates": records, "targets": found}
    write_results(
        args.output / "stream_latency.json", {"method": METHOD, "environment": {}}, results, 1
    )
    print(f"targets {found}")


if __name__ == "__main__":
    main()
