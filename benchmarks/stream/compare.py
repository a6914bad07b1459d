"""Compares the streams of two checkouts of this repository in one run.

python -m benchmarks.stream.compare --before ../checkout-of-an-earlier-commit

Each round runs stream_local of both, one after the other, with new servers: an idle subscription,
then messages at a fixed rate, then messages as fast as their results arrive. Then it does the same
with stream_vertex, whose endpoint is the server of this checkout. Both checkouts use the installed
libraries of this one.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import psutil

from benchmarks.bench import Bench
from benchmarks.row_costs import write_results
from benchmarks.stream.latency import BODIES, PIPELINES, endpoint_of, run_levels
from benchmarks.stream.memory import feed
from benchmarks.stream.run import (
    LIMITS,
    Running,
    local_servers,
    make_bodies,
    streaming,
)
from benchmarks.summary import Record
from examples.local_cloud import LocalCloud
from scale_tests.load.plan import Constant

HERE = Path(__file__).parents[2]
RATE = 200
METHOD = {
    "idle_cpu": "CPU seconds per second of the pipeline's process while no message is waiting",
    "latency_ms": f"as in stream_latency.json, at {RATE} messages a second",
    "messages_per_second": "as in stream_memory.json: results per second, with up to 5,000 "
    "messages in flight",
    "local_runner": LIMITS,
}


def idle(running: Running, seconds: float) -> float:
    """Return the share of a core that the pipeline uses without messages."""
    # Acknowledgements of the first messages, and other work of the start.
    time.sleep(3.0)
    cpu, start = running.cpu_seconds, time.monotonic()
    time.sleep(seconds)
    return round((running.cpu_seconds - cpu) / (time.monotonic() - start), 4)


def measure(
    start_stream: Callable[[LocalCloud], AbstractContextManager[Running]],
    bodies: Sequence[bytes],
    seconds: int,
    count: int,
) -> Record:
    """Return the figures of a stream that the function starts."""
    with local_servers() as on, start_stream(on) as running:
        running.subscriber.stop()
        found: Record = {"idle_cpu": idle(running, seconds / 2)}
        cpu, start = running.cpu_seconds, time.monotonic()
        psutil.cpu_percent()
        (level,) = run_levels(on, [Constant(rate=RATE, seconds=seconds)])
        used = (running.cpu_seconds - cpu) / (time.monotonic() - start)
        found |= {"machine_busy": round(psutil.cpu_percent() / 100, 2), **level}
    with local_servers() as on:
        with start_stream(on) as running:
            cpu, start = running.cpu_seconds, time.monotonic()
            feed(running, bodies, count)
            took, fast = time.monotonic() - start, running.cpu_seconds - cpu
        arrivals = running.subscriber.stop()
    distinct = len(np.unique(arrivals.numbers))
    return found | {
        "pipeline_cpu": round(used, 3),
        "messages_per_second": round(distinct / took),
        "cpu_us_per_message": round(fast / count * 1e6, 1),
        "lost_of_fast": count - distinct,
        "doubled_of_fast": len(arrivals.numbers) - distinct,
    }


def line(name: str, found: Record) -> str:
    """Return a line about the figures of a stream."""
    latency, accounts = found["latency_ms"], found["accounts"]
    return (
        f"{name:>20}: idle {found['idle_cpu']:.1%} of a core; {RATE}/s: p50 {latency['p50']:.0f} "
        f"p99 {latency['p99']:.0f} ms, {found['pipeline_cpu']:.2f} cores, {accounts['lost']} lost, "
        f"{accounts['duplicates']} duplicates, machine {found['machine_busy']:.0%} busy; as fast "
        f"as they come {found['messages_per_second']:,}/s, {found['cpu_us_per_message']:.0f} us"
    )


def commit_of(checkout: Path) -> str:
    """Return the commit of a checkout."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.check_output(command, text=True).strip()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both checkouts in turn, and write stream_compare.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="a checkout to compare with")
    parser.add_argument("--workdir", type=Path, default=Path("build/bench"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--pipelines", nargs="+", choices=PIPELINES, default=PIPELINES)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--messages", type=int, default=40_000)
    args = parser.parse_args(argv)
    args.workdir.mkdir(parents=True, exist_ok=True)
    model, bodies = Bench(args.workdir.resolve(), ()).model(), make_bodies(BODIES)
    both = {"before": args.before.resolve(), "after": HERE}
    results: dict[str, dict[str, list[Record]]] = {
        pipeline: {name: [] for name in both} for pipeline in args.pipelines
    }
    for pipeline, (name, checkout) in list(product(args.pipelines, both.items())) * args.rounds:
        with endpoint_of(pipeline, model, args.workdir) as url:
            stream = partial(streaming, model=model, bodies=bodies, checkout=checkout, endpoint=url)
            found = measure(stream, bodies, args.seconds, args.messages)
        results[pipeline][name].append(found)
        print(line(f"{pipeline} {name}", found), flush=True)
    commits = {name: commit_of(checkout) for name, checkout in both.items()}
    write_results(
        args.output / "stream_compare.json",
        {"method": METHOD, "environment": {}, "commits": commits},
        results,
        args.rounds,
    )


if __name__ == "__main__":
    main()
