"""Runs a scale test of both streams on the emulator, at fixed rates.

python -m benchmarks.stream.latency

Latency is the time from the moment at which a message is due until this process receives its result
from the output topic. The reference measured the same with a local model on Dataflow, with one
worker.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.row_costs import write_results
from benchmarks.senders import SEED
from benchmarks.serving.servers import server
from benchmarks.stream.run import LIMITS, local_servers, make_bodies, streaming, topic
from benchmarks.summary import Record
from examples.local_cloud import LocalCloud, free_port
from scale_tests.load.plan import Constant, Objective, Plan, Result, WarmUp
from scale_tests.measures.level import Judgement, Level
from scale_tests.streams.stream import run_stream

PIPELINES = ("stream_local", "stream_vertex")
# Messages per second, and for how many seconds.
RATES = ((10, 60), (50, 60), (200, 20), (1_000, 20))
BODIES = 2_000
PERCENTILES = (50, 95, 99)
# Milliseconds that the reference recorded, by messages per second. It has no result for 80.
REFERENCE: dict[int, Record] = {
    10: {"mean": 331, "p50": 282, "p95": 837, "p99": 1_216},
    25: {"mean": 372, "p50": 347, "p95": 651, "p99": 979},
    40: {"mean": 414, "p95": 674, "p99": 1_252},
    60: {"mean": 455, "p95": 693, "p99": 830},
}
METHOD = {
    "latency_ms": "from the time at which a message was due until the sender's machine receives "
    "its result from the output topic; null if there are too few messages for a percentile",
    "mean_ms": "mean time in each part of the latency; the stream writes --row_timings",
    "verdict": "whether the rate was sustained, with a p99 of at most a second",
    "local_runner": LIMITS,
}


def plan(phases: Sequence[Constant | WarmUp]) -> Plan:
    """Return the plan of a test of the topics that `streaming` uses."""
    return Plan(
        target="stream",
        send_to=topic("in"),
        seed=SEED,
        objective=Objective(latency_ms=1_000),
        result=Result(source="topic", name=topic("out"), dead_letters=topic("dead")),
        phases=tuple(phases),
    )


def run_levels(on: LocalCloud, phases: Sequence[Constant | WarmUp]) -> list[Record]:
    """Run phases of a test of a running stream, and return the figures of each level."""
    outcome = run_stream(plan(phases), on.cloud, lambda text: None)
    return [figures(level, judgement) for level, judgement in outcome.levels]


def figures(level: Level, judgement: Judgement) -> Record:
    """Return the figures of a level."""
    latencies = level.latencies()
    return {
        "rate": round(level.rate),
        "seconds": level.seconds,
        "accounts": level.ledger.totals(),
        "latency_ms": None
        if latencies is None
        else {
            f"p{q}": None if (ms := latencies.quantile(q).ms) is None else round(ms, 1)
            for q in PERCENTILES
        },
        "sent_late_ms": round(level.sent_late_ms(), 1),
        "results_per_second": round(level.throughput, 1),
        "mean_ms": {part.name: round(part.mean_ms, 2) for part in level.parts},
        "verdict": str(judgement.verdict),
    }


@contextmanager
def endpoint_of(pipeline: str, model: Path, folder: Path) -> Iterator[str]:
    """Run the endpoint that a pipeline needs, and yield its URL, or nothing for stream_local."""
    if pipeline == "stream_local":
        yield ""
        return
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = f"serving run --model_path {model} --outputs all --port {port}"
    with server(command, f"{address}/health", folder):
        yield f"{address}/predict"


def beside(rate: int) -> dict[str, Record]:
    """Return what the reference recorded at a rate, or at the next lower and higher rates.

    The result is empty if the rate is outside the range of the reference.
    """
    below = [r for r in REFERENCE if r <= rate]
    above = [r for r in REFERENCE if r >= rate]
    near = {max(below), min(above)} if below and above else set()
    return {str(r): REFERENCE[r] for r in sorted(near)}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every rate with new servers, and write stream_latency.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("build/bench"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--pipelines", nargs="+", choices=PIPELINES, default=PIPELINES)
    parser.add_argument(
        "--rates", type=int, nargs="+", default=[rate for rate, _ in RATES], choices=dict(RATES)
    )
    args = parser.parse_args(argv)
    args.workdir.mkdir(parents=True, exist_ok=True)
    model, bodies = Bench(args.workdir.resolve(), ()).model(), make_bodies(BODIES)
    results: dict[str, list[Record]] = {pipeline: [] for pipeline in args.pipelines}
    for pipeline in args.pipelines:
        for rate in args.rates:
            with (
                endpoint_of(pipeline, model, args.workdir) as url,
                local_servers() as on,
                streaming(on, model, bodies, endpoint=url, timings=True) as running,
            ):
                running.subscriber.stop()
                (found,) = run_levels(on, [Constant(rate=rate, seconds=dict(RATES)[rate])])
            results[pipeline].append({"planned": rate, **found, "reference_ms": beside(rate)})
            print(pipeline, results[pipeline][-1], flush=True)
    write_results(
        args.output / "stream_latency.json", {"method": METHOD, "environment": {}}, results, 1
    )


if __name__ == "__main__":
    main()
