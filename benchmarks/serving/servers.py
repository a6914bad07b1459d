"""Compares servers of one model: Millrace's, a minimal FastAPI app, and TorchServe.

python -m benchmarks.serving.servers --rows 1 10 50 100 --rounds 3

First, each server must predict like the model. Then they take turns under the same load while the
others are idle. TorchServe takes part if `make torchserve` has installed it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe_machine, versions
from benchmarks.measure import ENVIRONMENT
from examples.local_cloud import Server, free_port
from examples.transactions.build import build
from examples.transactions.torchserve import is_installed, torchserve
from model_handlers.manifests.tolerance import TOLERANCE

SEED = 11
GATE_ROWS = 200
SCORES = ("anomaly_score", "denormalized_MAE")


def example(folder: Path) -> Path:
    """Return the folder of the example. Build the example if it is missing."""
    if not (folder / "model_pt2" / "model.json").exists():
        build(folder, rows=1_000, train_rows=20_000, seed=SEED)
    return folder


@contextmanager
def server(command: str, health: str, folder: Path) -> Iterator[None]:
    """Run a Python module as a server until the block ends."""
    log = Path(tempfile.mkstemp(dir=folder, suffix=".log")[1])
    running = Server(f"{sys.executable} -m {command}", health, log, ENVIRONMENT)
    running.start()
    try:
        yield
    finally:
        running.stop()


@contextmanager
def contestants(model: Path, folder: Path, workers: int) -> Iterator[dict[str, str]]:
    """Run all servers until the block ends, and yield the URL of each."""
    with ExitStack() as started:
        urls = {}
        for name, command in (
            ("millrace_2", f"serving --model_path {model}/model --outputs score"),
            ("millrace_13", f"serving --model_path {model}/model --outputs all"),
            (
                "fastapi_2",
                f"benchmarks.serving.minimal_fastapi --model_file {model}/model/model.pt",
            ),
        ):
            address = f"http://127.0.0.1:{(port := free_port())}"
            started.enter_context(server(f"{command} --port {port}", f"{address}/health", folder))
            urls[name] = f"{address}/predict"
        if is_installed():
            urls["torchserve_13"] = started.enter_context(
                torchserve(model / "pytorch_autoencoder.mar", workers=workers)
            )
        yield urls


def body_of(rows: int) -> bytes:
    """Return the body of a request with a number of rows."""
    values = np.random.default_rng(SEED).normal(size=(rows, 30)).round(6)
    return json.dumps({"instances": values.tolist()}).encode()


def find_fault(url: str, model: Path) -> str:
    """Return how the predictions differ from those of the model, empty if they do not."""
    body = body_of(GATE_ROWS)
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        predictions = json.load(response)["predictions"]
    with torch.inference_mode():
        rows = torch.tensor(json.loads(body)["instances"])
        expected = torch.jit.load(model / "model" / "model.pt")(rows)
    if len(predictions) != GATE_ROWS:
        return f"{len(predictions)} predictions for {GATE_ROWS} rows"
    (score,) = {*SCORES} & {*predictions[0]}
    for name, output in ((score, "denormalized_MAE"), ("encoded", "encoded")):
        got = np.array([row[name] for row in predictions])
        if not TOLERANCE.agree(got, expected[output]).all():
            return f"{name} differs from the model's by {abs(got - expected[output].numpy()).max()}"
    return ""


def load(url: str, body: Path, seconds: float, connections: int) -> dict[str, Any]:
    """Load a server from a separate process, and return the figures."""
    command = [sys.executable, "-m", "benchmarks.serving.http_load", url, "--body", str(body)]
    command += ["--seconds", str(seconds), "--connections", str(connections)]
    limit = seconds + 60
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=limit)
    result: dict[str, Any] = json.loads(done.stdout)
    if set(result["statuses"]) != {"200"}:
        raise RuntimeError(f"{url} responded with statuses {result['statuses']}, expected only 200")
    return result


def compete(
    urls: Mapping[str, str], rows: int, args: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Load every server once per round, and return the medians and all rounds."""
    body = folder / f"body-{rows}.json"
    body.write_bytes(body_of(rows))
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in urls}
    for _ in range(args.rounds):
        for name, url in urls.items():
            rounds[name].append(load(url, body, args.seconds, args.connections))
    result: dict[str, Any] = {"rows_per_request": rows}
    for name, seen in rounds.items():
        median = {
            key: statistics.median(r[key] for r in seen)
            for key in ("requests_per_second", "p50_ms", "p99_ms")
        }
        result[name] = {"rows_per_second": median["requests_per_second"] * rows, **median}
        result[name]["rounds"] = seen
        found = result[name]
        print(
            f"{rows:4} rows per request {name:>14}: {found['rows_per_second']:>10,.0f} rows/s "
            f"p50 {found['p50_ms']:7.2f} ms  p99 {found['p99_ms']:7.2f} ms",
            flush=True,
        )
    return result


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Compare servers of one model.")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 10, 50, 100])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=8)
    # On two cores, one worker was faster than two: the frontend and the load also need cores.
    parser.add_argument("--torchserve_workers", type=int, default=1)
    parser.add_argument("--workdir", type=Path, default=Path("build/bench/serving"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Write serving.json to the output folder. Return 1 if a server predicts wrongly."""
    args = read_arguments(argv)
    args.workdir.mkdir(parents=True, exist_ok=True)
    model = example(args.workdir / "example")
    with contestants(model, args.workdir, args.torchserve_workers) as urls:
        faults = {name: fault for name, url in urls.items() if (fault := find_fault(url, model))}
        for name, fault in faults.items():
            print(f"FAIL {name}: {fault}", file=sys.stderr)
        if faults:
            return 1
        sizes = [compete(urls, rows, args, args.workdir) for rows in args.rows]
    results = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions(),
        "machine": describe_machine(),
        "rounds": args.rounds,
        "seconds": args.seconds,
        "connections": args.connections,
        "torchserve_workers": args.torchserve_workers,
        "gate": {"rows": GATE_ROWS, "tolerance": asdict(TOLERANCE), "passed": True},
        "method": "closed loop on keep-alive connections from a process on the same machine, "
        "after 1 s of warm-up; medians of interleaved rounds. _2 and _13: outputs per response",
        "sizes": sizes,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "serving.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {args.output / 'serving.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
