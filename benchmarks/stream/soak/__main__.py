"""Runs `pipelines.stream_local` for an hour under constant load while it is killed again and again.

python -m benchmarks.stream.soak
python -m benchmarks.stream.soak --seconds 120 --kill_seconds 20 --outage_seconds 15

Messages arrive by a Poisson process. Some are faulty, each kind with a
known reason. The stream writes rows and dead letters to topics, tables and files at once. Its
process is killed at fixed times with `kill -9` and started again. In the middle, the server of the
tables is killed and stays away for a while. After the last kill, a last run works off what is left.
Then every message must be in every sink. The emulators, the sender and the subscribers share the
machine with the pipeline.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.bench import Bench, fresh
from benchmarks.contestant import SCORE_OUTPUT
from benchmarks.measure import ContestantError
from benchmarks.row_costs import write_results
from benchmarks.stream.run import LIMITS, local_servers, make_bodies, subscription
from benchmarks.stream.soak.accounts import Copies
from benchmarks.stream.soak.lives import Lives, Outage, kill_times, supervise
from benchmarks.stream.soak.report import METHOD, faults, line, report
from benchmarks.stream.soak.sinks import (
    DATASET,
    RUN,
    Receivers,
    copies_in_files,
    copies_in_tables,
    sink_flags,
)
from benchmarks.stream.soak.traffic import Sender
from benchmarks.summary import Record
from examples.local_cloud import LocalCloud
from scale_tests.load.plan import Constant
from scale_tests.load.schedule import due_times

BODIES = 2_000
SEED = 20_261_121
# Messages wait so long for others. The stand-in for BigQuery writes a file for each append.
WAIT_MS = 500
# The last run ends after this time without a message. It is longer than the leases of a killed run.
QUIET_SECONDS = 75
# How long the last run may take.
LAST_SECONDS = 1_800.0
# Memory of the Pub/Sub emulator, which keeps each message and its results, and of everything else.
MESSAGE_BYTES, OTHER_GB = 5_000, 4


@dataclass(frozen=True)
class Plan:
    """What happens in a soak. All times are in seconds.

    Attributes:
        seconds: How long messages are sent.
        rate: How many messages are sent in a second.
        kill_seconds: The time from a kill to the next one.
        outage_seconds: How long the server of the tables is away, in the middle.
    """

    seconds: int
    rate: int
    kill_seconds: int
    outage_seconds: int

    @property
    def memory_gb(self) -> int:
        """The memory for the Pub/Sub emulator, in GB."""
        return 1 + -(-self.seconds * self.rate * MESSAGE_BYTES // 1_000_000_000)

    def check(self, free_gb: float) -> None:
        """Raise SystemExit if the plan makes no sense, or the memory is too small for it."""
        if not 0 < self.outage_seconds < self.seconds or not 0 < self.kill_seconds <= self.seconds:
            raise SystemExit(
                f"error: expected an outage and kills within {self.seconds} s, got an outage of "
                f"{self.outage_seconds} s and a kill every {self.kill_seconds} s: choose fewer "
                "--outage_seconds and --kill_seconds"
            )
        if self.memory_gb + OTHER_GB > free_gb:
            raise SystemExit(
                f"error: expected {self.memory_gb + OTHER_GB} GB of free memory, found "
                f"{free_gb:.1f}: choose fewer --seconds, or a lower --rate"
            )


def command_of(model: Path, flags_of_sinks: Mapping[str, str]) -> Callable[[int], list[str]]:
    """Return a function that returns the command of the run with a number."""
    flags = {
        "input_subscription": subscription("in"),
        "model": str(model),
        "score_output": SCORE_OUTPUT,
        "max_batch_wait_ms": str(WAIT_MS),
        "retry_seconds": "20",
        "report_seconds": "3600",
        **flags_of_sinks,
    }
    pairs = [text for name, value in flags.items() for text in (f"--{name}", value)]
    start = [sys.executable, "-m", "pipelines.stream_local", *pairs]
    return lambda number: [*start, "--run_id", f"{RUN}{number}"]


def run_lives(
    plan: Plan, on: LocalCloud, receivers: Receivers, lives: Lives
) -> tuple[Sender, Outage]:
    """Send all messages while the process is killed again and again, then let it finish."""
    bodies = make_bodies(BODIES)
    start = time.time() + 1.0
    times = due_times(Constant(rate=plan.rate, seconds=plan.seconds), "poisson", (SEED,))
    sender = Sender(on.cloud, bodies, start + times)
    begin = start + (plan.seconds - plan.outage_seconds) / 2
    outage = Outage(on.bigquery, begin, begin + plan.outage_seconds)
    sender.start()
    lives.start()

    def check() -> None:
        if sender.has_failed or not receivers.are_running:
            raise ContestantError("messages are not sent or not received: see the traceback above")

    kills = kill_times(start, plan.seconds, plan.kill_seconds)
    supervise(lives, outage, kills, check)
    sender.join()
    check()
    lives.start("--stop_after_seconds", str(QUIET_SECONDS))
    lives.finish(LAST_SECONDS)
    return sender, outage


def soak(plan: Plan, model: Path, folder: Path) -> Record:
    """Carry out a plan with new servers, and return the figures."""
    with local_servers(f"{plan.memory_gb}g") as on:
        on.cloud.bigquery().create_dataset(f"{on.cloud.project}.{DATASET}")
        receivers, files = Receivers(on), folder / "files"
        command = command_of(model, sink_flags(on.cloud.project, files))
        lives = Lives(command, on.environ(), folder / "runs.log")
        try:
            sender, outage = run_lives(plan, on, receivers, lives)
        finally:
            lives.kill()
        arrivals, copies = receivers.stop()
        held: dict[str, Copies] = {
            "topic": copies,
            "table": copies_in_tables(on.cloud),
            "files": copies_in_files(files),
        }
    return report(
        due=sender.due,
        late=sender.times - sender.due,
        ids=sender.ids,
        held=held,
        arrivals=arrivals,
        lives=lives.all,
        outage=(outage.down, outage.up),
        kill_seconds=plan.kill_seconds,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out a soak, and write stream_soak.json. Return 1 if a message is lost or wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("build/bench"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--seconds", type=int, default=3_600)
    parser.add_argument("--rate", type=int, default=500)
    parser.add_argument("--kill_seconds", type=int, default=60)
    parser.add_argument("--outage_seconds", type=int, default=300)
    args = parser.parse_args(argv)
    plan = Plan(args.seconds, args.rate, args.kill_seconds, args.outage_seconds)
    plan.check(psutil.virtual_memory().available / 1e9)
    args.workdir.mkdir(parents=True, exist_ok=True)
    folder = fresh(args.workdir.resolve() / "soak")
    folder.mkdir()
    found = soak(plan, Bench(args.workdir.resolve(), ()).model(), folder)
    print(line(found), flush=True)
    settings = {"method": METHOD, "local_runner": LIMITS, "environment": {}, "plan": vars(plan)}
    write_results(args.output / "stream_soak.json", settings, found, 1)
    for fault in faults(found):
        print(fault)
    return int(bool(faults(found)))


if __name__ == "__main__":
    sys.exit(main())
