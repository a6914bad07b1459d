"""Kills batch runs into files and into a table, and also two concurrent attempts at one run.

Each scenario keeps one run id and scores two inputs alternately, so the old and the new result have
different rows. After a kill, a reader must find one of the two results complete. After the same
command runs again, the new result must be in place, with each row once. Files of scores and of dead
letters change together, because one report lists both. The two tables change one after the other,
each in one step: a reader may find the scores of one result and the dead letters of the other.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from google.api_core import exceptions

from benchmarks.kills.process import Attempt, at_random, timed
from benchmarks.kills.tally import Tally
from cloud.clients import Cloud
from examples.transactions.data import write_parquet
from transforms.results import open_result

ROWS = 20_000
FILES = 2
FAULTS = 0.01
INPUTS = ("odd", "even")
RUN_ID = "killed"

Ids = dict[str, frozenset[str]]
# Row ids by part: "scores" and "dead_letters".
Parts = dict[str, list[str]]
PARTS = ("scores", "dead_letters")


def make_inputs(folder: Path) -> Ids:
    """Write the files of each of INPUTS into a folder with its name, and return their row ids."""
    ids: Ids = {}
    for seed, name in enumerate(INPUTS):
        (folder / name).mkdir(parents=True)
        found: list[str] = []
        for part in range(FILES):
            path = folder / name / f"{part}.parquet"
            write_parquet(path, ROWS // FILES, seed=10 * seed + part, fault_share=FAULTS)
            table = pq.read_table(path)
            own = [f"{name}-{part}-{i}" for i in range(table.num_rows)]
            place = table.column_names.index("transaction_id")
            pq.write_table(table.set_column(place, "transaction_id", pa.array(own)), path)
            found += own
        ids[name] = frozenset(found)
    return ids


@dataclass
class Files:
    """A run that writes files.

    Attributes:
        folder: The folder of the output and the logs.
        model: The path of the model package.
        inputs: The folder of INPUTS.
        commit_seconds: About how long a commit takes.
    """

    commit_seconds: ClassVar = 0.02
    folder: Path
    model: Path
    inputs: Path

    def start(self, name: str, number: int) -> Attempt:
        """Start an attempt at the run with an input. The number is the name of the log."""
        values = {
            "input_files": self.inputs / name,
            "model": self.model,
            "id_column": "transaction_id",
            "score_output": "normalized_MAE",
            "run_id": RUN_ID,
            "batch_rows": 2_000,
            **self.sinks(),
        }
        flags = [text for flag, value in values.items() for text in (f"--{flag}", str(value))]
        return Attempt("batch_local", flags, self.folder / f"{number}.log")

    def sinks(self) -> dict[str, Any]:
        """Return the flags for the destination."""
        return {"output_files": self.folder / "out"}

    def state(self) -> object:
        """Return a value that changes when an attempt starts to commit."""
        scores = self.folder / "out" / RUN_ID / "scores"
        return sorted(os.listdir(scores)) if scores.is_dir() else []

    def read(self) -> Parts:
        """Return the row ids that a reader finds, by part."""
        folder = str(self.folder / "out" / RUN_ID)
        return {
            part: open_result(folder, part).to_table(columns=["row_id"])["row_id"].to_pylist()
            for part in PARTS
        }

    def is_whole(self, found: Parts, results: Sequence[Parts]) -> bool:
        """Return whether a reader found one of the results complete."""
        return found in results


@dataclass
class Table(Files):
    """A run that writes to a table of the local BigQuery.

    Attributes:
        cloud: The clients of the project.
        table: The table's full name. The table of dead letters adds a suffix to it.
    """

    commit_seconds: ClassVar = 1.0
    cloud: Cloud
    table: str

    def sinks(self) -> dict[str, Any]:
        """Return the flags for the table and its staged files."""
        return {
            "output_table": self.table,
            "temp_location": "gs://bucket/tmp",
            "billing_project": self.cloud.project,
            "retry_seconds": 20,
        }

    def state(self) -> object:
        """Return the names of the tables of attempts, into which the commit loads the rows."""
        dataset = self.table.rpartition(".")[0]
        found = (table.table_id for table in self.cloud.bigquery().list_tables(dataset))
        return sorted(name for name in found if name.startswith("millrace_run_"))

    def read(self) -> Parts:
        """Return the row ids in the tables of scores and of dead letters."""
        found: Parts = {}
        for part, table in zip(PARTS, (self.table, f"{self.table}_dead_letters"), strict=True):
            try:
                rows = self.cloud.bigquery().query(f"SELECT row_id FROM `{table}`").result()
            except exceptions.NotFound:
                rows = ()
            found[part] = [row["row_id"] for row in rows]
        return found

    def is_whole(self, found: Parts, results: Sequence[Parts]) -> bool:
        """Return whether each table holds one of the results complete."""
        return all(any(found[part] == one[part] for one in results) for part in PARTS)


@dataclass(kw_only=True)
class Kills:
    """A run that is killed repeatedly.

    Attributes:
        run: The run.
        ids: The row ids of each input.
        chance: The source of random moments.
        tally: The counts so far.
        number: The number of attempts so far.
        seconds: How long an attempt takes if it is not killed.
        results: The complete result of each input.
    """

    run: Files
    ids: Ids
    chance: random.Random
    tally: Tally = field(default_factory=Tally)
    number: int = 0
    seconds: float = 0.0
    results: dict[str, Parts] = field(default_factory=dict)

    def start(self, name: str) -> Attempt:
        """Start the next attempt with an input."""
        self.number += 1
        return self.run.start(name, self.number)

    def prepare(self) -> None:
        """Run each input without a kill to get its result. The first one is in place at the end."""
        # Only the first run waits for imports, so it is not timed.
        self.start(INPUTS[0]).finish()
        for name in reversed(INPUTS):
            self.seconds = timed(lambda name=name: self.start(name).finish())  # type: ignore[misc]
            self.results[name] = self.read()
            self.tally.count_rows(self.ids[name], all_ids(self.results[name]))

    def read(self) -> Parts:
        """Return the sorted row ids that a reader finds, by part."""
        return {part: sorted(ids) for part, ids in self.run.read().items()}

    def look(self, *allowed: str) -> str | None:
        """Return the input whose result is in place. Count it as gone if no result is complete."""
        got = self.read()
        if not self.run.is_whole(got, [self.results[name] for name in allowed]):
            self.tally.gone += 1
            print("no result is complete:", {part: len(ids) for part, ids in got.items()})
            return None
        return next((name for name in allowed if self.results[name] == got), None)

    def rerun(self, name: str) -> None:
        """Run an input to its end, and count missing and doubled rows of the result."""
        self.start(name).finish()
        self.tally.count_rows(self.ids[name], all_ids(self.run.read()))

    def wait(self, attempt: Attempt) -> None:
        """Wait until a random moment of a running attempt, or until it ends."""
        before, run = self.run.state(), self.run
        at_random(
            self.chance, attempt, self.seconds, lambda: run.state() != before, run.commit_seconds
        )

    def strike(self, attempt: Attempt) -> None:
        """Kill a running attempt at a random moment, and count it."""
        self.wait(attempt)
        if attempt.kill():
            self.tally.kills += 1
        else:
            self.tally.ended += 1


def all_ids(parts: Parts) -> list[str]:
    """Return the row ids of both parts."""
    return [row_id for part in PARTS for row_id in parts[part]]


def kill_one(kills: Kills, count: int) -> Tally:
    """Kill reruns that replace a result. After each kill, run the same input to its end."""
    kills.prepare()
    old, new = INPUTS
    while kills.tally.kills < count:
        kills.strike(kills.start(new))
        kills.tally.committed += kills.look(old, new) == new
        kills.rerun(new)
        old, new = new, old
    return kills.tally


def kill_of_two(kills: Kills, count: int) -> Tally:
    """Do the same with two concurrent attempts, of which one is killed.

    In half of the cases it is first paused until the other ends. An attempt that reports success
    must leave a complete result, its own or a later one.
    """
    kills.prepare()
    old, new = INPUTS
    while kills.tally.kills < count:
        attempts = [kills.start(new), kills.start(old)]
        kills.chance.shuffle(attempts)
        victim, other = attempts
        if kills.chance.random() < 0.5:
            at_random(kills.chance, victim, kills.seconds, lambda: False, 0.0)
            victim.signal(signal.SIGSTOP)
            other.wait()
            kills.look(old, new)
            victim.signal(signal.SIGCONT)
        kills.strike(victim)
        other.wait()
        kills.tally.committed += kills.look(old, new) == new
        kills.rerun(new)
        old, new = new, old
    return kills.tally
