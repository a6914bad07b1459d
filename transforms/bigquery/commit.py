"""TableCommit: the commit of a run's staged files to a BigQuery table, all or none, never twice.

Load jobs write the files to a table of the attempt. Then one job writes the rows of that table to
the destination: a copy, or a query if a copy is not possible. Job ids are derived from the fields
that identify the run, so a repeated step finds the jobs that have already run:

    crash before that last job    the attempt's table expires; a rerun starts over
    crash after it                a rerun finds the job and replaces the rows of its run
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from google.cloud import bigquery

from common.errors import BalanceError, OutputError
from transforms.bigquery.jobs import done_job, job_id
from transforms.bigquery.placed_rows import Span, is_of_model, rows_of, span_of
from transforms.bigquery.replay_marks import ReplayMarks
from transforms.bigquery.write_jobs import OF_PIPELINE, PIPELINE, RUN_ID, TableJobs, run_table
from transforms.files.sink.run_folder import StagedFile
from transforms.lineage import Lineage

# BigQuery's limit of source files for one load job.
FILES_A_LOAD = 10_000
# The fields of a run's provenance that identify the run. The model's version and digest are not
# among them: the rows of a fixed model replace the rows of the broken one.
IDENTITY = (RUN_ID, PIPELINE, "model_name")


@dataclass(frozen=True)
class TableCommit(TableJobs):
    """The commit of one attempt at a run to a table.

    Attributes:
        lineage: The dead letters that the run replays; None unless the run is a replay.
    """

    lineage: Lineage | None = None

    def is_done(self) -> bool:
        """Return whether this attempt has already put its rows into the table.

        This happens when a step is repeated.

        Raises:
            BalanceError: The table received a different number of rows than were staged.
        """
        job = done_job(self.client, self._attempt_job, self.table.location, self.cloud)
        job = job or self.earlier()
        if job is None or not self.is_ours(job):
            return False
        self.check_rows(job)
        return True

    def earlier(self) -> Any:
        """Return the job with which any attempt put this run's rows into the table, or None."""
        return done_job(self.client, self._run_job, self.table.location, self.cloud)

    def filled_it(self) -> bool:
        """Return whether an earlier attempt put this run's rows into the table.

        Return False if the table was deleted and created again since then.
        """
        return self._is_in_table(self.earlier())

    def _is_in_table(self, earlier: Any) -> bool:
        return earlier is not None and bool(earlier.ended >= self.table.created)

    def check_pipeline(self) -> None:
        """Raise OutputError if another pipeline wrote rows that look like rows of this run.

        The scores table has no pipeline column.
        """
        if PIPELINE in self._keys_of_job or self.write_disposition == "truncate":
            return
        earlier = self.earlier()
        other = earlier and earlier.labels.get(OF_PIPELINE)
        if self._is_in_table(earlier) and other != self.provenance.pipeline:
            who = f"pipeline {other}" if other else "another pipeline"
            raise OutputError(
                f"{who} has already written rows of run {self.folder.run_id} with model "
                f"{self.provenance.model_name} to table {self.name}, and rows of this run could "
                "not be distinguished from them: choose another --run_id"
            )

    def load(self, files: Sequence[StagedFile]) -> None:
        """Load the staged files into the attempt's table, which is created if necessary.

        Raises:
            BalanceError: A different number of rows were loaded than were staged.
        """
        run_table = self.make_run_table()
        config = bigquery.LoadJobConfig(
            source_format="PARQUET",
            decimal_target_types=["NUMERIC", "BIGNUMERIC"],
            write_disposition="WRITE_APPEND",
            create_disposition="CREATE_NEVER",
            labels=self.labels,
        )
        # Otherwise BigQuery would replace umlauts and spaces in the names of columns by _.
        config.column_name_character_map = "V2"
        # Otherwise BigQuery would load a list as a record that contains a repeated record.
        config.parquet_options = bigquery.ParquetOptions()
        config.parquet_options.enable_list_inference = True
        paths = sorted(file.path for file in files if file.rows)
        target, load = run_table.reference, self.client.load_table_from_uri
        loads = {
            # The time distinguishes the table from an expired one with the same name.
            job_id("load", str(target), str(run_table.created), *uris): functools.partial(
                load, uris, target, job_config=config
            )
            for uris in (paths[i : i + FILES_A_LOAD] for i in range(0, len(paths), FILES_A_LOAD))
        }
        loaded = sum(job.output_rows for job in self.run_all(loads))
        if loaded != self.rows:
            raise BalanceError(
                f"{self.rows:,} rows were staged for table {self.name}, but {loaded:,} were "
                "loaded: nothing was written to the table; please report this"
            )

    def place(self, files: Sequence[StagedFile]) -> None:
        """Put the rows of the attempt's table into the destination.

        They replace the rows of earlier attempts at the run.

        Args:
            files: The staged files that were loaded into the attempt's table.

        Raises:
            OutputError: Rows of an earlier attempt or replay cannot be replaced.
            BalanceError: The destination received a different number of rows than the files hold.
        """
        replace(self, marks=self.marks_of(files))._place()

    def _place(self) -> None:
        """Run the job that puts the rows into the table, unless an earlier job has done it."""
        replayed = self.replayed()
        if self.lineage is not None:
            self._replay_marks.add(self.lineage)
        earlier = self.earlier() or self._put(self._run_job, replayed)
        if self.is_ours(earlier):
            self.check_rows(earlier)
            return
        # Another attempt put its rows there: it has crashed, or runs at the same time.
        if self.write_disposition == "truncate":
            self.replace_all(self._attempt_job)
        elif self.keys:
            self.check_pipeline()
            self.replace_own(self._attempt_job, replayed)
        elif not self._holds(earlier):
            self.append(self._attempt_job)

    def _put(self, name: str, replayed: Sequence[str]) -> Any:
        """Run the job that puts the rows into the table and deletes the rows of `replayed`."""
        if self.write_disposition == "truncate":
            return self.replace_all(name)
        return self.replace_own(name, replayed) if replayed else self.append(name)

    def replayed(self) -> list[str]:
        """Return the run ids of the replays whose rows in the table this run replaces.

        The rows of such a replay stand for rows of this run. If this run is a replay itself, it
        replaces only earlier replays whose dead letters it takes completely.

        Raises:
            OutputError: A row would be in the table twice.
        """
        if self.write_disposition == "truncate":
            return []
        marks, own = self._replay_marks, self.folder.run_id
        origins = {own}
        if self.lineage is not None:
            origins = {origin for run in self.lineage.runs for origin in marks.origins(run)}
        known = marks.replays(origins)
        found = known.keys() - {own}
        if found and RUN_ID not in self.keys:
            self._refuse_replayed(found, origins)
            return []
        present = self.runs_in_table(sorted(found)) if found else []
        if self.lineage is None:
            for run in present:
                self._check_alone(run, marks.origins(run) - origins)
            return present
        relations = {run: self.lineage.to(known[run], known) for run in present}
        for run, relation in relations.items():
            if relation == "overlaps":
                raise OutputError(
                    f"run {run} has already replayed some of these dead letters into table "
                    f"{self.name}, so their rows would be in it twice: choose filters that select "
                    f"either all the dead letters that run {run} replayed, or none of them"
                )
        return [run for run, relation in relations.items() if relation == "covers"]

    def _refuse_replayed(self, found: Iterable[str], origins: Iterable[str]) -> None:
        """Raise OutputError unless the table is empty."""
        if self.table.num_rows:
            raise OutputError(
                f"table {self.name} has no column {RUN_ID}, so the rows that run "
                f"{', '.join(sorted(found))} replayed into it for run {', '.join(sorted(origins))} "
                "cannot be replaced: write to another table, or replace all rows of the table with "
                "--write_disposition truncate"
            )

    def _check_alone(self, run: str, others: Collection[str]) -> None:
        """Raise OutputError if a replay also used dead letters of runs other than this one."""
        if others:
            rest = ", ".join(sorted(others))
            raise OutputError(
                f"run {run} has replayed dead letters of this run and of {rest} into table "
                f"{self.name}, and its rows do not show which run they come from: delete them "
                f"(DELETE FROM `{self.name}` WHERE {RUN_ID} = '{run}'), run this command again, "
                f"then replay the dead letters of {rest}"
            )

    @property
    def _replay_marks(self) -> ReplayMarks:
        return ReplayMarks(self.client, self.cloud, self.name, self.table.location)

    @property
    def _run_job(self) -> str:
        """The id of the job that puts a run's rows into the table, the same for all attempts."""
        return job_id("commit", str(self.name), *self._identity)

    @property
    def _attempt_job(self) -> str:
        """The id of the job with which this attempt replaces the rows of an earlier one."""
        return job_id("replace", str(self.name), *self._identity, self.folder.token)

    @property
    def _keys_of_job(self) -> tuple[str, ...]:
        """The fields that identify this run's job: the key columns, or all if there are none."""
        return self.keys or IDENTITY

    @property
    def _identity(self) -> list[str]:
        return [getattr(self.provenance, name) for name in self._keys_of_job]

    def _holds(self, earlier: Any) -> bool:
        """Return whether an earlier job's rows are still in a table without key columns.

        Raises OutputError if they cannot be distinguished from other rows, if only some are left,
        or if the rows of this attempt differ. In such a table no row can be replaced.
        """
        there, span = rows_of(earlier) or 0, span_of(earlier)
        found = self._look_for(earlier, span)
        if found.known == 0 or there == 0:
            return False
        is_whole = found.own == there == self.rows and (
            (found.first, found.last) == (span.first, span.last)
            if span
            else found.known == found.own
        )
        if is_whole and is_of_model(earlier, self.provenance.model_digest):
            return True
        advice = (
            f"the table has no column {RUN_ID}, so they cannot be replaced: choose another "
            "--run_id, or replace all rows of the table with --write_disposition truncate"
        )
        was = f"run {self.folder.run_id} has already written {there:,} rows to table {self.name}"
        if is_whole:
            raise OutputError(f"{was}, with another model file; {advice}")
        if found.known > there or found.own > there:
            raise OutputError(
                f"{was}; the table also has other rows with the same ids, so the rows of the run "
                f"cannot be identified ({found.own:,} rows could belong to it); {advice}"
            )
        raise OutputError(
            f"{was}, of which {min(found.own, there):,} are left, and this attempt has "
            f"{self.rows:,} rows; {advice}"
        )

    def _look_for(self, earlier: Any, span: Span | None) -> Any:
        """Count the rows of the table that have ids of the attempt.

        Returns one row. `known` is the number of all such rows, and `own` the number of those
        that the earlier job can have written, by their time. `first` and `last` are the earliest
        and the latest time of the latter.
        """
        key, time = self.schema.names[0], f"UNIX_MICROS(`{self.time_column}`)"
        own = "TRUE"
        if span is not None:
            own = f"{time} BETWEEN {span.first} AND {span.last}"
        elif self.time_column:
            own = f"`{self.time_column}` <= @ended"
        times = f"MIN(IF({own}, {time}, NULL)) AS first, MAX(IF({own}, {time}, NULL)) AS last"
        source = self.every_row if self.copies else "TRUE"
        sql = (
            f"SELECT COUNT(*) AS known, COUNTIF({own}) AS own, "
            f"{times if self.time_column else 'NULL AS first, NULL AS last'} FROM `{self.name}` "
            f"WHERE {self.every_row} AND `{key}` IN (SELECT `{key}` FROM "
            f"`{run_table(self.name, self.folder)}` WHERE {source})"
        )
        ended = bigquery.ScalarQueryParameter("ended", "TIMESTAMP", earlier.ended)
        config = bigquery.QueryJobConfig(query_parameters=[ended] if "@ended" in sql else [])
        job = self.client.query(sql, config, location=self.table.location, retry=self.retry)
        (found,) = job.result(retry=self.retry)
        return found
