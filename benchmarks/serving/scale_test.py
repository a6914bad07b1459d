"""Compares what a scale test of an endpoint measures with the server's own log of the same run.

python -m benchmarks.serving.scale_test

The server delays its answers at random, so that the time of connections and of a shared machine,
which the server does not see, is a small part. The log has to have the requests of the accounts.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.machine import describe_machine, versions
from benchmarks.serving.servers import example, server
from examples.local_cloud import free_port
from scale_tests.__main__ import main as scale_test

Floats = NDArray[np.float64]
DELAY_MS = (100, 300)
PERCENTILES = (50, 90, 95, 99)
PLAN = """\
target = "endpoint"
send_to = "{url}"
seed = 1

[objective]
latency_ms = 1_000

[sender]
cpu = 1

[result]
source = "answer"
wait_seconds = 10

[[phases]]
kind = "warm_up"
rate = 20
seconds = 5

[[phases]]
kind = "constant"
rate = 20
seconds = {seconds}

[[phases]]
kind = "constant"
rate = 50
seconds = {seconds}

[[phases]]
kind = "constant"
rate = 20
seconds = {seconds}
rows = 50
"""


def compare(sent: Floats, arrived: Floats, log: Floats) -> dict[str, Any]:
    """Return the percentiles that the test and the server saw, in milliseconds.

    Args:
        sent: [n] When each request of a level was sent.
        arrived: [n] When its answer had arrived.
        log: [m, 2] When the server began and ended to answer each request of the run.
    """
    # The server writes the end of an answer when the client may have it already.
    own = log[(log[:, 0] >= sent.min()) & (log[:, 0] <= arrived.max())]
    measured = np.percentile(arrived - sent, PERCENTILES) * 1e3
    logged = np.percentile(own[:, 1] - own[:, 0], PERCENTILES) * 1e3
    return {
        "requests": len(sent),
        "requests_in_log": len(own),
        "measured_ms": _named(measured),
        "logged_ms": _named(logged),
        "difference": _named(measured / logged - 1, 4),
    }


def _named(values: Floats, digits: int = 2) -> Mapping[str, float]:
    pairs = zip(PERCENTILES, values.tolist(), strict=True)
    return {f"p{percentile}": round(value, digits) for percentile, value in pairs}


def wait_until_ready(health: str) -> None:
    """Wait until a server has loaded its model."""
    for _ in range(600):
        with suppress(OSError), urllib.request.urlopen(health, timeout=5):
            return
        time.sleep(0.1)
    raise RuntimeError(f"{health} did not answer with 200 within a minute")


def run(folder: Path, seconds: int) -> dict[str, Any]:
    """Test a server, and return the comparison of each level by its name."""
    model, port = example(folder / "example") / "model", free_port()
    log, result = folder / "server.log", folder / "result"
    shutil.rmtree(result, ignore_errors=True)
    address = f"http://127.0.0.1:{port}"
    plan = folder / "plan.toml"
    plan.write_text(PLAN.format(url=f"{address}/predict", seconds=seconds))
    command = f"benchmarks.serving.logged_server --model_path {model} --port {port} --log {log}"
    command += f" --delay_ms {DELAY_MS[0]} {DELAY_MS[1]}"
    with server(command, f"{address}/health", folder):
        wait_until_ready(f"{address}/health")
        code = scale_test(["endpoint", "--plan", str(plan), "--output", str(result)])
    if code:
        raise RuntimeError(f"the scale test ended with {code}")
    samples = pq.read_table(result / "samples.parquet")
    lines = np.loadtxt(log, ndmin=2)
    levels = np.asarray(samples["level"].to_pylist())
    sent, arrived = (samples[name].to_numpy() for name in ("sent", "arrived"))
    return {
        str(name): compare(sent[levels == name], arrived[levels == name], lines)
        for name in dict.fromkeys(levels.tolist())
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write scale_test.json to the output folder. Return 1 if the log has other requests."""
    parser = argparse.ArgumentParser(description="Compare a scale test with the server's log.")
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--workdir", type=Path, default=Path("build/bench/scale_test"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    args.workdir.mkdir(parents=True, exist_ok=True)
    before = os.getloadavg()[0]
    levels = run(args.workdir, args.seconds)
    results = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions(),
        "machine": describe_machine(),
        "load_average_before": round(before, 2),
        "delay_ms": DELAY_MS,
        "seconds": args.seconds,
        "method": "from the moment a request was sent to its whole answer, against the server's "
        "time from the request's headers to its answer, in the same run on one machine",
        "levels": levels,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "scale_test.json").write_text(json.dumps(results, indent=1) + "\n")
    for name, found in levels.items():
        print(f"{name}: {json.dumps(found)}")
    complete = all(one["requests"] == one["requests_in_log"] for one in levels.values())
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
