"""Compares clients of an endpoint: VertexEndpointHandler, Beam's handler, a plain load generator.

python -m benchmarks.serving.endpoint --rounds 3

All use the same server, the same number of rows per request and of requests in flight. First, each
handler must predict like the model. Then they take turns. The server has a separate process.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, versions
from benchmarks.measure import ENVIRONMENT
from benchmarks.serving.endpoint_client import CONTESTANTS, GATE_ROWS
from benchmarks.serving.servers import body_of, example, load, server
from benchmarks.summary import spread
from examples.local_cloud import free_port
from model_handlers.manifests.tolerance import TOLERANCE

LOAD = "plain_load"


def ask(contestant: str, url: str, model: Path, args: argparse.Namespace) -> dict[str, float]:
    """Run a handler in a separate process, and return its figures."""
    command = [sys.executable, "-m", "benchmarks.serving.endpoint_client", contestant, url]
    command += ["--model", str(model), "--seconds", str(args.seconds)]
    command += ["--rows", str(args.rows), "--concurrency", str(args.concurrency)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=args.seconds + 120,
        env=os.environ | ENVIRONMENT,
    )
    lines = done.stdout.splitlines()
    found: dict[str, Any] = json.loads(lines[-1]) if lines else {"fault": done.stderr[-500:]}
    if "fault" in found:
        raise RuntimeError(f"{contestant}: {found['fault']}")
    return {
        "rows_per_second": found["rows"] / found["wall_seconds"],
        "cpu_microseconds_per_row": found["cpu_seconds"] / found["rows"] * 1e6,
    }


def compete(url: str, model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run every contestant once per round, and return the figures of each."""
    body = args.workdir / "body.json"
    body.write_bytes(body_of(args.rows))
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in (LOAD, *CONTESTANTS)}
    for _ in range(args.rounds):
        seen = load(url, body, args.seconds, args.concurrency)
        rounds[LOAD].append({"rows_per_second": seen["requests_per_second"] * args.rows})
        for name in CONTESTANTS:
            rounds[name].append(ask(name, url, model, args))
    figures = {
        name: {key: spread([one[key] for one in seen]) for key in seen[0]}
        for name, seen in rounds.items()
    }
    for name, found in figures.items():
        print(f"{name:>10}: {json.dumps(found)}", flush=True)
    return figures


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Compare clients of one endpoint.")
    parser.add_argument("--rows", type=int, default=100, help="rows per request (default: 100)")
    parser.add_argument(
        "--concurrency", type=int, default=8, help="requests in flight (default: 8)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--workdir", type=Path, default=Path("build/bench/endpoint"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Write endpoint.json to the output folder."""
    args = read_arguments(argv)
    args.workdir.mkdir(parents=True, exist_ok=True)
    before = os.getloadavg()[0]
    model = example(args.workdir / "example") / "model"
    port = free_port()
    command = f"serving run --model_path {model} --outputs score --port {port}"
    with server(command, f"http://127.0.0.1:{port}/health", args.workdir):
        figures = compete(f"http://127.0.0.1:{port}/predict", model, args)
    ours, beam, plain = (figures[name] for name in ("millrace", "stock_beam", LOAD))
    rate, cpu = "rows_per_second", "cpu_microseconds_per_row"
    results = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions(),
        "machine": describe_machine(),
        "load_average_before": round(before, 2),
        "rows_per_request": args.rows,
        "concurrency": args.concurrency,
        "rounds": args.rounds,
        "seconds": args.seconds,
        "gate": {"rows": GATE_ROWS, "tolerance": asdict(TOLERANCE), "passed": True},
        "method": "from record batches to record batches; for Beam's handler from lists to dicts, "
        "in as many threads as requests in flight; both without a pipeline. The server and each "
        "client run in separate processes on one machine; minimum, median and maximum of "
        "interleaved rounds",
        "figures": figures,
        "rows_per_second_of_the_plain_load": round(ours[rate]["median"] / plain[rate]["median"], 3),
        "times_the_rows_per_second_of_beam": round(ours[rate]["median"] / beam[rate]["median"], 1),
        "times_less_cpu_than_beam": round(beam[cpu]["median"] / ours[cpu]["median"], 1),
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "endpoint.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {args.output / 'endpoint.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
