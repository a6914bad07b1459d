"""Replays into a table, recorded as BigQuery jobs, which a rerun on any machine can find.

The rows of a replay carry the replay's own run id. Jobs that do nothing else record that these
rows stand for rows of another run. The id of such a job is derived from the table, that run and a
number. Its query parameter is the lineage of the replay. BigQuery keeps jobs for half a year.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from google.cloud import bigquery

from cloud.clients import Cloud
from cloud.errors import retry
from transforms.bigquery.jobs import Job, done_job, job_id, run_job
from transforms.bigquery.schema import TableName
from transforms.lineage import Lineage

_OF, _INTO = "lineage", "replayed"


@dataclass(frozen=True)
class ReplayMarks:
    """The record of the replays into one table.

    Attributes:
        location: The location of the table.
    """

    client: bigquery.Client
    cloud: Cloud
    table: TableName
    location: str | None

    def add(self, lineage: Lineage) -> None:
        """Record a replay that is about to write its rows, under each run for which they stand."""
        for kind, run_id in ((_OF, lineage.run_id), *((_INTO, run) for run in lineage.runs)):
            if lineage not in self._read(kind, run_id):
                self._write(kind, run_id, lineage)

    def origins(self, run_id: str) -> set[str]:
        """Return the runs for which a run's rows stand: the run itself, unless it is a replay."""
        found, open_runs, seen = set(), {run_id}, set[str]()
        while open_runs:
            run = open_runs.pop()
            seen.add(run)
            lineages = list(self._read(_OF, run))
            if lineages:
                open_runs |= set(lineages[-1].runs) - seen
            else:
                found.add(run)
        return found

    def replays(self, run_ids: set[str]) -> dict[str, Lineage]:
        """Return the replays of runs, and the replays of those replays, by run id."""
        found: dict[str, Lineage] = {}
        open_runs, seen = set(run_ids), set[str]()
        while open_runs:
            run = open_runs.pop()
            seen.add(run)
            for lineage in self._read(_INTO, run):
                found[lineage.run_id] = lineage
            open_runs |= found.keys() - seen
        return found

    def _read(self, kind: str, run_id: str) -> Iterator[Lineage]:
        """Yield the lineages that are recorded under a run, oldest first."""
        for number in itertools.count():
            job = done_job(self.client, self._name(kind, run_id, number), self.location, self.cloud)
            if job is None:
                return
            yield _lineage_of(job)

    def _write(self, kind: str, run_id: str, lineage: Lineage) -> None:
        """Record a lineage under the first number that no other replay takes."""
        text = bigquery.ScalarQueryParameter("lineage", "STRING", lineage.to_text())
        config = bigquery.QueryJobConfig(query_parameters=[text])
        for number in itertools.count(sum(1 for _ in self._read(kind, run_id))):
            job = run_job(
                self.client,
                self._name(kind, run_id, number),
                self.location,
                self.cloud,
                lambda name: self.client.query(
                    "SELECT @lineage",
                    config,
                    job_id=name,
                    location=self.location,
                    retry=retry(self.cloud.retry_seconds),
                    job_retry=None,
                ),
            )
            if _lineage_of(job) == lineage:
                return

    def _name(self, kind: str, run_id: str, number: int) -> str:
        return job_id(kind, str(self.table), run_id, str(number))


def _lineage_of(job: Job) -> Lineage:
    (text,) = job.query_parameters
    return Lineage.from_text(text.value)
