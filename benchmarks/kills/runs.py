"""Kills runs with `kill -9` at random moments, runs them again, and counts lost and doubled rows.

python -m benchmarks.kills.runs
python -m benchmarks.kills.runs --runner prism    # needs `make prism`

The scenarios are batch runs into files and into a table, two concurrent attempts at one run, and
streams with each sink. They use local servers that stand in for Google Cloud. With `--runner prism`
they are runs on Beam's runner Prism, of which the command, Prism or the workers are killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.kills.batch import Files, Kills, Table, kill_of_two, kill_one, make_inputs
from benchmarks.kills.prism import OnPrism, PrismKills
from benchmarks.kills.streams import StreamRun, kill_stream
from benchmarks.kills.tally import Tally, as_table
from benchmarks.row_costs import write_results
from benchmarks.stream.run import make_bodies
from examples.local_cloud import LocalCloud, local_cloud

SEED = 20_261_128
# The number of kills in each scenario, 300 in all.
SHARES = {
    "batch files": 100,
    "batch table": 40,
    "two attempts, files": 50,
    "two attempts, table": 20,
    "stream, topic": 30,
    "stream, table": 30,
    "stream, files": 30,
}
# The same with --runner prism, 110 in all.
PRISM_SHARES = {
    "prism, launcher": 18,
    "prism, runner": 16,
    "prism, workers": 16,
    "stream on prism, launcher": 20,
    "stream on prism, runner": 20,
    "stream on prism, workers": 20,
}
PRISM = Path(".prism/prism")
METHOD = {
    "kills": "SIGKILL, half of them anywhere in a run, half during the commit of its result",
    "ended": "attempts that had ended before the kill; they do not count as kills",
    "committed": "kills after which the new result was already in place",
    "gone": "checks by a reader that found neither the old nor the new result complete; the tables "
    "of scores and of dead letters change one after the other, and each is checked separately",
    "lost": "rows that were missing after the rerun",
    "doubled": "rows that existed twice, or should not exist, after the rerun",
    "again": "rows that a stream delivered more than once with one id, as at-least-once delivery "
    "allows",
}


def run_scenario(name: str, count: int, seed: int, on: LocalCloud, work: Path) -> Tally:
    """Run a scenario with a number of kills, and return its counts."""
    chance, model = random.Random(f"{seed} {name}"), Bench(work, ()).model()
    folder = Path(tempfile.mkdtemp(dir=work))
    kind = name.rpartition(" ")[2]
    if name.startswith("stream"):
        bodies = [body + b"}" for body in make_bodies(200)]
        if "on prism" in name:
            run = StreamRun(on.cloud, folder, model, f"topic-{kind}", PRISM)
            return kill_stream(run, bodies, chance, count, kind)
        return kill_stream(StreamRun(on.cloud, folder, model, kind), bodies, chance, count)
    ids = make_inputs(folder / "inputs")
    if name.startswith("prism"):
        on_prism = OnPrism(folder, model, folder / "inputs", PRISM)
        return kill_one(PrismKills(run=on_prism, ids=ids, chance=chance, victim=kind), count)
    table = f"{on.cloud.project}.kills.{'two' if name.startswith('two') else 'one'}"
    target = (
        Table(folder, model, folder / "inputs", on.cloud, table)
        if kind == "table"
        else Files(folder, model, folder / "inputs")
    )
    act = kill_of_two if name.startswith("two") else kill_one
    return act(Kills(run=target, ids=ids, chance=chance), count)


def main(argv: Sequence[str] | None = None) -> int:
    """Write kill_runs.json and print a table. Return 1 if anything is lost, doubled or gone."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("build/bench"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--kills", type=int, help="the number of kills (default: 300, or 110)")
    parser.add_argument("--scenarios", nargs="+", choices=[*SHARES, *PRISM_SHARES])
    parser.add_argument("--runner", choices=["prism"])
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args(argv)
    shares = PRISM_SHARES if args.runner else SHARES
    # The workers of Prism are started as `python`.
    os.environ["PATH"] = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    args.workdir.mkdir(parents=True, exist_ok=True)
    tallies: dict[str, Tally] = {}
    with (
        tempfile.TemporaryDirectory(dir=args.workdir) as folder,
        local_cloud(Path(folder), with_pubsub=True, pubsub_memory="3g", with_labels=False) as on,
    ):
        # Set these before the first fork, because the attempts find the servers through them.
        os.environ.update(on.environment)
        on.cloud.storage().create_bucket("bucket")
        on.cloud.bigquery().create_dataset(f"{on.cloud.project}.kills")
        for name in args.scenarios or shares:
            whole = sum(shares.values())
            count = max(1, shares[name] * (args.kills or whole) // whole)
            tallies[name] = run_scenario(name, count, args.seed, on, args.workdir)
            print(f"{name}: {tallies[name]}", flush=True)
    print(as_table(tallies))
    path = args.output / "kill_runs.json"
    # Scenarios that did not run this time keep their earlier results.
    known = json.loads(path.read_text())["scenarios"] if path.exists() else {}
    scenarios = known | {name: asdict(tally) for name, tally in tallies.items()}
    every = [*SHARES, *PRISM_SHARES]
    results = {"seed": args.seed, "scenarios": {n: scenarios[n] for n in every if n in scenarios}}
    write_results(path, {"method": METHOD, "environment": {}}, results, 1)
    return int(any(tally.faults for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
