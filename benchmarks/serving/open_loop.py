"""Finds the rates that Millrace's server and TorchServe sustain, with a scale test of each.

python -m benchmarks.serving.open_loop

Both answer with all 13 outputs, as in `servers.py`. Requests are sent at their own times from one
process, however long answers take, so a slow server cannot slow down its load. The servers take
turns while the other one is idle. TorchServe takes part if `make torchserve` has installed it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, versions
from benchmarks.serving.servers import contestants, example, find_fault
from scale_tests.__main__ import main as scale_test
from scale_tests.measures.findings import RATE as RATE_FINDING
from scale_tests.measures.level import rows_text

SERVERS = ("millrace_13", "torchserve_13")
# Requests per second at which the latencies are compared, and where the search begins.
RATE = 50
PLAN = """\
target = "endpoint"
send_to = "{url}"
seed = 1

[objective]
percentile = 99
latency_ms = {latency_ms}
goodput = 0.99

[rows]
instance_format = "list"

[result]
source = "answer"
wait_seconds = 10

[[phases]]
kind = "warm_up"
rate = {rate}
seconds = 10

[[phases]]
kind = "constant"
rate = {rate}
seconds = {long}
rows = {rows}

[[phases]]
kind = "bisection"
lowest = {rate}
highest = 2_000
seconds = {short}
precision = 0.1
rows = {rows}
"""


def figures(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the latencies at RATE and the largest sustained rate, by the rows of a request.

    Args:
        result: The content of result.json.
    """
    rates = {one["name"]: one for one in result["findings"]}
    several = len({level["rows"] for level in result["levels"]}) > 1
    found = []
    for level in (one for one in result["levels"] if "constant" in one["name"]):
        rows = rows_text(level["rows"])
        rate = rates[f"{RATE_FINDING}, {rows}" if several else RATE_FINDING]
        found.append(
            {
                "rows_per_request": level["rows"],
                "verdict": level["verdict"],
                **{f"p{one['percentile']:g}_ms": one["ms"] for one in level["latencies"]},
                "sustained_requests_per_second": rate["value"],
                "confidence": rate["confidence"],
                "evidence": rate["evidence"],
            }
        )
    return found


def test(url: str, folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Test one server, and return its figures.

    Raises:
        RuntimeError: The scale test failed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    values = {"rate": RATE, "long": args.seconds, "short": args.search_seconds, "rows": args.rows}
    plan = folder / "plan.toml"
    plan.write_text(PLAN.format(url=url, latency_ms=args.latency_ms, **values))
    code = scale_test(["endpoint", "--plan", str(plan), "--output", str(folder / "result")])
    if code:
        raise RuntimeError(f"the scale test of {url} ended with {code}")
    return figures(json.loads((folder / "result" / "result.json").read_bytes()))


def main(argv: Sequence[str] | None = None) -> int:
    """Write serving_open_loop.json. Return 1 if a server predicts wrongly."""
    parser = argparse.ArgumentParser(description="Find the rates that servers sustain.")
    parser.add_argument("--rows", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--latency_ms", type=float, default=50.0)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--search_seconds", type=int, default=12)
    parser.add_argument("--workdir", type=Path, default=Path("build/bench/serving"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    args.workdir.mkdir(parents=True, exist_ok=True)
    model = example(args.workdir / "example")
    before = os.getloadavg()[0]
    servers = {}
    with contestants(model, args.workdir, workers=1) as urls:
        for name in (name for name in SERVERS if name in urls):
            if fault := find_fault(url := urls[name], model):
                print(f"FAIL {name}: {fault}", file=sys.stderr)
                return 1
            print(name, flush=True)
            servers[name] = test(url, args.workdir / "open_loop" / name, args)
    results = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions(),
        "machine": describe_machine(),
        "load_average_before": round(before, 2),
        "method": "a scale test of each server, from one sender process on the same machine; a "
        f"rate is sustained if p99 is at most {args.latency_ms:g} ms and the backlog does not "
        "grow",
        "servers": servers,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "serving_open_loop.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
