"""Runs the plan of a batch: makes rows, scores them, and looks for each of them in the results."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloud.clients import Cloud, credentials
from cloud.endpoints import Endpoints
from common.errors import InputError, MillraceError, UsageError, one_line
from scale_tests.batches.command import Ended, command_of, run_command
from scale_tests.batches.files import Files
from scale_tests.batches.place import Found, Input, Place
from scale_tests.load.arrow_rows import ID, make_rows
from scale_tests.load.batch_plan import BatchPlan, Offline
from scale_tests.load.rows import draw_faults
from scale_tests.measures.batch_runs import (
    Accounts,
    BatchLevel,
    BatchOutcome,
    Run,
    account,
)
from scale_tests.measures.outcome import INTERRUPTED

# The rows with which the command is checked before the test.
CHECK_ROWS = 100
LIMIT = "max_dead_letter_share"


@dataclass
class Level:
    """A number of rows while its runs are measured.

    Attributes:
        name: Its name.
        rows: The rows of a run.
        first: The number of the first row.
        key: The name of its rows, which a table may have too.
        runs: The runs so far.
    """

    name: str
    rows: int
    first: int
    key: str
    runs: list[Run] = field(default_factory=list)


@dataclass
class BatchTest:
    """A running test of a batch.

    Attributes:
        plan: The plan.
        place: Where the rows and the results are.
        test_id: The first part of the ids of rows.
        logs: The folder that gets what the command prints.
        report: Gets a line about each run.
    """

    plan: BatchPlan
    place: Place
    test_id: str
    logs: Path
    report: Callable[[str], None]
    levels: list[Level] = field(default_factory=list)
    _count: int = 0

    def check(self) -> None:
        """Let the command check its flags, the model and the source, without scoring.

        Raises:
            UsageError: It refuses a flag.
            InputError: It refuses something else, in its own words.
        """
        level = Level("check", CHECK_ROWS, self._count, "check")
        self._count += CHECK_ROWS
        run_id = self._run_id(level, 0)
        ended = self._start(level, self._write(level), run_id, "--dry_run")
        self.place.drop(level.key)
        # The next test needs an empty folder, and the error has what matters.
        self._log(run_id).unlink(missing_ok=True)
        if ended.interrupted:
            raise KeyboardInterrupt
        if ended.error:
            kind = UsageError if ended.code == 2 else InputError
            error = kind(f"{self.plan.batch.pipeline} refuses to start: {ended.error}")
            error.page = ended.page
            raise error

    def run(self) -> None:
        """Run all phases. What is raised meanwhile ends them."""
        for number, phase in enumerate(self.plan.phases, 1):
            self._phase(number, phase)

    def _phase(self, number: int, phase: Offline) -> None:
        levels = []
        for rows in phase.sizes:
            name, key = f"{number} offline, {rows:,} rows", f"phase_{number}_rows_{rows}"
            levels.append(Level(name, rows, self._count, key))
            self._count += rows
        sources = {level.name: self._write(level) for level in levels}
        for round in range(1, phase.repeat + 1):
            for level in levels:
                if round == 1:
                    self.levels.append(level)
                self._measure(level, sources[level.name], round)
        for level in levels:
            self.place.drop(level.key)

    def _write(self, level: Level) -> Input:
        plan = self.plan
        rows = make_rows(plan.rows, plan.seed, self.test_id, level.first, level.rows)
        return self.place.write(level.key, rows)

    def _start(self, level: Level, source: Input, run_id: str, *more: str) -> Ended:
        batch = self.plan.batch
        flags = (
            # The plan says how many rows are faulty, and the accounts whether that was so.
            *(() if batch.value_of(LIMIT) else (f"--{LIMIT}", "1")),
            *source.flags,
            *self.place.flags(run_id),
            *("--id_column", ID, "--run_id", run_id, "--json_summary"),
            *more,
        )
        return run_command(command_of(batch, flags), self._log(run_id))

    def _log(self, run_id: str) -> Path:
        """Return the file that gets what the command of a run prints."""
        return self.logs / f"{run_id.removeprefix(f'{self.test_id}-')}.log"

    def _run_id(self, level: Level, round: int) -> str:
        """Return the id of a run, which no other test has."""
        return f"{self.test_id}-{level.key}-run-{round}"

    def _measure(self, level: Level, source: Input, round: int) -> None:
        run_id = self._run_id(level, round)
        ended = self._start(level, source, run_id)
        run = self._account(level, source, ended, self.place.read(run_id), round)
        level.runs.append(run)
        self.report(line(level, run))
        self.place.discard(run_id)
        if ended.interrupted:
            raise KeyboardInterrupt

    def _account(self, level: Level, source: Input, ended: Ended, found: Found, round: int) -> Run:
        faulty = draw_faults(self.plan.rows.faulty, self.plan.seed, level.rows)
        over = not ended.interrupted
        accounts, affected = account(level.first, faulty, found.scored, found.dead, over=over)
        here = not self.plan.batch.on_dataflow
        times = found.times
        return Run(
            round=round,
            started=ended.started,
            seconds=ended.seconds,
            accounts=accounts,
            affected=affected if over else (),
            faults=tuple(_faults(ended, found)),
            interrupted=ended.interrupted,
            start_seconds=times[0] - ended.started if times else None,
            finish_seconds=ended.started + ended.seconds - times[1] if times else None,
            cpu_seconds=ended.cpu_seconds if here else None,
            peak_bytes=ended.peak_bytes if here else None,
            read_bytes=source.bytes,
            written_bytes=found.bytes,
        )

    def outcome(self, ended: str = "", *, interrupted: bool = False) -> BatchOutcome:
        """Return what the test showed so far.

        Args:
            ended: Why it ended before its plan; empty if it did not.
            interrupted: Whether it was interrupted.
        """
        return BatchOutcome(
            test_id=self.test_id,
            plan=self.plan,
            levels=tuple(
                BatchLevel(name=one.name, rows=one.rows, runs=tuple(one.runs))
                for one in self.levels
                if one.runs
            ),
            ended=ended,
            interrupted=interrupted,
        )


def _faults(ended: Ended, found: Found) -> Iterator[str]:
    """Yield what went wrong besides the accounts."""
    if ended.interrupted:
        # A job, for example, goes on, and the command says how to stop it.
        yield from filter(None, [ended.error])
    elif ended.error:
        yield ended.error
        if found.left:
            yield found.left
    elif ended.report is None:
        yield "the command printed no report"
    else:
        yield from _contradictions(ended.report, found)


def _contradictions(report: Mapping[str, Any], found: Found) -> Iterator[str]:
    """Yield where the report of a run differs from the results that are there."""
    for name, what, count in (
        ("rows_scored", "scored rows", len(found.scored)),
        ("rows_dead_lettered", "dead letters", len(found.dead)),
    ):
        if report.get(name) != count:
            said = report.get(name)
            yield f"the report says {said if said is None else f'{said:,}'} {what}, found {count:,}"


def line(level: Level, run: Run) -> str:
    """Return a line about a run: its accounts first, then its figures."""
    names = Accounts.__dataclass_fields__
    counts = {name: getattr(run.accounts, name) for name in names}
    accounts = ", ".join(
        f"{count:,} {name.replace('_', ' ')}"
        for name, count in counts.items()
        if count or name in ("scored", "lost")
    )
    memory = f", {run.peak_bytes / 1e6:,.0f} MB" if run.peak_bytes else ""
    rate = f", {run.rows_per_second:,.0f} rows/s{memory}" if run.complete else ""
    faults = f"; {'; '.join(run.faults)}" if run.faults else ""
    return f"{level.name}, run {run.round}: {accounts}; {run.seconds:,.1f} s{rate}{faults}"


def _place(plan: BatchPlan, test_id: str) -> Place:
    if plan.in_tables:
        from scale_tests.batches.tables import Tables

        cloud = Cloud(plan.send_to.rpartition(".")[0])
        return Tables(cloud, plan.send_to, test_id, plan.batch.value_of("temp_location"))
    if plan.send_to.startswith("gs://"):
        # Beam would go on without credentials, and retry for minutes.
        credentials(Endpoints.resolve().storage)
    root = f"{plan.send_to.rstrip('/')}/millrace-scale-{test_id}"
    return Files(root, test_id, plan.batch.format)


def run_batch(plan: BatchPlan, logs: Path, report: Callable[[str], None]) -> BatchOutcome:
    """Run the plan of a batch and return what it showed, also after Ctrl-C.

    Args:
        plan: The plan. A dataset has its full name.
        logs: The folder that gets what the command prints, a file for each run.
        report: Gets a line about each run.

    Raises:
        UsageError: The command refuses a flag of the plan.
        InputError: The command refuses to start, or the rows cannot be read.
        OutputError: The rows cannot be written.
        CredentialsError: There are no usable credentials for the bucket or the dataset.
    """
    test_id = uuid.uuid4().hex[:12]
    place = _place(plan, test_id)
    test = BatchTest(plan, place, test_id, logs, report)
    try:
        test.check()
        test.run()
    except KeyboardInterrupt:
        return test.outcome(INTERRUPTED, interrupted=True)
    except MillraceError as error:
        # What was measured before, for example until the disk was full, is worth a page.
        if not test.levels:
            raise
        return test.outcome(one_line(error))
    finally:
        # What was measured is worth more than a clean end.
        try:
            place.remove()
        except MillraceError as error:
            report(f"note: {error}")
    return test.outcome()
