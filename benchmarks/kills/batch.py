"""Batch runs that are killed: into files, into a table, and several attempts at one run at once.

Each scenario keeps one run id and scores two inputs in turn, so that the old result and the new
one differ in their rows. Whatever a kill leaves, a reader must find one of the two whole; the same
command once more must leave the new one, each row once. Files of rows and of dead letters change
together, by the report that lists both. The two tables change one after the other, each whole: a
reader may find the rows of one result beside the dead letters of the other.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
# Ids by part: "scores" and "dead_letters".
Parts = dict[str, list[str]]
PARTS = ("scores", "dead_letters")


def make_inputs(folder: Path) -> Ids:
    """A folder -> the ids of each of INPUTS, whose files are in a folder of its name there."""
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
    """A run into a folder."""

    folder: Path
    model: Path
    inputs: Path

    def start(self, name: str, number: int) -> Attempt:
        """An input's name and a number -> an attempt at the run, its log named by the number."""
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
        """The flags that say where results go."""
        return {"output_files": self.folder / "out"}

    def state(self) -> object:
        """What changes once an attempt begins to put its rows in place."""
        scores = self.folder / "out" / RUN_ID / "scores"
        return sorted(os.listdir(scores)) if scores.is_dir() else []

    def read(self) -> Parts:
        """The ids of the result as a reader finds it, by part."""
        folder = str(self.folder / "out" / RUN_ID)
        return {
            part: open_result(folder, part).to_table(columns=["row_id"])["row_id"].to_pylist()
            for part in PARTS
        }

    def is_whole(self, found: Parts, results: Sequence[Parts]) -> bool:
        """What a reader found -> whether it is one of the results."""
        return found in results


@dataclass
class Table(Files):
    """A run into a table of the local BigQuery."""

    cloud: Cloud
    table: str

    def sinks(self) -> dict[str, Any]:
        """The table, and where files for it are staged."""
        return {
            "output_table": self.table,
            "temp_location": "gs://bucket/tmp",
            "billing_project": self.cloud.project,
            "retry_seconds": 20,
        }

    def state(self) -> object:
        """Whether there are staged files: the time from then on is that of load jobs."""
        return [blob.name for blob in self.cloud.storage().list_blobs("bucket", prefix="tmp/")]

    def read(self) -> Parts:
        """The ids in the table and in that of dead letters."""
        found: Parts = {}
        for part, table in zip(PARTS, (self.table, f"{self.table}_dead_letters"), strict=True):
            try:
                rows = self.cloud.bigquery().query(f"SELECT row_id FROM `{table}`").result()
            except exceptions.NotFound:
                rows = ()
            found[part] = [row["row_id"] for row in rows]
        return found

    def is_whole(self, found: Parts, results: Sequence[Parts]) -> bool:
        """What a reader found -> whether each table is that of one of the results."""
        return all(any(found[part] == one[part] for one in results) for part in PARTS)


@dataclass(kw_only=True)
class Kills:
    """A run that is killed again and again. seconds: of an attempt that nobody kills."""

    run: Files
    ids: Ids
    chance: random.Random
    tally: Tally = field(default_factory=Tally)
    number: int = 0
    seconds: float = 0.0
    results: dict[str, Parts] = field(default_factory=dict)

    def start(self, name: str) -> Attempt:
        """An input's name -> the next attempt."""
        self.number += 1
        return self.run.start(name, self.number)

    def prepare(self) -> None:
        """Both results, each of a run that nobody kills; the first is in place."""
        # Without the imports, which the first run alone waits for.
        self.start(INPUTS[0]).finish()
        for name in reversed(INPUTS):
            self.seconds = timed(lambda name=name: self.start(name).finish())  # type: ignore[misc]
            self.results[name] = self.read()
            self.tally.count_rows(self.ids[name], _all(self.results[name]))

    def read(self) -> Parts:
        """What a reader finds, in order."""
        return {part: sorted(ids) for part, ids in self.run.read().items()}

    def look(self, *allowed: str) -> str | None:
        """Names of inputs -> whose result is there, counted as gone if it is none of theirs."""
        got = self.read()
        if not self.run.is_whole(got, [self.results[name] for name in allowed]):
            self.tally.gone += 1
            print("neither result is whole:", {part: len(ids) for part, ids in got.items()})
            return None
        return next((name for name in allowed if self.results[name] == got), None)

    def rerun(self, name: str) -> None:
        """An input's name -> its result, which must be there, each row once."""
        self.start(name).finish()
        self.tally.count_rows(self.ids[name], _all(self.run.read()))

    def strike(self, attempt: Attempt) -> None:
        """A running attempt -> killed at some moment, and counted."""
        before = self.run.state()
        at_random(self.chance, attempt, self.seconds, lambda: self.run.state() != before)
        if attempt.kill():
            self.tally.kills += 1
        else:
            self.tally.ended += 1


def _all(parts: Parts) -> list[str]:
    return [row_id for part in PARTS for row_id in parts[part]]


def kill_one(kills: Kills, count: int) -> Tally:
    """So many kills of a rerun that replaces a result, each followed by a rerun that is not."""
    kills.prepare()
    old, new = INPUTS
    while kills.tally.kills < count:
        kills.strike(kills.start(new))
        kills.tally.committed += kills.look(old, new) == new
        kills.rerun(new)
        old, new = new, old
    return kills.tally


def kill_of_two(kills: Kills, count: int) -> Tally:
    """The same with two attempts at once, of which one is killed, or stopped while the other ends.

    Whichever of them says that it is done has left a whole result, its own or a later one.
    """
    kills.prepare()
    old, new = INPUTS
    while kills.tally.kills < count:
        attempts = [kills.start(new), kills.start(old)]
        kills.chance.shuffle(attempts)
        victim, other = attempts
        if kills.chance.random() < 0.5:
            at_random(kills.chance, victim, kills.seconds, lambda: False)
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
